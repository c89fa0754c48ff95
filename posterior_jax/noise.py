"""Noise that is not the same everywhere: observations in which it is.

Samplers know one noise level, of every measured pixel. What has another noise
is turned into such an observation: divided by its standard deviation where that
is known (`per_pixel`), passed through a function that makes it one (`poisson`)
or through one that makes large residuals small (`huber`). The last two are
nonlinear measurements, see `operators.nonlinear`.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import (
  Observation,
  Operator,
  check_observation,
)
from posterior_jax.linalg import fourier, solve
from posterior_jax.operators.composed import Composed
from posterior_jax.operators.smooth_function import WithoutMatrix

# Between two pixels of one observation, squared in a solve of float32: a pixel
# of a thousandth of the others' noise puts the mean off by 0.3 to 3 % of its
# deviation, of a 2000th by 1 to 14 %, of a 10,000th by 40 to 80 %.
_LARGEST_CONTRAST = 1e3
# Times the count of a white pixel: brighter ones are of another peak.
_BRIGHTEST = 100.0
# Of a pixel: below it the root's mean is not that formula any more.
_LEAST_RATE = 0.5


class _OfPixels(Composed):
  """A, and then something of every measured pixel."""

  @property
  def margin(self) -> int:
    """Of A."""
    return self.operator.margin

  def interior(self, x: jax.Array) -> jax.Array:
    """Of A."""
    return self.operator.interior(x)

  @property
  def observed(self) -> jax.Array:
    """Of A."""
    return self.operator.observed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted(_OfPixels, solve.Iterative):
  """W A, W diagonal on the measurement.

  Attributes:
    operator: A, linear.
    weight: diagonal of W, [..., h, w, c], leading axes as those of the images.
  """

  weight: jax.Array

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


class Link(Protocol):
  """A smooth function of every measured pixel; a pytree."""

  def __call__(self, u: jax.Array) -> jax.Array:
    """Of pixels u, [..., h, w, c]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linked(_OfPixels, WithoutMatrix):
  """g(A x), g a function of every measured pixel.

  Attributes:
    operator: A.
    link: g.
  """

  link: Link

  def forward(self, x: jax.Array) -> jax.Array:
    """g(A x)."""
    return self.link(self.operator.forward(x))

  def tangent(self, x: jax.Array) -> Weighted:
    """g'(A x) A, A at x."""
    u = self.operator.forward(x)
    _, slope = jax.jvp(self.link, (u,), (jnp.ones_like(u),))
    return Weighted(self.operator.tangent(x), slope)


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


def huber(
  y: jax.Array, operator: Operator, noise_std: float, *, threshold: float = 2.0
) -> Observation:
  """An observation of which some pixels are wrong by more than noise.

  Residuals r of more than some noise levels count by their size and not by its
  square, in the smooth form of Huber's loss (Charbonnier et al. 1997):

    t^2 (sqrt(1 + (r / t)^2) - 1),  t = threshold noise_std

  Args:
    y: [N, h, w, c], floating point, of images with pixels in [-1, 1].
    operator: A.
    noise_std: of the pixels that are right, > 0.
    threshold: in noise levels, > 0.

  Returns:
    The observation 0 = h(A x0 - y) + n, half the square of h being that loss.
    Nonlinear: see `operators.nonlinear` for who takes it.

  Raises:
    TypeError: for a y or an operator that is none.
    ValueError: for a noise level or threshold that is not positive, or a y that
      no sampler can use (`Observation`).

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> given = pj.noise.huber(jnp.ones((1, 8, 8, 1)), operator, 0.05)
    >>> x = jnp.zeros((1, 8, 8, 1))
    >>> round(float(given.operator.forward(x).max()), 1)  # 1 is 20 noise levels
    -0.4
  """
  fields.positive("noise_std", noise_std)
  fields.positive("threshold", threshold)
  # What `run` sees is 0 everywhere.
  check_observation(Observation(y, operator, noise_std))
  y = jnp.asarray(y, jnp.float32)
  link = _Huber(y, jnp.asarray(threshold * noise_std, jnp.float32))
  return Observation(jnp.zeros_like(y), Linked(operator, link), noise_std)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Huber:
  """Signed root of twice the loss of u - y."""

  y: jax.Array
  scale: jax.Array

  def __call__(self, u: jax.Array) -> jax.Array:
    r = (u - self.y) / self.scale
    # 2 (sqrt(1 + r^2) - 1) = 2 r^2 / (1 + sqrt(1 + r^2)): no cancellation, and
    # smooth in r at 0.
    return self.scale * r * jnp.sqrt(2 / (1 + jnp.sqrt(1 + r**2)))
