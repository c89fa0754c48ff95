"""Blur of a scene larger than the picture: no border is assumed.

What a camera blurs goes on behind the frame, so a photograph's outermost pixels
hold light from beyond it. A mirrored or circular border would have to explain
that light by what lies inside, and draws dark lines there. Here the unseen
margin is part of the unknown image: y = M K x, K the blur of the whole scene on
a torus and M the cut to the picture, where K never wraps around.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import fourier, solve
from posterior_jax.linalg.svd import Svd
from posterior_jax.operators.shapes import widened
from posterior_jax.short_repr import short_repr

UNIT = 8  # of fast sides: what a U-Net of three halvings divides


class Correlation(Operator):
  """Correlation with a kernel, whatever is assumed of the border."""

  kernel: jax.Array  # [k, k], k odd


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SceneBlur(Correlation):
  """`y[i] = sum_j kernel[j] x[i + j]`; made by `blur(boundary="valid")`.

  Attributes:
    kernel: [k, k], k odd; correlated as it is, not flipped.
    image_shape: (H, W, C) of the scene, at least k // 2 larger than the picture
      at every side.
    seen: (h, w), sides of the picture in the middle of the scene.
  """

  kernel: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  seen: tuple[int, int] = dataclasses.field(metadata={"static": True})

  __repr__ = short_repr

  @property
  def margin(self) -> int:
    """Of the side where it is smallest, at least k // 2."""
    return min(
      (n - m) // 2 for n, m in zip(self.image_shape, self.seen, strict=False)
    )

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    return (*self.seen, self.image_shape[2])

  @property
  def pictorial(self) -> bool:
    """True."""
    return True

  @property
  def transfer(self) -> jax.Array:
    """Of K: gain of every Fourier vector of the scene, [H, W] complex."""
    height, width, _ = self.image_shape
    return fourier.kernel_transfer(self.kernel, height, width)

  @property
  def even(self) -> bool:
    """True."""
    return True

  @property
  def gram_gain(self) -> jax.Array:
    """|transfer|^2 times the share of the scene that is seen, [H, W]."""
    (h, w, _), (height, width, _) = self.measurement_shape, self.image_shape
    return jnp.abs(self.transfer) ** 2 * (h * w / (height * width))

  def forward(self, x: jax.Array) -> jax.Array:
    """M K x."""
    x = widened("x", x, self.image_shape)
    return self.interior(fourier.apply_transfer(x, self.transfer))

  def adjoint(self, y: jax.Array) -> jax.Array:
    """K^T M^T y."""
    y = widened("y", y, self.measurement_shape)
    return fourier.apply_transfer(self._framed(y), jnp.conj(self.transfer))

  def svd(self) -> Svd:
    """None that is fast.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      "svd needs boundary='circular', or 'reflect' with a separable kernel: "
      "the blur of a scene has no fast one"
    )

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Conjugate gradients on the blurred margin alone."""
    ones = jnp.ones((*self.measurement_shape[:2], 1), rhs.dtype)
    return solve.masked_convolution(
      self.transfer,
      self._framed(ones),
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )

  def interior(self, x: jax.Array) -> jax.Array:
    """The picture's part of the scene, [..., H, W, C] to [..., h, w, C]."""
    (top, bottom), (left, right) = self._border()
    height, width, _ = self.image_shape
    return x[..., top : height - bottom, left : width - right, :]

  def on_fast_sides(self) -> "SceneBlur":
    """The same picture in a scene whose FFTs are fast.

    Its sides are the smallest multiples of 8 that hold picture and blur and
    have no prime factor above 7. An FFT of 2588 = 4 x 647 takes longer than one
    of 2592, and a network whose sides have a unit would fill them up as well.
    """
    border = 2 * (self.kernel.shape[0] // 2)
    height, width = (
      UNIT * _smooth(-(-(n + border) // UNIT)) for n in self.seen
    )
    return dataclasses.replace(
      self, image_shape=(height, width, self.image_shape[2])
    )

  def _framed(self, y: jax.Array) -> jax.Array:
    """Zeros around the picture: the transpose of `interior`."""
    border = (*self._border(), (0, 0))
    return jnp.pad(y, ((0, 0),) * (y.ndim - 3) + border)

  def _border(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels (above, below), (left, right) of the picture."""
    down, across = (
      n - m for n, m in zip(self.image_shape, self.seen, strict=False)
    )
    return (down // 2, -(-down // 2)), (across // 2, -(-across // 2))


def _smooth(least: int) -> int:
  """The smallest number from `least` on whose prime factors are at most 7."""
  for n in itertools.count(least):
    rest = n
    for prime in (2, 3, 5, 7):
      while rest % prime == 0:
        rest //= prime
    if rest == 1:
      return n
  raise AssertionError  # itertools.count has no end
