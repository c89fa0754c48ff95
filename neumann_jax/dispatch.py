"""Which back end computes the inverse: the one place that knows platforms.

Names are `auto`, `tpu`, `gpu`, `xla` and `interpret`. The choice is made from
the arguments alone, never from an environment variable or the default device.
"""

from collections.abc import Callable

import jax

from neumann_jax import reference
from neumann_jax.spec import InverseSpec

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "interpret")

Inverse = Callable[[jax.Array, InverseSpec, jax.Array | None], jax.Array]


def select(implementation: str) -> Inverse:
  """The callable behind an implementation name.

  Args:
    implementation: one of IMPLEMENTATIONS; "auto" takes a kernel where there
      is one for the platform, else "xla".

  Returns:
    (a, spec, bound) -> T, as `reference.invert`.

  Raises:
    ValueError: for an unknown name, or one that cannot run, with the reason.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; "
      f"got {implementation!r}"
    )
  if implementation in ("auto", "xla"):
    return reference.invert
  raise ValueError(
    f"implementation={implementation!r} cannot run: this version has no "
    "Pallas kernel; use 'auto' or 'xla'"
  )
