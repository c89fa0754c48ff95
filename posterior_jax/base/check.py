"""What is refused of an observation before anything is compiled."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base.observation import Observation, check_noise
from posterior_jax.base.operator import Operator


def check_observation(observation: Observation) -> None:
  """Refuses an observation that no sampler can use, in one sentence.

  Values are checked on concrete arrays only.

  Args:
    observation: y [N, h, w, C], its operator and noise.

  Raises:
    TypeError: if there is no `Observation`, the operator is not an `Operator`
      or y is no array of floating point.
    ValueError: for a measurement of the wrong shape, not finite or far beyond
      [-1, 1], or a noise level that is not positive.

  Warns:
    UserWarning: where a measured picture looks as if its pixels were in [0, 1].
  """
  if not isinstance(observation, Observation):
    raise TypeError(
      "observation must be an Observation(y, operator, noise_std), got "
      f"{type(observation).__name__}"
    )
  y, operator, noise_std = (
    observation.y,
    observation.operator,
    observation.noise_std,
  )
  if not hasattr(y, "dtype") or not hasattr(y, "shape"):
    raise TypeError(f"y must be an array, got {type(y).__name__}")
  if not jnp.issubdtype(y.dtype, jnp.floating):
    raise TypeError(
      f"y must be floating point, of pixels in [-1, 1], got dtype {y.dtype}"
    )
  if not isinstance(operator, Operator):
    raise TypeError(
      f"operator must be a posterior_jax Operator, got "
      f"{type(operator).__name__}"
    )
  expected = operator.measurement_shape
  if y.ndim != 4 or y.shape[1:] != expected:
    raise ValueError(
      f"y must have shape [N, {', '.join(map(str, expected))}] for this "
      f"operator, got {y.shape}"
    )
  if y.shape[0] < 1:
    raise ValueError("y must hold at least one observation, N is 0")
  # Values are known only outside of a transformation; shapes always are.
  if not isinstance(noise_std, jax.core.Tracer):
    check_noise(noise_std)
  if not isinstance(y, jax.core.Tracer):
    if not np.isfinite(np.asarray(y)).all():
      raise ValueError("y must be finite everywhere, dropped pixels included")
    if operator.pictorial and not isinstance(noise_std, jax.core.Tracer):
      # Ones made under a transformation would be traced, though known.
      with jax.ensure_compile_time_eval():
        observed = operator.observed
      if not isinstance(observed, jax.core.Tracer):
        kept = np.broadcast_to(np.asarray(observed), expected) > 0
        _check_range(np.asarray(y)[:, kept], float(noise_std))


def _check_range(y: np.ndarray, noise_std: float) -> None:
  """Refuses observed pixels of another unit, of a measured picture."""
  # Gaussian priors and strong noise go beyond 1, and no test image beyond 8.
  reach = np.abs(y).max()
  if reach > 8 * (1 + noise_std):
    raise ValueError(
      f"y must hold pixels in [-1, 1], it reaches {reach:.4g}; levels of 0 to "
      "255 become such by y / 127.5 - 1, and noise_std by / 127.5"
    )
  # Every photograph has something darker than the middle grey, unless noise
  # hides it; a constant one is no photograph.
  low, high = np.quantile(y, (0.01, 0.99))
  unit = low > -3 * noise_std and high < 1 + 3 * noise_std
  if noise_std <= 0.1 and unit and high - low > 0.2 + 6 * noise_std:
    warnings.warn(
      f"y looks as if its pixels were in [0, 1] (from {low:.2f} to "
      f"{high:.2f}), and they must be in [-1, 1]: 2 y - 1, and 2 noise_std",
      stacklevel=4,
    )
