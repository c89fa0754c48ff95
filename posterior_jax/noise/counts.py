"""Photon counts, whose square roots have the same noise at every brightness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import Observation, Operator
from posterior_jax.noise.linked import Linked

# Times the count of a white pixel: brighter ones are of another peak.
_BRIGHTEST = 100.0
# Of a pixel: below it the root's mean is not that formula any more.
_LEAST_RATE = 0.5


def poisson(
  counts: jax.Array, operator: Operator, *, peak: float
) -> Observation:
  """Photon counts of an image: k ~ Poisson(peak (A x0 + 1) / 2).

  The counts' square roots have the same noise at every brightness (Anscombe
  1948): 2 sqrt(k + 3/8) = 2 sqrt(r + 3/8) - 1 / (4 sqrt(r)) + n for a rate r,
  to an order of r^-3/2 in mean and r^-2 in variance. From about 4 counts a
  pixel on it is right to a percent.

  Args:
    counts: k, [N, h, w, c], >= 0, floating point.
    operator: A.
    peak: counts of a white pixel, x0 = 1, > 0.

  Returns:
    The observation of the square roots; its noise is 1. Nonlinear: see
    `operators.nonlinear` for who takes it.

  Raises:
    TypeError: if the operator is none.
    ValueError: for counts of another shape, below 0 or of another peak (100
      times and more), or a peak that is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> given = pj.noise.poisson(jnp.ones((1, 8, 8, 1)), operator, peak=30)
    >>> given.noise_std
    1.0
  """
  fields.positive("peak", peak)
  if not isinstance(operator, Operator):
    raise TypeError(
      f"operator must be an Operator, got {type(operator).__name__}"
    )
  if not isinstance(counts, jax.core.Tracer):
    values = fields.array("counts", counts)
    if not (np.isfinite(values) & (values >= 0)).all():
      raise ValueError("counts must be finite and not negative")
    # Of few photons one count is many times the peak.
    most = np.max(values, initial=0)
    if operator.pictorial and most > _BRIGHTEST * max(peak, 1):
      raise ValueError(
        f"counts must reach about peak = {peak:g}, of a white pixel, they "
        f"reach {most:.3g}"
      )
  measured = operator.measurement_shape
  if np.ndim(counts) != 4 or np.shape(counts)[1:] != measured:
    raise ValueError(
      f"counts must have shape [N, {', '.join(map(str, measured))}], got "
      f"{list(np.shape(counts))}"
    )
  y = 2 * jnp.sqrt(jnp.asarray(counts, jnp.float32) + 0.375)
  link = _Anscombe(jnp.asarray(peak, jnp.float32))
  return Observation(y, Linked(operator, link), 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Anscombe:
  """Mean square root of counts; a line below a rate of a half."""

  peak: jax.Array

  def __call__(self, u: jax.Array) -> jax.Array:
    rate = self.peak * (u + 1) / 2

    def root(rate: jax.Array) -> jax.Array:
      return 2 * jnp.sqrt(rate + 0.375) - 0.25 / jnp.sqrt(rate)

    # A draw may go below black, where there is no root: on along the tangent.
    least = jnp.asarray(_LEAST_RATE, rate.dtype)
    value, slope = jax.value_and_grad(root)(least)
    safe = jnp.maximum(rate, least)
    return jnp.where(rate > least, root(safe), value + slope * (rate - least))
