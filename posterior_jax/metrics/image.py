"""How good a restoration is; calibration of samples in `posterior`.

Images are [..., H, W, C] with pixels in [-1, 1]. Picture metrics follow the
field's convention: clipped, mapped to [0, 1], in floating point and per image,
so an average over images is one of decibels.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import fields
from posterior_jax.base import (
  Observation,
  check_observation,
  normalised_residual,
)

Range = tuple[float, float]

# Of `check_unit`, where a metric has that argument.
OF_LEVELS = "say data_range=(0, 255), or (0, 65535), for levels"
_MOST_LEVEL = 65535  # of 16 bits
_IMAGE = (-3, -2, -1)
# Of Wang et al. 2004 and scikit-image's gaussian_weights: 11 taps, cut at 3.5
# standard deviations; K1 = 0.01 and K2 = 0.03 on the range [0, 1].
_SSIM_STD, _SSIM_RADIUS = 1.5, 5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def matching_images(
  x: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Both images as arrays of the wider of their types, float32 or float64.

  Args:
    x: [..., H, W, C].
    truth: the same shape or one that broadcasts to it.

  Returns:
    x and truth.

  Raises:
    ValueError: if sizes differ or leading axes do not broadcast.
    TypeError: if one is not floating point.
  """
  x, truth = jnp.asarray(x), jnp.asarray(truth)
  lead = zip(x.shape[-4::-1], truth.shape[-4::-1])
  fits = min(x.ndim, truth.ndim) >= 3 and all(
    a == b or 1 in (a, b) for a, b in lead
  )
  if not fits or x.shape[-3:] != truth.shape[-3:]:
    raise ValueError(
      "x and truth must be images [..., H, W, C] of one size, leading axes "
      "that broadcast, got "
      f"{x.shape} and {truth.shape}"
    )
  for name, image in (("x", x), ("truth", truth)):
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise TypeError(f"{name} must be floating point, got dtype {image.dtype}")
  wide = jnp.float64 in (x.dtype, truth.dtype)
  dtype = jnp.float64 if wide else jnp.float32
  return x.astype(dtype), truth.astype(dtype)


def check_colours(x: jax.Array, metric: str, least: int) -> None:
  """Refuses images that a metric of colour images cannot compare.

  Args:
    x: [..., H, W, C].
    metric: its name, for the message.
    least: pixels that a side needs.

  Raises:
    ValueError: if they are smaller or not of 3 channels.
  """
  if x.shape[-1] != 3:
    raise ValueError(
      f"x and truth must have 3 channels for {metric}, got {x.shape[-1]}"
    )
  if min(x.shape[-3:-1]) < least:
    raise ValueError(
      f"images must be at least {least} pixels wide and high for {metric}, got "
      f"{x.shape[-3:-1]}"
    )


def psnr(
  x: jax.Array, truth: jax.Array, *, data_range: Range = (-1.0, 1.0)
) -> jax.Array:
  """Peak signal-to-noise ratio of images clipped to their range, in dB.

    20 log10((high - low) / sqrt(mean((x - truth)^2)))

  Infinite if equal, once both are clipped.

  Args:
    x: [..., H, W, C].
    truth: the same shape or one that broadcasts to it.
    data_range: (low, high), the pixels of black and of white.

  Returns:
    [...], one per image.

  Raises:
    ValueError: if the images do not match, if the truth lies far outside of
      data_range, or x holds levels above it.
    TypeError: if they are not floating point.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> truth = jnp.zeros((8, 8, 3))
    >>> round(float(pj.metrics.psnr(truth + 0.2, truth)), 2)  # 0.1 on [0, 1]
    20.0
  """
  x, truth = matching_images(x, truth)
  data_range = ends(data_range)
  check_unit(x, truth, data_range, OF_LEVELS)
  error = unit(x, data_range) - unit(truth, data_range)
  return -10.0 * jnp.log10(jnp.mean(error**2, axis=_IMAGE))


def ssim(
  x: jax.Array, truth: jax.Array, *, data_range: Range = (-1.0, 1.0)
) -> jax.Array:
  """Structural similarity on [0, 1] (Wang et al. 2004), at most 1.

  Gaussian window of 11 taps and standard deviation 1.5, K1 = 0.01, K2 = 0.03,
  population covariances, averaged over the pixels whose window lies within the
  image and over the channels.

  Args:
    x: [..., H, W, C], H and W at least 11.
    truth: the same shape or one that broadcasts to it.
    data_range: (low, high), the pixels of black and of white.

  Returns:
    [...], one per image.

  Raises:
    ValueError: if the images do not match or are smaller than the window,
      if the truth lies far outside of data_range, or x holds levels above it.
    TypeError: if they are not floating point.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> x = jax.random.uniform(jax.random.key(0), (16, 16, 3), minval=-1)
    >>> round(float(pj.metrics.ssim(x, x)), 4)
    1.0
  """
  x, truth = matching_images(x, truth)
  width = 2 * _SSIM_RADIUS + 1
  if min(x.shape[-3:-1]) < width:
    raise ValueError(
      f"images must be at least {width} pixels wide and high for ssim, got "
      f"{x.shape[-3:-1]}"
    )
  data_range = ends(data_range)
  check_unit(x, truth, data_range, OF_LEVELS)
  return _similarity(x, truth, data_range)


