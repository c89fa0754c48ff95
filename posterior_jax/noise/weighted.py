"""A noise level of every pixel: the measurement is divided by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import Observation, Operator, check_observation
from posterior_jax.linalg import fourier, solve
from posterior_jax.noise.measured import OfPixels
from posterior_jax.short_repr import short_repr

# Between two pixels of one observation, squared in a solve of float32: a pixel
# of a thousandth of the others' noise puts the mean off by 0.3 to 3 % of its
# deviation, of a 2000th by 1 to 14 %, of a 10,000th by 40 to 80 %.
_LARGEST_CONTRAST = 1e3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted(OfPixels, solve.Iterative):
  """W A, W diagonal on the measurement.

  Attributes:
    operator: A, linear.
    weight: diagonal of W, [..., h, w, c], leading axes as those of the images.
  """

  weight: jax.Array

  __repr__ = short_repr

  @property
  def gridded(self) -> bool:
    """False: its spectrum is not that of the measured image."""
    return False

  @property
  def gram_gain(self) -> jax.Array:
    """Of A, times the mean square weight of every image's observed pixels."""
    seen = jnp.broadcast_to(self.observed, self.measurement_shape)
    # Alike in all pixels, a channel of the measurement is one of the image.
    axes = (-3, -2) if self.operator.even else (-3, -2, -1)
    total = jnp.sum(seen * self.weight**2, axis=axes, keepdims=True)
    mean = total / jnp.sum(seen, axis=axes, keepdims=True)
    return mean * fourier.on_grid(self.operator.gram_gain)

  @property
  def gain_is_exact(self) -> bool:
    """Where no pixel of A is measured better than another."""
    return self.operator.even

  def forward(self, x: jax.Array) -> jax.Array:
    """W A x."""
    return self.weight * self.operator.forward(x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """A^T W y."""
    return self.operator.adjoint(self.weight * y)


def per_pixel(
  y: jax.Array, operator: Operator, noise_std: jax.Array | np.ndarray
) -> Observation:
  """An observation whose noise differs from pixel to pixel.

  It is divided by its noise: W y = W A x0 + s n with W = s / noise_std and one
  s, the quadratic mean of the observed pixels' weights being 1.

  Args:
    y: [N, h, w, c], floating point, of images with pixels in [-1, 1].
    operator: A, linear.
    noise_std: > 0, finite, of a shape that broadcasts to that of y: [h, w, 1]
      of every pixel, [N, 1, 1, 1] of every observation; what it says of pixels
      that are not seen is not read.

  Returns:
    The observation of W A, taken by `nfc` without a band and by the baselines
    except `fgps`, which has one, and `ddrm`, which needs singular vectors.

  Raises:
    TypeError: for a y or an operator that is none.
    ValueError: for a noise level that is not positive, does not fit or differs
      by more than 1000 times within an observation, a y that no sampler can use
      (`Observation`), or an operator that is not linear.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> noise_std = jnp.linspace(0.1, 0.2, 8)[:, None, None]  # by row
    >>> given = pj.noise.per_pixel(jnp.zeros((1, 8, 8, 1)), operator, noise_std)
    >>> given.operator.weight.shape
    (1, 8, 8, 1)
  """
  std = fields.array("noise_std", noise_std)
  if std.dtype == bool:
    raise ValueError("noise_std must be an array of numbers, got one of bool")
  std = std.astype(np.float32)
  if not ((std > 0) & (std < np.inf)).all():
    raise ValueError("noise_std must be positive and finite everywhere")
  shape = jnp.shape(y)
  try:
    std = np.broadcast_to(std, shape)
  except ValueError:
    raise ValueError(
      f"noise_std must broadcast to the shape of y, {shape}; got {std.shape}"
    ) from None
  seen = _seen(operator, shape)
  known = std[seen] if seen.any() else std
  # While it is a picture still; by the largest noise, which explains the most.
  check_observation(Observation(y, operator, float(known.max())))
  if not operator.is_linear:
    raise ValueError("operator must be linear for a noise of every pixel")
  _check_contrast(std, seen)
  scale = 1 / np.sqrt(np.mean(1 / known.astype(np.float64) ** 2))
  weight = jnp.asarray(np.where(seen, scale / std, 1), jnp.float32)
  return Observation(weight * y, Weighted(operator, weight), float(scale))


def _seen(operator: Operator, shape: tuple[int, ...]) -> np.ndarray:
  """Which pixels of a measurement hold data, all where a mask is traced."""
  fits = isinstance(operator, Operator) and (
    shape[1:] == operator.measurement_shape
  )
  if not fits:  # `check_observation` says it
    return np.ones(shape, bool)
  # Ones made under a transformation would be traced, though known.
  with jax.ensure_compile_time_eval():
    observed = operator.observed
  if isinstance(observed, jax.core.Tracer):
    return np.ones(shape, bool)
  return np.broadcast_to(np.asarray(observed) > 0, shape)


def _check_contrast(std: np.ndarray, seen: np.ndarray) -> None:
  """Refuses noise levels [N, h, w, c] that one solve cannot weigh."""
  axes = (-3, -2, -1)
  largest = np.max(std, axis=axes, initial=0, where=seen)
  ratio = (largest / np.min(std, axis=axes, initial=np.inf, where=seen)).max()
  # What was written as 1e3 rounds to either side.
  if ratio > _LARGEST_CONTRAST * (1 + 1e-5):
    raise ValueError(
      f"noise_std must not differ by more than {_LARGEST_CONTRAST:.0f} times "
      f"between the pixels of one observation, got {ratio:.3g} times: a solve "
      "in float32 loses the noisier ones"
    )
