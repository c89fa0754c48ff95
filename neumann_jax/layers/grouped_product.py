"""Products of rows with the matrix of their group, at the cost of those rows.

  y_i = x_i W_g(i),  rows sorted by group g,

which `jax.lax.ragged_dot` computes through all E matrices wherever XLA has no
kernel for it (CPU and GPU). Here a TPU takes the kernels of megablox
(`kernels.grouped_tiles`), other platforms dense blocks of rows
(`kernels.grouped_blocks`).

The product and the sum of outer products that its derivative needs are bilinear
primitives, each the derivative of the other: derivatives of any order, forward
and backward, cost what their own rows need.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from neumann_jax.delta_rule.layout import varying_as
from neumann_jax.layers.kernels import grouped_blocks, grouped_tiles


def grouped_product(
  x: jax.Array,
  kernels: jax.Array,
  sizes: jax.Array,
  *,
  dtype: DTypeLike | None = None,
) -> jax.Array:
  """y_i = x_i W_g(i) for rows sorted by group.

  A row of y depends on its own row and matrix alone, whatever the others hold,
  NaN included. Float32 is multiplied at full precision on every platform. A TPU
  has kernels for bfloat16 and float32; other types take the blocks there too.

  Args:
    x: [M, K], the rows of group 0, then those of group 1, and so on.
    kernels: [E, K, N], the matrix of each group.
    sizes: [E] int32, rows of each group; they add up to M.
    dtype: of y; None: x's. Sums are float32 for 16-bit operands.

  Returns:
    [M, N].
  """
  dtype = jnp.dtype(x.dtype if dtype is None else dtype)
  arrays = x, kernels, sizes
  # Under `jax.shard_map` whole matrices meet rows that differ from device to
  # device: their derivative is a sum over devices, which this brings about.
  x, kernels, sizes = (varying_as(one, arrays) for one in arrays)
  return _product.bind(x, kernels, sizes, dtype=dtype, transposed=False)


_product = Primitive("grouped_product")
_outer = Primitive("grouped_outer")


def _product_type(x, kernels, sizes, *, dtype, transposed):
  del sizes
  width = kernels.shape[1 if transposed else 2]
  return x.update(shape=(x.shape[0], width), dtype=dtype, weak_type=False)


def _outer_type(x, y, sizes, *, dtype):
  return x.update(
    shape=(*sizes.shape, x.shape[1], y.shape[1]),
    dtype=dtype,
    sharding=x.sharding.update(spec=P(None, None, None)),
    weak_type=False,
  )


def _bilinear_jvp(primitive, primals, tangents, **static):
  left, right, sizes = primals
  out = primitive.bind(left, right, sizes, **static)
  terms = []
  for pair in ((tangents[0], right), (left, tangents[1])):
    if not any(isinstance(one, ad.Zero) for one in pair):
      terms.append(primitive.bind(*pair, sizes, **static))
  if not terms:
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())
  return out, sum(terms[1:], terms[0])


def _product_transpose(cotangent, x, kernels, sizes, *, dtype, transposed):
  del dtype
  if ad.is_undefined_primal(x):
    found = _product.bind(
      *(cotangent, kernels, sizes),
      dtype=x.aval.dtype,
      transposed=not transposed,
    )
    return found, None, None
  pair = (cotangent, x) if transposed else (x, cotangent)
  return None, _outer.bind(*pair, sizes, dtype=kernels.aval.dtype), None


def _outer_transpose(cotangent, x, y, sizes, *, dtype):
  del dtype
  if ad.is_undefined_primal(x):
    rows, like, transposed = y, x, True
  else:
    rows, like, transposed = x, y, False
  found = _product.bind(
    rows, cotangent, sizes, dtype=like.aval.dtype, transposed=transposed
  )
  return (found, None, None) if transposed else (None, found, None)


def _batched(primitive, arrays, axes, **static):
  """One after the other: groups differ, and so do the loops over them."""
  moved = [
    x if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(arrays, axes)
  ]
  batched = [x for x, axis in zip(moved, axes) if axis is not None]

  def one(some):
    rest = iter(some)
    given = [x if axis is None else next(rest) for x, axis in zip(moved, axes)]
    return primitive.bind(*given, **static)

  return lax.map(one, batched), 0


def _register(primitive: Primitive, kind: Any, transpose: Any, name: str):
  primitive.def_abstract_eval(kind)
  primitive.def_impl(
    lambda *arrays, **static: jax.jit(
      functools.partial(primitive.bind, **static)
    )(*arrays)
  )
  ad.primitive_jvps[primitive] = functools.partial(_bilinear_jvp, primitive)
  ad.primitive_transposes[primitive] = transpose
  batching.primitive_batchers[primitive] = functools.partial(
    _batched, primitive
  )
  blocks, tiles = getattr(grouped_blocks, name), getattr(grouped_tiles, name)
  lower = functools.partial(mlir.lower_fun, multiple_results=False)
  mlir.register_lowering(primitive, lower(blocks))
  # XLA multiplies bfloat16 on a CPU by way of float32.
  widened = functools.partial(blocks, widen=True)
  mlir.register_lowering(primitive, lower(widened), platform="cpu")
  mlir.register_lowering(primitive, lower(tiles), platform="tpu")


_register(_product, _product_type, _product_transpose, "product")
_register(_outer, _outer_type, _outer_transpose, "outer")
