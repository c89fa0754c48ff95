"""Blur of a scene larger than the picture: no border is assumed.

What a camera blurs goes on behind the frame, so a photograph's outermost pixels
hold light from beyond it. A mirrored or circular border would have to explain
that light by what lies inside, and draws dark lines there. Here the unseen
margin is part of the unknown image: y = M K x, K the blur of the whole scene on
a torus and M the cut to the picture, where K never wraps around.
"""

import dataclasses

import jax
import jax.numpy as jnp

from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import fourier, solve
from posterior_jax.linalg.svd import Svd
from posterior_jax.operators.shapes import widened


class Correlation(Operator):
  """Correlation with a kernel, whatever is assumed of the border."""

  kernel: jax.Array  # [k, k], k odd


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SceneBlur(Correlation):
  """`y[i] = sum_j kernel[j] x[i + j]`; made by `blur(boundary="valid")`.

  Attributes:
    kernel: [k, k], k odd; correlated as it is, not flipped.
    image_shape: (H, W, C) of the scene, k // 2 larger than the picture at every
      side.
  """

  kernel: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )

  @property
  def margin(self) -> int:
    """k // 2."""
    return self.kernel.shape[0] // 2

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(H - k + 1, W - k + 1, C)."""
    height, width, channels = self.image_shape
    return (height - 2 * self.margin, width - 2 * self.margin, channels)

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

  def _framed(self, y: jax.Array) -> jax.Array:
    """Zeros around the picture: the transpose of `interior`."""
    border = ((self.margin, self.margin),) * 2
    return jnp.pad(y, ((0, 0),) * (y.ndim - 3) + border + ((0, 0),))
