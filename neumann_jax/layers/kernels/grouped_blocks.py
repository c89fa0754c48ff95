"""Grouped products by dense blocks of rows, one group after the other.

Blocks have a quarter of the rows that a group has on average, or four times as
many where a group has them: no more than a quarter of the rows is multiplied in
vain, and an average group takes one or two blocks. The matrix of a group is
read out of the stack once, and a group without rows costs nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from neumann_jax.delta_rule.layout import varying_as

# Rows of the smaller block, at most: more would not make a product faster.
_MOST = 128


def product(
  x: jax.Array,
  kernels: jax.Array,
  sizes: jax.Array,
  *,
  dtype: DTypeLike,
  transposed: bool,
  widen: bool = False,
) -> jax.Array:
  """y_i = x_i W_g(i), or x_i W_g(i)^t.

  Args:
    x: [M, K].
    kernels: [E, K, N], or [E, N, K] where transposed.
    sizes: [E] int32.
    dtype: of y.
    transposed: whether matrices are.
    widen: multiplies 16-bit operands as float32, and holds results so: a CPU
      would turn all of an array of 16 bits around to write a part of it.

  Returns:
    [M, N].
  """
  length, width = x.shape[0], kernels.shape[1 if transposed else 2]
  blocks = _blocks(length, sizes.shape[0])
  rows = jnp.pad(x, ((0, blocks[-1]), (0, 0)))
  held = _sums(dtype) if widen else dtype
  axes = ((1,), (1 if transposed else 0,)), ((), ())

  def multiply(size, first, kernel):
    block = _wide(lax.dynamic_slice_in_dim(rows, first, size), widen)
    y = _dot(block, kernel, axes, _sums(dtype)).astype(held)
    return jnp.pad(y, ((0, blocks[-1] - size), (0, 0)))

  def group(index, first, end, state):
    kernels, out = state
    kernel = lax.dynamic_index_in_dim(kernels, index, keepdims=False)
    each = functools.partial(multiply, kernel=_wide(kernel, widen))
    out = _over_blocks(blocks, first, end, each, _write, out)
    # To XLA the stack is another one after each group: of one that stays the
    # same it would widen all in front of the loop, rather than a matrix in it.
    return lax.optimization_barrier(kernels) if widen else kernels, out

  out = jnp.zeros((length + blocks[-1], width), held)
  out = varying_as(out, (x, kernels, sizes))
  return _over_groups(sizes, group, (kernels, out))[1][:length].astype(dtype)


def outer(
  x: jax.Array,
  y: jax.Array,
  sizes: jax.Array,
  *,
  dtype: DTypeLike,
  widen: bool = False,
) -> jax.Array:
  """Sum over the rows of each group of x_i^t y_i.

  Args:
    x: [M, K].
    y: [M, N].
    sizes: [E] int32.
    dtype: of the sums.
    widen: as for `product`.

  Returns:
    [E, K, N].
  """
  blocks = _blocks(x.shape[0], sizes.shape[0])
  pad = (0, blocks[-1]), (0, 0)
  padded = jnp.pad(x, pad), jnp.pad(y, pad)
  held = _sums(dtype) if widen else dtype

  def multiply(size, first, end):
    # By selection: another group may hold NaN.
    own = (jnp.arange(size) < end - first)[:, None]
    left, right = (
      jnp.where(own, lax.dynamic_slice_in_dim(rows, first, size), 0)
      for rows in padded
    )
    axes = ((0,), (0,)), ((), ())
    return _dot(_wide(left, widen), _wide(right, widen), axes, _sums(dtype))

  def group(index, first, end, out):
    each = functools.partial(multiply, end=end)
    zero = jnp.zeros(out.shape[1:], _sums(dtype))
    zero = varying_as(zero, (x, y, sizes))
    add = lambda total, term, _: total + term  # noqa: E731
    total = _over_blocks(blocks, first, end, each, add, zero)
    return lax.dynamic_update_index_in_dim(out, total.astype(held), index, 0)

  out = jnp.zeros((*sizes.shape, x.shape[1], y.shape[1]), held)
  out = varying_as(out, (x, y, sizes))
  return _over_groups(sizes, group, out).astype(dtype)


def _write(out: jax.Array, y: jax.Array, first: jax.Array) -> jax.Array:
  # Rows past the group's end are wrong, and its successor's, which comes later
  # and writes over them.
  return lax.dynamic_update_slice_in_dim(out, y, first, 0)


def _over_blocks(
  blocks: tuple[int, int],
  first: jax.Array,
  end: jax.Array,
  multiply: Callable[..., jax.Array],
  add: Callable[..., jax.Array],
  start: jax.Array,
) -> jax.Array:
  """Folds (state, multiply(size, first row), first row) over a group's blocks.

  Args:
    blocks: their two sizes.
    first: row of the group.
    end: the row past its last.
    multiply: what a block of a size gives, from its first row.
    add: puts it into the state.
    start: the state before.
  """
  small, large = (functools.partial(multiply, size) for size in blocks)

  def body(state):
    first, out = state
    is_large, step = _choice(blocks, end - first)
    return first + step, add(
      out, lax.cond(is_large, large, small, first), first
    )

  return lax.while_loop(lambda s: s[0] < end, body, (first, start))[1]


def _over_groups(sizes: jax.Array, step: Callable, start: Any) -> Any:
  """Folds (group, first row, row past its last, state) over those with rows."""
  ends = jnp.cumsum(sizes, dtype=jnp.int32)
  # Stable: groups with rows come first, in their order.
  order = jnp.argsort(sizes == 0, stable=True)

  def body(n, state):
    index = order[n].astype(jnp.int32)
    return step(index, ends[index] - sizes[index], ends[index], state)

  count = jnp.sum(sizes > 0, dtype=jnp.int32)
  return lax.fori_loop(jnp.zeros_like(count), count, body, start)


def _blocks(length: int, groups: int) -> tuple[int, int]:
  """Rows of the two sizes of blocks, for so many rows in so many groups."""
  quarter = max(length // (4 * groups), 1)
  small = min(1 << (quarter.bit_length() - 1), _MOST)
  return small, 4 * small


def _choice(
  blocks: tuple[int, int], left: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Whether a group with so many rows left takes a large block, and its size.

  It does where no more than a small block of it is not the group's.
  """
  small, large = blocks
  is_large = left >= large - small + (small == 1)
  return is_large, jnp.where(is_large, large, small).astype(jnp.int32)


def _wide(x: jax.Array, widen: bool) -> jax.Array:
  narrow = x.dtype in (jnp.bfloat16, jnp.float16)
  return x.astype(jnp.float32) if widen and narrow else x


def _sums(dtype: DTypeLike) -> jnp.dtype:
  """What is summed in for results of a type: 32 bits or more."""
  dtype = jnp.dtype(dtype)
  return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def _dot(x: jax.Array, y: jax.Array, axes: tuple, dtype: jnp.dtype):
  # Operands of one type, which the derivative of a wider result lacks.
  common = jnp.promote_types(x.dtype, y.dtype)
  return lax.dot_general(
    x.astype(common),
    y.astype(common),
    axes,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=dtype,
  )
