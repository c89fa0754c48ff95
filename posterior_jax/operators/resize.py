"""Super-resolution: antialiased bicubic reduction as two small matrices."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import fields
from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import solve
from posterior_jax.linalg import svd as decompose
from posterior_jax.operators.decomposed import Decomposed
from posterior_jax.operators.shapes import check_batch, check_image_shape
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resize(Operator):
  """y = W_h x W_w^T per channel.

  Attributes:
    rows: W_h, [h, H].
    columns: W_w, [w, W].
    image_shape: (H, W, C).
    margin: pixels of the image beyond every side of the picture.
  """

  rows: jax.Array
  columns: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  margin: int = dataclasses.field(  # type: ignore[assignment]
    default=0, metadata={"static": True}
  )

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    return (self.rows.shape[0], self.columns.shape[0], self.image_shape[2])

  @property
  def pictorial(self) -> bool:
    """True."""
    return True

  @property
  def even(self) -> bool:
    """True."""
    return True

  @property
  def gram_gain(self) -> jax.Array:
    """Product of the two axes' gains, [H, W]; aliases are not coupled."""
    rows, columns = (
      _fourier_diagonal(self.rows),
      _fourier_diagonal(self.columns),
    )
    return rows[:, None] * columns

  def forward(self, x: jax.Array) -> jax.Array:
    """W_h x W_w^T."""
    check_batch("x", x, self.image_shape)
    return decompose.separable(self.rows, self.columns, x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """W_h^T y W_w."""
    check_batch("y", y, self.measurement_shape)
    return decompose.separable(self.rows.T, self.columns.T, y)

  def svd(self) -> decompose.Svd:
    """Kronecker product of the two factors' decompositions."""
    return decompose.separable_svd(self.rows, self.columns)

  def prepared(self) -> Decomposed:
    """With its decomposition."""
    return Decomposed(self, self.svd())

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Closed form for a scalar precision, else conjugate gradients."""
    if jnp.ndim(precision) == 0:
      return solve.closed_form(self.svd(), rhs, precision, noise_std)
    # A^T A once, so that an iteration takes two products instead of four.
    rows = _matmul(self.rows.T, self.rows)  # [H, H]
    columns = _matmul(self.columns.T, self.columns)  # [W, W]
    return solve.normal_equations(
      lambda x: decompose.separable(rows, columns, x),
      self.gram_gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )


def super_resolution(
  image_shape: tuple[int, int, int],
  *,
  factor: int = 4,
  boundary: Literal["reflect", "valid"] = "reflect",
) -> Resize:
  """Reduction by `factor` with the Matlab cubic kernel (a = -1/2).

  The kernel is stretched by the factor (antialiasing), the border is mirrored
  with its edge pixel repeated, and every output's weights sum to 1. This is
  the resizer of the DPS and DAPS benchmarks; `jax.image.resize` agrees with it
  only in the interior.

  Args:
    image_shape: (H, W, C), H and W divisible by the factor; for "valid" that
      of the scene, `cubic_margin(factor)` larger at every side.
    factor: how many times smaller, >= 2.
    boundary: "reflect" mirrors; "valid" assumes nothing: the scene goes on
      beyond the picture, as it does for a camera.

  Raises:
    ValueError: if the picture is not divisible by the factor, or the boundary
      is unknown.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.super_resolution((64, 32, 3))
    >>> operator.forward(jnp.zeros((1, 64, 32, 3))).shape
    (1, 16, 8, 3)
  """
  image_shape = check_image_shape(image_shape)
  if boundary not in ("reflect", "valid"):
    raise ValueError(f'boundary must be "reflect" or "valid", got {boundary!r}')
  factor = fields.whole("factor", factor)
  margin = cubic_margin(factor) if boundary == "valid" else 0
  size = tuple(n - 2 * margin for n in image_shape[:2])
  if factor < 2 or any(n % factor or n < factor for n in size):
    raise ValueError(
      f"factor must be at least 2 and divide the image size {size}, got "
      f"{factor}"
    )
  rows, columns = (
    jnp.asarray(cubic_matrix(n, factor, margin), jnp.float32)
    for n in image_shape[:2]
  )
  return Resize(rows, columns, image_shape, margin)


def cubic_margin(factor: int) -> int:
  """How far the stretched kernel reaches beyond a picture's side, in pixels."""
  return 3 * factor // 2


def cubic_matrix(size: int, factor: int, margin: int = 0) -> np.ndarray:
  """The 1-D antialiased cubic reduction, [(size - 2 margin) // factor, size].

  Float64; beyond `size` it is mirrored, which it never reaches under the
  margin of `cubic_margin`.
  """
  count = (size - 2 * margin) // factor
  centre = (np.arange(count) + 0.5) * factor - 0.5 + margin
  # Support of the stretched kernel: two input pixels per output pixel and side.
  first = np.floor(centre - 2 * factor).astype(int) + 1
  taps = first[:, None] + np.arange(4 * factor)  # [h, 4 factor]
  weights = _cubic((centre[:, None] - taps) / factor)
  weights /= weights.sum(1, keepdims=True)
  # Mirrored with the edge pixel repeated: 0 1 .. n-1 n-1 .. 1 0 and again.
  period = np.concatenate([np.arange(size), np.arange(size)[::-1]])
  matrix = np.zeros((count, size))
  np.add.at(
    matrix, (np.arange(count)[:, None], period[taps % (2 * size)]), weights
  )
  return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic convolution kernel with a = -1/2."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def _fourier_diagonal(matrix: jax.Array) -> jax.Array:
  """|W f|^2 of every orthonormal Fourier vector f: [h, H] -> [H]."""
  size = matrix.shape[1]
  return jnp.sum(jnp.abs(jnp.fft.fft(matrix, axis=1)) ** 2, axis=0) / size


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