@functools.partial(jax.jit, static_argnums=2)
def _similarity(x: jax.Array, truth: jax.Array, data_range: Range) -> jax.Array:
  """Of images [..., H, W, C], one program: eagerly there are 40."""
  # Centred at grey: variances do not change and lose less to cancellation.
  a, b = (unit(image, data_range) - 0.5 for image in (x, truth))
  mean_a, mean_b = _window(a), _window(b)
  var_a = _window(a * a) - mean_a**2
  var_b = _window(b * b) - mean_b**2
  covariance = _window(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
  luminance = (2 * mean_a * mean_b + _SSIM_C1) / (
    mean_a**2 + mean_b**2 + _SSIM_C1
  )
  structure = (2 * covariance + _SSIM_C2) / (var_a + var_b + _SSIM_C2)
  return jnp.mean(luminance * structure, axis=_IMAGE)


def measurement_residual(x: jax.Array, observation: Observation) -> jax.Array:
  """||y - A x||^2 / (m noise_std^2) over the m entries that hold data.

  Near 1 for the truth; inpainting counts observed pixels only, since what
  stands at dropped ones is not data.

  Args:
    x: [..., N, H, W, C].
    observation: y [N, h, w, C].

  Returns:
    [..., N].

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.random_inpainting((8, 8, 1), fraction=0.5)
    >>> observation = pj.Observation(jnp.ones((1, 8, 8, 1)), operator, 0.5)
    >>> pj.metrics.measurement_residual(jnp.zeros((1, 8, 8, 1)), observation)
    Array([4.], dtype=float32)
  """
  check_observation(observation)
  return normalised_residual(observation, x)


def unit(x: jax.Array, data_range: Range) -> jax.Array:
  """[low, high] -> [0, 1], clipped."""
  low, high = data_range
  scale = 1 / (high - low)
  return jnp.clip(x * scale - low * scale, 0.0, 1.0)


def ends(data_range: Any) -> Range:
  """`data_range` as two of Python's numbers, or ValueError."""
  if not (isinstance(data_range, tuple | list) and len(data_range) == 2):
    raise ValueError(f"data_range must be (low, high), got {data_range!r}")
  low, high = (fields.real("data_range", _known(each)) for each in data_range)
  if not (math.isfinite(low) and low < high < math.inf):
    raise ValueError(
      f"data_range must be (low, high), finite and ascending, got {data_range}"
    )
  return low, high


def _known(value: Any) -> Any:
  """An array of one known number as that number; all else as it is."""
  traced = isinstance(value, jax.core.Tracer)
  one = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
  return value.item() if one and not traced else value


def check_unit(
  x: jax.Array, truth: jax.Array, data_range: Range, remedy: str
) -> None:
  """Refuses pixels that are known to be of another unit than was said.

  Args:
    x: an image. One that a sampler drove far away is clipped and scored: it is
      refused only if all of it lies in 0 to 65535, as levels do.
    truth: which nothing drives away.
    data_range: (low, high).
    remedy: what to do with levels, for the message.

  Raises:
    ValueError: if the truth lies far outside of data_range, or x far above.
  """
  low, high = data_range
  for name, image in (("x", x), ("truth", truth)):
    if isinstance(image, jax.core.Tracer) or not image.size:
      continue
    # Within a trace, of what is known there.
    with jax.ensure_compile_time_eval():
      least, most = float(image.min()), float(image.max())
    middle = (low + high) / 2
    reach = max(most - middle, middle - least) / (high - low)
    # Draws of a Gaussian prior go beyond white; another unit goes far beyond.
    levels = 0 <= least and most <= _MOST_LEVEL
    if reach > 4 and (name == "truth" or levels):
      raise ValueError(
        f"{name} must hold pixels in [{low:g}, {high:g}], they lie from "
        f"{least:.4g} to {most:.4g}; {remedy}"
      )


def _window(x: jax.Array) -> jax.Array:
  """SSIM's Gaussian mean over the valid region, [..., H-10, W-10, C]."""
  offset = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
  weight = np.exp(-0.5 * (offset / _SSIM_STD) ** 2)
  weight = weight / weight.sum()
  for axis in (-3, -2):
    size = x.shape[axis] - 2 * _SSIM_RADIUS
    terms = [
      float(w) * lax.slice_in_dim(x, i, i + size, axis=axis)
      for i, w in enumerate(weight)
    ]
    x = functools.reduce(jnp.add, terms)
  return x
