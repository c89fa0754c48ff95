"""FLIP: how much of a difference is seen when two images alternate on a screen.

Andersson et al. 2020, "FLIP: A Difference Evaluator for Alternating Images",
HPG, for images of low dynamic range, with the constants of the authors'
program, version 1.7, whose values these are but for rounding (below 2 pixels
per degree that program's weights underflow); no weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import fields
from posterior_jax.metrics import colour_spaces
from posterior_jax.metrics.colour_spaces import OPPONENT
from posterior_jax.metrics.image import (
  OF_LEVELS,
  Range,
  check_colours,
  check_unit,
  ends,
  matching_images,
  unit,
)

# The paper's: 3840 pixels on 0.7 m, seen from 0.7 m.
PIXELS_PER_DEGREE = 0.7 * 3840 / 0.7 * math.pi / 180
# A degree of fewer pixels is no screen; filters are as long as 0.27 degrees.
_LEAST, _MOST = 1.0, 1000.0

# Contrast sensitivity, a sum of a sqrt(pi / b) exp(-(pi degrees)^2 / b): of
# Y, Cx and, the last two, Cz.
_WIDTHS = np.array([0.0047, 0.0053, 0.04, 0.025])  # b
_WEIGHTS = np.array([1.0, 1.0, 34.1, 13.5])  # a
# Of the edge and the point detector, peak to trough: two standard deviations.
_FEATURE_WIDTH = 0.082  # degrees
# HyAB of the farthest colours, sRGB's green and blue.
_FARTHEST = 203.30165461087742
# q_c, q_f; p_c of the largest colour error is mapped to p_t.
_COLOUR_POWER, _FEATURE_POWER = 0.7, 0.5
_KNEE, _KNEE_ERROR = 0.4, 0.95


def flip(
  x: jax.Array,
  truth: jax.Array,
  *,
  pixels_per_degree: float = PIXELS_PER_DEGREE,
  data_range: Range = (-1.0, 1.0),
) -> jax.Array:
  """Mean of `flip_map` over the pixels: 0 if equal, at most 1.

  Args:
    x: [..., H, W, 3], sRGB.
    truth: the same shape or one that broadcasts to it.
    pixels_per_degree: of the viewer's visual angle, in [1, 1000]: distance
      times pixels per length of the screen times pi / 180.
    data_range: (low, high), the pixels of black and of white.

  Returns:
    [...], one per image.

  Raises:
    ValueError: as `flip_map`.
    TypeError: if the images are not floating point.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> black = -jnp.ones((8, 8, 3))
    >>> round(float(pj.metrics.flip(-black, black)), 4)
    0.9674
  """
  errors = flip_map(
    x, truth, pixels_per_degree=pixels_per_degree, data_range=data_range
  )
  return jnp.mean(errors, axis=(-2, -1))


def flip_map(
  x: jax.Array,
  truth: jax.Array,
  *,
  pixels_per_degree: float = PIXELS_PER_DEGREE,
  data_range: Range = (-1.0, 1.0),
) -> jax.Array:
  """FLIP of every pixel, c^(1 - f): 0 if nothing differs, at most 1.

  c is the difference of colours in Hunt-adjusted CIELAB (HyAB), after the
  contrast sensitivity of the eye has blurred them; f of edges and points. Both
  see as far as 0.14 degrees, beyond the border its nearest pixel. Exchanging
  the images changes nothing.

  The gradient is 0 where nothing differs and grows without bound where almost
  nothing does, as the powers q_c = 0.7 and q_f = 0.5 of differences do.

  Args:
    x: [..., H, W, 3], sRGB, clipped to `data_range`.
    truth: the same shape or one that broadcasts to it.
    pixels_per_degree: of the viewer's visual angle, in [1, 1000]: distance
      times pixels per length of the screen times pi / 180.
    data_range: (low, high), the pixels of black and of white.

  Returns:
    [..., H, W], float32, or float64 if an image is.

  Raises:
    ValueError: if the images do not match, are not of 3 channels or have no
      pixel, if the truth lies far outside of data_range or x holds levels
      above it, or for another pixels_per_degree or data_range than these.
    TypeError: if they are not floating point.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> black = -jnp.ones((8, 8, 3))
    >>> seen = pj.metrics.flip_map(black.at[0, 0].set(1), black)
    >>> seen.shape, bool(seen[0, 0] > seen[7, 7])
    ((8, 8), True)
  """
  x, truth = matching_images(x, truth)
  check_colours(x, "flip", least=1)
  data_range = ends(data_range)
  check_unit(x, truth, data_range, OF_LEVELS)
  degree = fields.real("pixels_per_degree", pixels_per_degree)
  if not _LEAST <= degree <= _MOST:
    raise ValueError(
      f"pixels_per_degree must lie in [{_LEAST:g}, {_MOST:g}], got "
      f"{pixels_per_degree}"
    )
  return _errors(x, truth, degree, data_range)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _errors(
  x: jax.Array, truth: jax.Array, degree: float, data_range: Range
) -> jax.Array:
  """Of images [..., H, W, 3], in pixels per degree: [..., H, W]."""
  # Both as one batch: equal images then differ by nothing, not by a rounding.
  size, images = x.shape[-3:], math.prod(x.shape[:-3])
  both = jnp.concatenate([a.reshape(-1, *size) for a in (x, truth)])
  both = jnp.moveaxis(colour_spaces.linear(unit(both, data_range)), -1, -3)
  both = colour_spaces.mixed(OPPONENT, both)  # Y, X - Y, Y - Z: [M, 3, H, W]
  colours, features = _colours(both, degree), _features(both[:, 0], degree)

  def difference(found: jax.Array) -> jax.Array:
    a, b = (
      f.reshape(*image.shape[:-3], *found.shape[1:])
      for f, image in zip((found[:images], found[images:]), (x, truth))
    )
    return a - b

  colour = _colour_error(difference(colours))
  # Norms of features lie in [0, sqrt(2)].
  feature = jnp.max(jnp.abs(difference(features)), axis=-3) / math.sqrt(2)
  return _power(colour, 1 - _power(feature, _FEATURE_POWER))


def _colours(image: jax.Array, degree: float) -> jax.Array:
  """Y, X - Y, Y - Z as the eye blurs them, in Hunt's L*, a*, b*."""
  kernels, shares = _contrast_kernels(degree)
  reach = kernels.shape[1] // 2
  planes = image[..., [0, 1, 2, 2], :, :]
  for axis in (-2, -1):
    planes = _bordered(planes, reach, reach, axis)
    planes = _correlated(planes, kernels, axis)
  y, cx, wide, narrow = jnp.moveaxis(planes, -3, 0)
  blurred = jnp.stack([y, cx, shares[0] * wide + shares[1] * narrow], axis=-3)
  # What no screen shows is clipped.
  return colour_spaces.hunt(
    jnp.clip(colour_spaces.mixed(np.linalg.inv(OPPONENT), blurred), 0.0, 1.0)
  )


