"""Keeps out sums that two releases of jaxlib compute wrong on CPUs, at import.

jaxlib 0.10.2 hands sums of products over an axis to a library (YNN). Where an
operand is broadcast and the sum is used again, results of more than some ten
thousand elements are wrong without a word: in p * sum(p * x, -1, keepdims=True)
with p [32, 32, 3] and x [64, 32, 32, 3] by more than the size of what is right
(https://github.com/jax-ml/jax/issues/39103). 0.11.0 can end the process at such
sums (https://github.com/jax-ml/jax/issues/39257); 0.10.1 and 0.11.1 do neither.
"""

import os
import re
import warnings

import jax

FAULTY = ("0.10.2", "0.11.0")
_NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{_NAME}=-reduce"


def avoid() -> None:
  """Has XLA itself compute such sums, by a flag in XLA_FLAGS.

  XLA reads its flags once, when JAX first asks for devices. Processes that are
  started later inherit the variable.

  Warns:
    RuntimeWarning: if sums stay wrong, since JAX has its devices already, since
      XLA_FLAGS names a file, or since the caller's own flag of this name, which
      stays as it is, leaves them to that library.
  """
  flags = os.environ.get("XLA_FLAGS", "").strip()
  if jax.lib.__version__ not in FAULTY:
    return
  own = re.findall(f"{_NAME}=(\\S*)", flags)
  if own:
    value = ",".join(own)  # a flag that is given twice adds to itself
    reason = _leaves_sums(value) and f"XLA_FLAGS has {_NAME}={value}"
  elif flags and not flags.startswith("-"):
    # To XLA that is a file of flags, and nothing may stand beside it.
    reason = f"XLA_FLAGS={flags} is taken for the name of a file"
  else:
    reason = _has_devices() and "JAX has made its devices before this import"
  if reason:
    warnings.warn(
      f"jaxlib {jax.lib.__version__} computes some sums wrong on CPUs "
      f"(jax-ml/jax#39103) and {reason}: start Python with XLA_FLAGS={FLAG}, "
      "or take another jaxlib",
      RuntimeWarning,
      stacklevel=3,
    )
  elif not own:
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()


def _leaves_sums(value: str) -> bool:
  """Whether a value of the flag has the library compute sums.

  It is a list of kinds of operations, or changes of XLA's own list by + and -.
  """
  kinds = value.lower().replace("library_fusion_type_", "").split(",")
  if "-reduce" in kinds:
    return False
  changes = any(kind.startswith(("+", "-")) for kind in kinds)
  return changes or any("reduce" in kind or "eltwise" in kind for kind in kinds)


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
