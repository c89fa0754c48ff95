"""The chunk inverse T = (I + A)^-1 in plain XLA: the defining semantics.

The methods are those of `chunk_inverse.methods`, on one tile, the whole matrix;
operands are rounded in `chunk_inverse.products`, differentiably, and everything
between products is float32.
"""

import functools

import jax
import jax.numpy as jnp

from neumann_jax.chunk_inverse import masks, methods
from neumann_jax.chunk_inverse import products as arithmetic
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from neumann_jax.chunk_inverse.tiles import Tiles


def invert(
  spec: InverseSpec, a: jax.Array, bound: jax.Array | None = None
) -> jax.Array:
  """T = (I + A)^-1 as `spec` says; differentiable as computed.

  Rounded operands are straight-through: the derivative is that of the product
  of the rounded operands with respect to those operands.

  Args:
    spec: which method, from `inverse_spec.resolve`.
    a: [..., C, C] floating point; only the strictly lower part is read.
      Computed in float32, or in float64 for float64 at full precision.
    bound: [..., 1, 1] or scalar, the largest entry of the envelope; used by
      the envelope scale of `spec.quant`, 1 when None.

  Returns:
    [..., C, C] of a's dtype.
  """
  c, dtype = a.shape[-1], a.dtype
  wide = spec.precision == "float32" and spec.quant is None
  a = a.astype(jnp.float64 if wide and dtype == jnp.float64 else jnp.float32)
  # A triangular solve is serial, and the only method that is no product.
  if spec.method == "exact" or c == 1:
    eye = jnp.eye(c, dtype=a.dtype)
    return jax.scipy.linalg.solve_triangular(
      eye + jnp.where(masks.strictly_lower(c), a, 0),
      jnp.broadcast_to(eye, a.shape),
      lower=True,
      unit_diagonal=True,
    ).astype(dtype)
  products = methods.Products(
    operand=_whole(arithmetic.product(spec, bound)),
    residual=_whole(arithmetic.full_product),
    correction=_whole(arithmetic.correction_product(spec, bound)),
    rounded=lambda x: x,
  )
  t = methods.invert({(0, 0): a}, spec, products, c)[0, 0]
  return t.astype(dtype)


@functools.cache
def count_products(spec: InverseSpec, chunk_size: int) -> int:
  """How many C x C matrix products `spec` takes; 0 for `exact`."""
  count = 0

  def counting(x: Tiles, y: Tiles) -> Tiles:
    nonlocal count
    count += 1
    return _whole(arithmetic.full_product)(x, y)

  spec = resolve(spec, chunk_size)
  if spec.method == "exact" or chunk_size == 1:
    return 0
  # The products of the body itself are counted: no formula to keep in step.
  products = methods.Products(counting, counting, counting, lambda x: x)
  a = jax.ShapeDtypeStruct((chunk_size, chunk_size), jnp.float32)
  jax.eval_shape(
    lambda a: methods.invert({(0, 0): a}, spec, products, chunk_size), a
  )
  return count


def _whole(dot: arithmetic.Product) -> methods.Product:
  """A product of matrices as one of single tiles; an absent one is zero."""

  def product(x: Tiles, y: Tiles) -> Tiles:
    return {(0, 0): dot(x[0, 0], y[0, 0])} if x and y else {}

  return product