def _colour_error(difference: jax.Array) -> jax.Array:
  """Of differences of Hunt's L*, a*, b*: [..., 3, H, W] -> [..., H, W]."""
  most = _FARTHEST**_COLOUR_POWER
  knee = _KNEE * most
  light, a, b = jnp.moveaxis(difference, -3, 0)
  hyab = jnp.abs(light) + _power(a * a + b * b, 0.5)
  error = _power(hyab, _COLOUR_POWER)
  rest = (error - knee) / (most - knee)
  return jnp.where(
    error < knee,
    error * (_KNEE_ERROR / knee),
    _KNEE_ERROR + (1 - _KNEE_ERROR) * rest,
  )


def _features(y: jax.Array, degree: float) -> jax.Array:
  """Lengths of edges and of points: Y [M, H, W] -> [M, 2, H, W].

  A detector's weights sum to 0, a point's first moments too. Summed by parts
  they weigh differences of pixels, which in a flat region are 0 to the last
  bit: the root of a rounding would be seen, and its slope more so.
  """
  blur, edge, point = _feature_kernels(degree)
  smooth, first, second = _differences(y, len(blur), -1)
  planes = jnp.stack([smooth, first, second], axis=-3)
  planes = _correlated(planes, np.stack([blur, edge, point]), -1)
  smooth, across, bent = jnp.moveaxis(planes, -3, 0)
  _, first, second = _differences(smooth, len(blur), -2)
  across, bent = (_differences(a, len(blur), -2)[0] for a in (across, bent))
  planes = jnp.stack([across, bent, first, second], axis=-3)
  planes = _correlated(planes, np.stack([blur, blur, edge, point]), -2)
  along_x, along_y = planes[..., :2, :, :], planes[..., 2:, :, :]
  return _power(along_x**2 + along_y**2, 0.5)


