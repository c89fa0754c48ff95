"""A width that the measurement itself may widen: adaptive inflation.

Where a prior is right, the misfit r = y - A c of a prediction c is as large as
its width C and the noise s say: E |r|^2 = tr(A C A^T) + m s^2. A network that
is surer than it should be shows in a larger misfit, and a width that stays
small would keep the measurement from putting it right. Ensemble filters widen
theirs by the factor that balances the two sides (Wang & Bishop 2003; Anderson
2007); this is that factor, where the difference is no accident. It cannot tell
a prior that is too sure from noise that is stronger than assumed.
"""

import jax
import jax.numpy as jnp

from posterior_jax.base import Observation
from posterior_jax.linalg import fourier, reduce

_ACCIDENT = 2.0  # standard deviations of |r|^2 that are left to chance


def inflated(
  key: jax.Array,
  observation: Observation,
  centre: jax.Array,
  variance: jax.Array,
  largest: float,
) -> jax.Array:
  """The width under which the misfit of a prediction is no surprise.

    variance * a,  a = 1 + d / tr(A C A^T),  d = |y - A c|^2 - E |y - A c|^2

  d is moved towards 0 by two standard deviations of |r|^2, so that a right
  width stays as it is in all but a few cases of a hundred, and a is kept
  within [1 / largest, largest]. The trace takes `gram_gain` for the diagonal of
  A^T A, which it is but for mirrored borders; the variance of |r|^2 is
  2 tr((A C A^T + s^2)^2) by one white probe of the measurement.

  Args:
    key: of the probe.
    observation: y, A and s.
    centre: c, [B, N, H, W, C].
    variance: Fourier diagonal of C, [H, W] or [..., H, W, C], > 0.
    largest: of the factor, >= 1.

  Returns:
    The width of every image, [B, N, H, W, 1] or [B, N, H, W, C].
  """
  operator, noise = observation.operator, observation.noise_std**2
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  misfit = observed * (observation.y - operator.forward(centre))
  probe = observed * jax.random.normal(key, misfit.shape, misfit.dtype)
  spread = fourier.apply_transfer(operator.adjoint(probe), variance)
  spread = observed * (operator.forward(spread) + noise * probe)
  chance = _ACCIDENT * jnp.sqrt(2 * reduce.total(spread**2))

  grid = fourier.on_grid(variance)
  gain = jnp.broadcast_to(operator.gram_gain, centre.shape[-3:-1])[..., None]
  trace = reduce.total(gain * grid) * (centre.shape[-1] // grid.shape[-1])
  surprise = reduce.total(misfit**2) - trace - jnp.sum(observed) * noise
  excess = jnp.sign(surprise) * jnp.maximum(jnp.abs(surprise) - chance, 0)
  return grid * jnp.clip(1 + excess / trace, 1 / largest, largest)
