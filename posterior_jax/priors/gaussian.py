"""A stationary Gaussian image prior: exact denoiser, draws and posterior mean.

On a torus the covariance is diagonal in Fourier space, so everything about
this prior is known in closed form; its spectrum can come from photographs.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import (
  Denoiser,
  Observation,
  SolveInfo,
  check_observation,
)
from posterior_jax.linalg import fourier
from posterior_jax.priors.arguments import check_arguments
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianPrior:
  """x0 ~ N(mean, F^* diag(spectrum) F), channels independent.

  `gaussian_prior` makes one and checks it.

  Attributes:
    spectrum: [H, W] or [H, W, C], variance of every coefficient of the
      orthonormal FFT, > 0 and even; its mean is the variance of a pixel.
    mean: scalar or [C] or [H, W, C].
  """

  spectrum: jax.Array
  mean: jax.Array

  __repr__ = short_repr

  @property
  def denoise(self) -> Denoiser:
    """E[x0 | x] as a function whose arrays are leaves: no retrace for new."""
    return jax.tree_util.Partial(_denoise, self)

  def sample(
    self, key: jax.Array, shape: tuple[int, ...], channels: int
  ) -> jax.Array:
    """Exact draws [*shape, H, W, channels].

    Raises:
      ValueError: if the spectrum or the mean has other channels.
    """
    own = _channels(self)
    if own not in (None, channels):
      raise ValueError(
        f"channels must be {own}, those of the spectrum or the mean; got "
        f"{channels}"
      )
    height, width = self.spectrum.shape[:2]
    white = jax.random.normal(
      key, (*shape, height, width, channels), self.spectrum.dtype
    )
    return self.mean + fourier.apply_transfer(white, jnp.sqrt(self.spectrum))


def gaussian_prior(
  spectrum: jax.Array | np.ndarray, mean: jax.Array | np.ndarray | float = 0.0
) -> GaussianPrior:
  """A checked `GaussianPrior`.

  Args:
    spectrum: [H, W] or [H, W, C], > 0, finite and even.
    mean: scalar, [C] or [H, W, C], finite.

  Returns:
    The prior, float32.

  Raises:
    ValueError: for a wrong shape, or a wrong value where values are known (not
      under a transformation that traces them).

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> prior.sample(jax.random.key(0), (5,), channels=3).shape
    (5, 8, 8, 3)
  """
  if not isinstance(spectrum, jax.Array):
    spectrum = fields.array("spectrum", spectrum)
  if not isinstance(mean, jax.Array):
    mean = fields.array("mean", mean)
  spectrum = jnp.asarray(spectrum, jnp.float32)
  mean = jnp.asarray(mean, jnp.float32)
  fourier.check_spectrum(spectrum)
  if mean.ndim not in (0, 1, 3):
    raise ValueError(
      f"mean must be a scalar, [C] or [H, W, C], got shape {mean.shape}"
    )
  if mean.ndim == 3 and mean.shape[:2] != spectrum.shape[:2]:
    raise ValueError(
      f"mean must have the spectrum's size {spectrum.shape[:2]}, got "
      f"{mean.shape[:2]}"
    )
  if spectrum.ndim == 3 and mean.ndim > 0:
    if mean.shape[-1] not in (1, spectrum.shape[-1]):
      raise ValueError(
        f"mean must have the spectrum's channels, {spectrum.shape[-1]}, got "
        f"{mean.shape[-1]}"
      )
  if not isinstance(mean, jax.core.Tracer) and not np.isfinite(mean).all():
    raise ValueError("mean must be finite everywhere")
  return GaussianPrior(spectrum, mean)


def _channels(prior: GaussianPrior) -> int | None:
  """Of the images, where the spectrum or the mean has several, else None."""
  axes = (*prior.spectrum.shape[2:], *jnp.shape(prior.mean)[-1:])
  return next((n for n in axes if n > 1), None)


def _denoise(prior: GaussianPrior, x: jax.Array, sigma: jax.Array) -> jax.Array:
  """mean + S / (S + sigma^2) (x - mean); x [M, H, W, C], sigma [M]."""
  spectrum = prior.spectrum
  check_arguments(x, sigma, (*spectrum.shape[:2], _channels(prior)))
  spectrum = spectrum[..., None] if spectrum.ndim == 2 else spectrum

  def one(x: jax.Array, sigma: jax.Array) -> jax.Array:
    gain = spectrum / (spectrum + sigma**2)
    return prior.mean + fourier.apply_transfer(x - prior.mean, gain)

  return jax.vmap(one)(x, sigma)


def posterior_mean(
  prior: GaussianPrior,
  observation: Observation,
  *,
  tolerance: float = 1e-6,
  max_iterations: int = 300,
) -> tuple[jax.Array, SolveInfo]:
  """E[x0 | y], the Wiener estimate: [N, H, W, C].

    m + (A^T A / s^2 + C^-1)^-1 A^T (y - A m) / s^2

  Args:
    prior: its spectrum is on the image's grid.
    observation: y [N, h, w, C].
    tolerance: of `Operator.normal_solve`, between 0 and 1.
    max_iterations: likewise, at least 1.

  Returns:
    The mean, and how the linear solve went.

  Raises:
    TypeError: if the operator is not an `Operator`.
    ValueError: for an observation that does not fit its operator, a spectrum
      of another size, or settings of the solver out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> operator = pj.operators.super_resolution((8, 8, 1), factor=2)
    >>> observation = pj.Observation(jnp.ones((1, 4, 4, 1)), operator, 0.1)
    >>> mean, info = pj.priors.posterior_mean(prior, observation)
    >>> mean.shape
    (1, 8, 8, 1)
  """
  check_observation(observation)
  if not 0 < fields.real("tolerance", tolerance) < 1:
    raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}")
  if fields.whole("max_iterations", max_iterations) < 1:
    raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
  operator = observation.operator
  fourier.check_grid(prior.spectrum, operator.image_shape)
  noise = jnp.asarray(observation.noise_std, observation.y.dtype)
  mean = jnp.broadcast_to(prior.mean, operator.image_shape)
  misfit = operator.adjoint(observation.y - operator.forward(mean)) / noise**2
  shift, info = operator.normal_solve(
    misfit,
    precision=1.0 / prior.spectrum,
    noise_std=noise,
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  return mean + shift, info


def power_law_spectrum(
  height: int, width: int, *, pixel_std: float = 0.5, exponent: float = 2.4
) -> jax.Array:
  """A natural-image-like spectrum, proportional to (1 + f^2)^(-exponent / 2).

  Args:
    height: H.
    width: W.
    pixel_std: standard deviation of a pixel, > 0.
    exponent: fall of the power at high frequency; photographs have about 2.

  Returns:
    [H, W] float32, f in cycles per image (of its longer side).

  Raises:
    ValueError: if a side or pixel_std is not positive.

  Example:
    >>> import posterior_jax as pj
    >>> spectrum = pj.priors.power_law_spectrum(16, 16, pixel_std=0.5)
    >>> round(float(spectrum.mean()), 4)  # the variance of a pixel
    0.25
  """
  for name, side in (("height", height), ("width", width)):
    if fields.whole(name, side) < 1:
      raise ValueError(f"{name} must be at least 1, got {side}")
  if not 0 < fields.real("pixel_std", pixel_std) < np.inf:
    raise ValueError(f"pixel_std must be positive and finite, got {pixel_std}")
  f = fourier.radial_frequency(height, width) * max(height, width)
  power = (1 + f**2) ** (-exponent / 2)
  return jnp.asarray(power * pixel_std**2 / power.mean(), jnp.float32)


def estimate_spectrum(
  images: Sequence[np.ndarray], height: int, width: int
) -> np.ndarray:
  """Radial power spectrum of photographs, on any grid.

  Every channel is centred and weighted by a Hann window, its periodogram is
  averaged over rings of radius, and the rings over images. The logarithm is
  interpolated between rings at their mean logarithmic radius, and continued by
  a power law: below the lowest ring that of the first octaves, down to half a
  cycle per image for the mean, and beyond the highest that of the last two.

  Args:
    images: photographs [h, w, C] of any size in [-1, 1]; those for evaluation
      must not be among them.
    height: H of the spectrum's grid.
    width: W.

  Returns:
    [H, W] float64 > 0, the spectrum of `GaussianPrior`.

  Raises:
    ValueError: if there is no image, or one is too small, not finite or
      constant.

  Example:
    >>> import numpy as np
    >>> import posterior_jax as pj
    >>> noise = np.random.default_rng(0).uniform(-1, 1, (256, 256, 3))
    >>> spectrum = pj.priors.estimate_spectrum([noise], 32, 32)
    >>> round(float(spectrum.mean()), 1)  # white: 1/3 at every frequency
    0.3
  """
  if not len(images):
    raise ValueError("images must hold at least one photograph")
  # 23 rings from 1/128 cycle per pixel, the lowest that a window of 256 pixels
  # resolves, to the corner of the plane.
  edges = np.geomspace(1 / 128, 0.5 * np.sqrt(2) + 1e-9, 24)
  power, centre = np.mean([_ring_power(im, edges) for im in images], axis=0)
  rings = np.log(power)
  slope = np.polyfit(centre[:8], rings[:8], 1)[0]
  last = (rings[-1] - rings[-2]) / (centre[-1] - centre[-2])
  radius = fourier.radial_frequency(height, width)
  radius = np.log(np.maximum(radius, 0.5 / max(height, width)))
  value = np.interp(radius, centre, rings)
  value += slope * np.minimum(radius - centre[0], 0)
  value += last * np.maximum(radius - centre[-1], 0)
  return np.exp(value)


def _ring_power(image: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Of each ring: mean power per pixel and mean logarithmic radius, [2, K]."""
  image = fields.array("every image", image).astype(np.float64)
  if image.ndim != 3 or min(image.shape[:2]) < 256:
    raise ValueError(
      f"every image must have shape [h, w, C], h and w at least 256; "
      f"got {image.shape}"
    )
  if not np.isfinite(image).all():
    raise ValueError("every image must be finite")
  if image.max() == image.min():
    raise ValueError("every image must hold something: one is constant")
  height, width, _ = image.shape
  # A photograph is not periodic: without a window its edges would look like a
  # power law of their own.
  window = np.hanning(height)[:, None] * np.hanning(width)  # [h, w]
  weight = window[..., None] / window.sum()
  centred = image - (image * weight).sum((0, 1))
  f = np.fft.fft2(centred * window[..., None], axes=(0, 1))
  power = (np.abs(f) ** 2).mean(-1) / (window**2).sum()  # [h, w]
  radius = fourier.radial_frequency(height, width)
  ring = np.digitize(radius, edges) - 1
  inside = (ring >= 0) & (ring < len(edges) - 1)
  sums = [
    np.bincount(ring[inside], value[inside], len(edges) - 1)
    for value in (power, np.log(np.maximum(radius, edges[0])))
  ]
  return np.stack(sums) / np.bincount(ring[inside], minlength=len(edges) - 1)