def _differences(
  image: jax.Array, taps: int, axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """An image, its first and its second differences, each taps - 1 longer."""
  wide = _bordered(image, taps // 2, taps // 2 + 2, axis)
  first = jnp.diff(wide, axis=axis)
  second = jnp.diff(first, axis=axis)
  length = image.shape[axis] + taps - 1
  wide, first, second = (
    lax.slice_in_dim(a, 0, length, axis=axis) for a in (wide, first, second)
  )
  return wide, first, second


def _bordered(
  image: jax.Array, before: int, after: int, axis: int
) -> jax.Array:
  """With copies of its first and its last pixel along an axis."""
  widths = [(0, 0)] * image.ndim
  widths[axis] = (before, after)
  return jnp.pad(image, widths, mode="edge")


def _correlated(x: jax.Array, kernels: np.ndarray, axis: int) -> jax.Array:
  """Every plane with its kernel: [..., C, H, W] by [C, taps], no border."""
  weights = jnp.asarray(kernels.T[:, :, None, None], x.dtype)
  size = x.shape[axis] - kernels.shape[1] + 1

  def term(i: int | jax.Array) -> jax.Array:
    return weights[i] * lax.dynamic_slice_in_dim(x, i, size, x.ndim + axis)

  # A loop: on a CPU convolutions of single planes take many times as long, and
  # so does the gradient of a sum that is written out.
  return lax.fori_loop(
    1, len(weights), lambda i, total: total + term(i), term(0)
  )


def _contrast_kernels(degree: float) -> tuple[np.ndarray, np.ndarray]:
  """By plane [4, taps], each of sum 1, and the shares of Cz's two planes."""
  # Three standard deviations of the widest.
  reach = math.ceil(3 * math.sqrt(_WIDTHS.max() / 2) / math.pi * degree)
  offset = np.arange(-reach, reach + 1) / degree
  kernels = np.exp(-((math.pi * offset) ** 2) / _WIDTHS[:, None])
  sums = kernels.sum(axis=1)
  shares = (_WEIGHTS * np.sqrt(math.pi / _WIDTHS) * sums**2)[2:]
  return kernels / sums[:, None], shares / shares.sum()


def _feature_kernels(
  degree: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of pixels, first differences and second ones: [taps] each.

  Detectors are -t exp(-t^2 / 2) and (t^2 - 1) exp(-t^2 / 2), t in standard
  deviations, their positive weights of sum 1, their negative ones of -1.
  """
  std = 0.5 * _FEATURE_WIDTH * degree
  reach = math.ceil(3 * std)
  t = np.arange(-reach, reach + 1) / std
  blur = np.exp(-(t**2) / 2)
  edge, point = (
    np.where(w > 0, w / w[w > 0].sum(), w / -w[w < 0].sum())
    for w in (-t * blur, (t**2 - 1) * blur)
  )
  return blur / blur.sum(), np.cumsum(edge), np.cumsum(np.cumsum(point))


def _power(x: jax.Array, exponent: float | jax.Array) -> jax.Array:
  """x^exponent of x >= 0, its gradient 0 at 0 instead of infinite."""
  none = x <= 0  # NaN is not
  return jnp.where(none, 0, jnp.where(none, 1, x) ** exponent)
