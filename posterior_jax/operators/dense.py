"""A measurement given by its matrix, for small images."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import fields
from posterior_jax.base import Linear, Operator, SolveInfo
from posterior_jax.linalg import solve
from posterior_jax.linalg import svd as decompose
from posterior_jax.linalg.svd import Svd
from posterior_jax.operators.decomposed import Decomposed
from posterior_jax.operators.shapes import check_batch, check_image_shape
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Operator):
  """y = A x on row-major images, D = H * W * C; made by `dense`.

  Attributes:
    matrix: A, [m, D].
    image_shape: (H, W, C).
  """

  matrix: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(m, 1, 1)."""
    return (self.matrix.shape[0], 1, 1)

  @property
  def gridded(self) -> bool:
    """False: neighbours in a list of measurements are neighbours of nothing."""
    return False

  @property
  def gram_gain(self) -> jax.Array:
    """Power of the rows' spectra, mean over channels, [H, W]."""
    # The diagonal of F A^T A F^*: coefficient k gathers |F row_k|^2 of all
    # rows.
    rows = self.matrix.reshape(-1, *self.image_shape)  # [m, H, W, C]
    f = jnp.fft.fft2(rows, axes=(1, 2), norm="ortho")
    return jnp.mean(jnp.sum(jnp.abs(f) ** 2, axis=0), axis=-1)

  def forward(self, x: jax.Array) -> jax.Array:
    """A x."""
    check_batch("x", x, self.image_shape)
    return _times(self.matrix, self.measurement_shape, x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """A^T y."""
    check_batch("y", y, self.measurement_shape)
    return _times(self.matrix.T, self.image_shape, y)

  def svd(self) -> Svd:
    """The matrix's own; coefficients [min(m, D), 1, 1]."""
    left, values, right = decompose.factors(self.matrix)
    seen = (len(values), 1, 1)

    def times(matrix: jax.Array, shape: tuple[int, ...]) -> Linear:
      # Arrays as leaves, so that a loop can carry the decomposition.
      return jax.tree_util.Partial(_Times(shape), matrix)

    return Svd(
      values=values.reshape(seen),
      to_right=times(right, seen),
      from_right=times(right.T, self.image_shape),
      to_left=times(left.T, seen),
      from_left=times(left, self.measurement_shape),
    )

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
    return solve.normal_equations(
      lambda x: self.adjoint(self.forward(x)),
      self.gram_gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )


def dense(image_shape: tuple[int, int, int], matrix: np.ndarray) -> Dense:
  """A measurement of one's own as a matrix.

  Args:
    image_shape: (H, W, C).
    matrix: [m, H * W * C], on row-major images; it is held as it is, so images
      should be small.

  Raises:
    ValueError: for a matrix of another width, or not finite.

  Example:
    >>> import numpy as np
    >>> import posterior_jax as pj
    >>> operator = pj.operators.dense((2, 2, 1), np.ones((1, 4)))
    >>> operator.forward(np.ones((2, 2, 1), np.float32)).item()
    4.0
  """
  image_shape = check_image_shape(image_shape)
  matrix = fields.array("matrix", matrix).astype(np.float32)
  size = math.prod(image_shape)
  if matrix.ndim != 2 or matrix.shape[1] != size or not len(matrix):
    raise ValueError(
      f"matrix must have shape [m, {size}] for the image {image_shape}, got "
      f"{matrix.shape}"
    )
  if not np.isfinite(matrix).all():
    raise ValueError("matrix must be finite everywhere")
  return Dense(jnp.asarray(matrix), image_shape)


@dataclasses.dataclass(frozen=True)
class _Times:
  """A product to one shape; a value, so that equal ones do not retrace."""

  shape: tuple[int, ...]

  def __call__(self, matrix: jax.Array, x: jax.Array) -> jax.Array:
    return _times(matrix, self.shape, x)


def _times(
  matrix: jax.Array, shape: tuple[int, ...], x: jax.Array
) -> jax.Array:
  """matrix x for x [..., a, b, c] as vectors, to [..., *shape]."""
  flat = x.reshape(*x.shape[:-3], -1)
  y = jnp.einsum(
    "md,...d->...m",
    matrix.astype(x.dtype),
    flat,
    precision=lax.Precision.HIGHEST,
  )
  return y.reshape(*x.shape[:-3], *shape)
