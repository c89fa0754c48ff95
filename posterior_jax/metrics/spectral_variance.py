"""Variance of posterior samples in the frequency domain, against the exact one.

Images are [B, ..., H, W, C]. The ratio comes with its Monte Carlo standard
error. Reached as `posterior_jax.metrics`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.linalg import fourier


class VarianceRatio(NamedTuple):
  """Sample variance over exact variance; K radial bands of frequency.

  Attributes:
    total: scalar, 1 for exact samples.
    total_error: its Monte Carlo standard error.
    bands: [K].
    bands_error: [K], their standard errors.
    upper: [K] cycles per pixel, the largest radius in each band.
    coefficients: [K], Fourier coefficients per channel in each band.
  """

  total: jax.Array
  total_error: jax.Array
  bands: jax.Array
  bands_error: jax.Array
  upper: np.ndarray
  coefficients: np.ndarray


def coefficient_variance(samples: jax.Array) -> jax.Array:
  """Variance over samples of every orthonormal Fourier coefficient.

  Of exact samples, an estimate of what `variance_ratio` compares with; of an
  exact covariance S it is diag(F S F^*).

  Args:
    samples: [B, ..., H, W, C], B at least 2.

  Returns:
    [..., H, W, C], divided by B - 1; its mean is the variance of a pixel.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> samples = jax.random.normal(jax.random.key(0), (100, 4, 4, 1))
    >>> pj.metrics.coefficient_variance(samples).shape
    (4, 4, 1)
  """
  return jnp.sum(_power(samples), axis=0) / (samples.shape[0] - 1)


def variance_ratio(
  samples: jax.Array,
  variance: jax.Array,
  *,
  bands: int = 8,
  least: int = 8,
) -> VarianceRatio:
  """Variance of posterior samples over the exact one, in total and by band.

  Each ratio is one of sums over Fourier coefficients, of the unbiased sample
  variances and of the exact ones. The standard error is that of the mean over
  the B samples, so it needs no independence between coefficients; it is
  undefined (NaN) for 2 samples.

  Args:
    samples: [B, ..., H, W, C], independent over B, at least 2.
    variance: exact variance of every coefficient of the orthonormal FFT,
      [H, W] or [..., H, W, C]; `coefficient_variance` of exact samples will do
      where there are many more of them.
    bands: radial bands of equal width up to Nyquist.
    least: a band with fewer coefficients joins the next one outward.

  Returns:
    Ratios and standard errors.

  Raises:
    ValueError: if there are fewer than 2 samples, the sizes differ, or bands
      or least is below 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> samples = 2 * jax.random.normal(jax.random.key(0), (100, 16, 16, 1))
    >>> ratio = pj.metrics.variance_ratio(samples, jnp.ones((16, 16)))
    >>> bool(3.5 < ratio.total < 4.5)  # twice the standard deviation
    True
  """
  if samples.ndim < 4 or samples.shape[0] < 2:
    raise ValueError(
      f"samples must have shape [B, ..., H, W, C] with B at least 2, got "
      f"{samples.shape}"
    )
  if bands < 1 or least < 1:
    raise ValueError(
      f"bands and least must be at least 1, got {bands} and {least}"
    )
  height, width = samples.shape[-3:-1]
  variance = variance[..., None] if variance.ndim == 2 else variance
  _check_variance(variance, samples)
  index = _merged_bands(height, width, bands, least)
  count = int(index.max()) + 1
  total, total_error, in_bands, bands_error = _ratios(
    samples, variance, index, count=count
  )
  radius = fourier.radial_frequency(height, width)
  return VarianceRatio(
    total=total,
    total_error=total_error,
    bands=in_bands,
    bands_error=bands_error,
    upper=np.array([radius[index == k].max() for k in range(count)]),
    coefficients=np.bincount(index.ravel()),
  )


@functools.partial(jax.jit, static_argnames="count")
def _ratios(
  samples: jax.Array, variance: jax.Array, index: jax.Array, *, count: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Total and error, bands [K] and errors; `index` [H, W] is a band, of K."""
  power = _power(samples)
  exact = jnp.broadcast_to(variance, power.shape[1:])
  member = jax.nn.one_hot(index, count, dtype=power.dtype)  # [H, W, K]

  def per_band(a: jax.Array, spec: str) -> jax.Array:
    return jnp.einsum(spec, a, member, precision=lax.Precision.HIGHEST)

  energy = per_band(power, "b...hwc,hwk->bk")  # [B, K]
  # Unbiased: centring by the samples' own mean takes one of B away.
  energy = energy * (samples.shape[0] / (samples.shape[0] - 1))
  norm = per_band(exact, "...hwc,hwk->k")  # [K]
  in_bands, bands_error = _mean_and_error(energy / norm)
  total, total_error = _mean_and_error(jnp.sum(energy, 1) / jnp.sum(norm))
  return total, total_error, in_bands, bands_error


@jax.jit
def _power(samples: jax.Array) -> jax.Array:
  """|F (sample - mean)|^2 with the orthonormal FFT, [B, ..., H, W, C]."""
  centred = samples - jnp.mean(samples, axis=0)
  return jnp.abs(jnp.fft.fft2(centred, axes=(-3, -2), norm="ortho")) ** 2


def _mean_and_error(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean over axis 0 of energies about their own mean, and its error.

  Centring ties the B energies together: their spread falls short by
  (B - 2) / (B - 1) for Gaussian samples, and says nothing for B = 2.
  """
  count = values.shape[0]
  mean = jnp.mean(values, axis=0)
  if count == 2:
    return mean, jnp.full_like(mean, jnp.nan)
  spread = jnp.std(values, axis=0, ddof=1) / count**0.5
  return mean, spread * ((count - 1) / (count - 2)) ** 0.5


def _merged_bands(
  height: int, width: int, count: int, least: int
) -> np.ndarray:
  """`fourier.radial_bands`, those of too few coefficients joined outward."""
  index = fourier.radial_bands(height, width, count)
  sizes = np.bincount(index.ravel(), minlength=count)
  merged, held = np.zeros(count, int), 0
  # Outward: the lowest bands hold few coefficients and most of the power.
  for band in range(1, count):
    held += sizes[band - 1]
    closed = held >= least and sizes[band:].sum() >= least
    merged[band] = merged[band - 1] + closed
    held = 0 if closed else held
  return merged[index]


def _check_variance(variance: jax.Array, samples: jax.Array) -> None:
  size = samples.shape[-3:-1]
  if variance.ndim < 3 or variance.shape[-3:-1] != size:
    raise ValueError(
      f"variance must have the samples' size {size}, got shape {variance.shape}"
    )
  fits = variance.ndim < samples.ndim and all(
    one in (1, many)
    for one, many in zip(variance.shape[::-1], samples.shape[:0:-1])
  )
  if not fits:
    raise ValueError(
      f"variance must have the shape of a sample {samples.shape[1:]} or one "
      f"that broadcasts to it, got {variance.shape}"
    )
