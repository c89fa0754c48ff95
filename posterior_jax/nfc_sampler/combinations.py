"""Which parts go together, and where the linear solves of a choice stop."""

from typing import Any, NamedTuple

from posterior_jax.nfc_sampler.records import (
  Denoise,
  Exact,
  Inner,
  Jacobian,
  Mean,
  Predictor,
  Probed,
  Width,
)

# Fewer levels than this cannot make up for what few iterations leave out.
_FEW_LEVELS = 20


class Stop(NamedTuple):
  """Where a linear solve stops."""

  tolerance: float
  max_iterations: int


def check(width: Width, predictor: Predictor, inner: Inner) -> None:
  """Refuses parts that do not go together.

  Raises:
    ValueError: naming the part, what it is and what it must be.
  """
  name = type(width).__name__
  # A Jacobian is of one denoiser call at the level's own image: an ODE's end
  # point has another.
  if isinstance(width, Probed | Jacobian):
    _need("predictor", predictor, (Denoise,), name)
  if isinstance(width, Jacobian):
    _need("inner", inner, (Exact, Mean), name)
  elif isinstance(inner, Exact) and inner.root_steps is not None:
    raise ValueError(
      f"root_steps must be None unless width is Jacobian, got "
      f"{inner.root_steps} with {name}"
    )


def _need(name: str, value: Any, kinds: tuple[type, ...], width: str) -> None:
  if not isinstance(value, kinds):
    raise ValueError(
      f"{name} must be {' or '.join(kind.__name__ for kind in kinds)} with "
      f"width {width}, got {type(value).__name__}"
    )


def stop_of(width: Width, inner: Inner, levels: int) -> Stop:
  """Where the solves of `Exact` and `Mean` stop, as `NFCConfig.stop` says."""
  averages = isinstance(inner, Mean)
  found = Stop(1e-4 if averages else 1e-6, 500)
  if isinstance(width, Jacobian):
    few = levels < _FEW_LEVELS
    found = Stop(1e-2, 3 if averages and not few else 20)
  if not isinstance(inner, Exact | Mean):
    return found
  set_here = {
    name: getattr(inner, name)
    for name in Stop._fields
    if getattr(inner, name) is not None
  }
  return found._replace(**set_here)
