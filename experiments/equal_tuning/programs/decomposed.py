"""Operators that carry their decomposition, so that no program makes it again.

Those of the package do once `prepared`. A mirrored motion blur has no fast one,
and where the tie is weak its conjugate gradients take a hundred times as long
as the network; on small pictures A^T A has eigenvectors.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import Operator, SolveInfo
from posterior_jax.operators.bordered import Blur

_AT_ONCE = 256  # basis images that are blurred together


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EigenBlur(Blur):
  """A blur and the eigenvectors of A^T A, the same in every channel.

  Attributes:
    values: eigenvalues, [H * W], >= 0.
    vectors: in columns, [H * W, H * W].
  """

  values: jax.Array | None = None
  vectors: jax.Array | None = None

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
    if jnp.ndim(precision):
      return super().normal_solve(
        rhs,
        precision=precision,
        noise_std=noise_std,
        tolerance=tolerance,
        max_iterations=max_iterations,
      )
    assert self.values is not None and self.vectors is not None
    # Times s^2, as `linalg.solve` does: entries of order 1 at any noise.
    weight = jnp.asarray(noise_std, rhs.dtype) ** 2
    scaled = weight * jnp.asarray(precision, rhs.dtype)
    flat = jnp.moveaxis(weight * rhs, -1, -3)  # [..., C, H, W]
    seen = _times(flat.reshape(*flat.shape[:-2], -1), self.vectors)
    x = _times(seen / (self.values + scaled), self.vectors.T)
    x = jnp.moveaxis(x.reshape(flat.shape), -3, -1)
    return x, SolveInfo.closed_form()


def decomposed(operator: Operator) -> Operator:
  """An operator that solves in closed form wherever the precision is a scalar.

  Args:
    operator: of the benchmark; of a motion blur the eigenvectors are found,
      in float64: on a GPU seconds at 128 x 128, and 1 GB; on a CPU minutes.

  Returns:
    It, or one that carries its decomposition.
  """
  if not isinstance(operator, Blur) or operator.separable:
    return operator.prepared()
  own = {
    field.name: getattr(operator, field.name)
    for field in dataclasses.fields(operator)
  }
  values, vectors = _eigenvectors(operator)
  return EigenBlur(**own, values=values, vectors=vectors)


def _eigenvectors(operator: Blur) -> tuple[jax.Array, jax.Array]:
  """Of A^T A in one channel, by float64: rounding would be a prior's noise."""
  height, width, _ = operator.image_shape
  size = height * width
  with jax.enable_x64(True):
    one = dataclasses.replace(
      operator,
      kernel=jnp.asarray(operator.kernel, jnp.float64),
      image_shape=(height, width, 1),
    )

    def row(pixel: jax.Array) -> jax.Array:
      basis = jax.nn.one_hot(pixel, size, dtype=jnp.float64)
      found = one.adjoint(one.forward(basis.reshape(1, height, width, 1)))
      return found.ravel()

    pixels = jnp.arange(size)
    gram = jax.jit(lambda: lax.map(row, pixels, batch_size=_AT_ONCE))()
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0).astype(jnp.float32)
    return values, vectors.astype(jnp.float32)


def _times(x: jax.Array, matrix: jax.Array) -> jax.Array:
  return jnp.matmul(x, matrix.astype(x.dtype), precision=lax.Precision.HIGHEST)
