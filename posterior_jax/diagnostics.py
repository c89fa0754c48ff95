"""What a step says of its image: the residual by frequency."""

import jax
import jax.numpy as jnp

from posterior_jax.base import Observation, misfit
from posterior_jax.linalg import fourier

BANDS = 8  # of a step's report: enough to see an octave, few enough to read


def band_energy(
  observation: Observation, x: jax.Array, *, bands: int = BANDS
) -> jax.Array | None:
  """The normalised residual of every radial band of the measurement.

  The power of F (y - A x) in a band over that of the noise, F the orthonormal
  FFT: near 1 in every band for the truth. The bands' mean, weighted by how
  many frequencies they hold, is `base.normalised_residual`. A band that a
  small measurement leaves empty holds 0.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].
    bands: K, of equal width up to Nyquist.

  Returns:
    [..., N, K] float32, low frequencies first; None for a measurement that is
    no picture, as that of `Dense`.
  """
  operator = observation.operator
  if not operator.gridded:
    return None
  height, width, channels = operator.measurement_shape
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  r = misfit(observation, x)  # [..., N, h, w, C]
  power = jnp.abs(jnp.fft.fft2(r, axes=(-3, -2), norm="ortho")) ** 2
  index = fourier.radial_bands(height, width, bands)
  member = jax.nn.one_hot(index, bands, dtype=power.dtype)  # [h, w, K]
  # Full precision: a band of few frequencies stands beside one of thousands.
  energy = jnp.einsum(
    "...hwc,hwk->...k", power, member, precision=jax.lax.Precision.HIGHEST
  )
  noise = observation.noise_std**2 * jnp.mean(observed) * channels
  return energy / (noise * jnp.maximum(jnp.sum(member, axis=(0, 1)), 1))
