"""Keeps out sums that a release of jaxlib computes wrong on CPUs, at import.

jaxlib 0.10.2 hands sums of products over an axis to a library (YNN). Where an
operand is broadcast and the sum is used again, results of more than some ten
thousand elements are wrong without a word: in p * sum(p * x, -1, keepdims=True)
with p [32, 32, 3] and x [64, 32, 32, 3] by more than the size of what is right
(https://github.com/jax-ml/jax/issues/39103). 0.11.0 can end the process at such
sums (https://github.com/jax-ml/jax/issues/39257); 0.10.1 and 0.11.1 do neither.
"""

import os
import warnings

import jax

FAULTY = ("0.10.2", "0.11.0")
_NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{_NAME}=-reduce"


def avoid() -> None:
  """Has XLA itself compute such sums, by a flag in XLA_FLAGS.

  XLA reads its flags once, when JAX first asks for devices. A flag of this
  name that the caller has set stays as it is.

  Warns:
    RuntimeWarning: if JAX has its devices already, so that sums stay wrong.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if jax.lib.__version__ not in FAULTY or _NAME in flags:
    return
  if _has_devices():
    warnings.warn(
      f"jaxlib {jax.lib.__version__} computes some sums wrong on CPUs "
      "(jax-ml/jax#39103): import this package before the first array is made, "
      f"set XLA_FLAGS={FLAG}, or take another jaxlib",
      RuntimeWarning,
      stacklevel=3,
    )
    return
  os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()


def _has_devices() -> bool:
  # JAX says it by refusing this setting once it has them, and no other way
  # that is public; asking for devices would make them.
  before = jax.config.values["jax_num_cpu_devices"]
  try:
    jax.config.update("jax_num_cpu_devices", max(before, 0) + 1)
  except RuntimeError:
    return True
  jax.config.update("jax_num_cpu_devices", before)
  return False
