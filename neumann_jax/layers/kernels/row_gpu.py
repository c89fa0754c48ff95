"""One row times several matrices in one GPU kernel, as a step of decoding does.

XLA turns a product with one row into a multiplication of the whole matrix,
which it rounds to the activations' type and, for the widths of a model, writes
to memory before it sums: on one H200 a tenth of the card's bandwidth. Here each
program reads some columns of one matrix once and sums in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering

# A tile is 16 KB of bfloat16, 128 bytes of each row; two of them are under way
# at a time in each program. On one H200 tiles that are all asked for at once,
# and other shapes of a tile, were no faster.
_ROWS, _COLUMNS, _WARPS = 128, 64, 4
# Programs that fill a card of 132 multiprocessors. Where there are fewer blocks
# of columns, several programs share the rows of one, and their sums are added.
_PROGRAMS = 400


def refusal(inputs: tuple[jax.Array, ...], kernels: tuple) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    inputs: x, or a gate and what it gates; [..., K], only shapes are read.
    kernels: matrices [K, N].
  """
  x, size = inputs[0], kernels[0].shape[0]
  if x.size != size:
    return f"it multiplies one row, got {x.size // size}"
  if x.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it multiplies bfloat16 and float16, got {x.dtype}"
  if any(kernel.dtype != x.dtype for kernel in kernels):
    return f"weights must be {x.dtype} as the activations"
  if size % _ROWS:
    return f"{size} rows are not a multiple of {_ROWS}"
  return None


def products(
  inputs: tuple[jax.Array, ...],
  kernels: tuple[jax.Array, ...],
  *,
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """x times each matrix; of two inputs x is silu(first) * second.

  Args:
    inputs: one or two of [K].
    kernels: [K, N], each of its own N.
    interpret: runs the body on the CPU instead.

  Returns:
    [N] for each matrix, in the inputs' type.
  """
  sizes = [kernel.shape[1] for kernel in kernels]
  starts = [0]
  for size in sizes:
    starts.append(starts[-1] + pl.cdiv(size, _COLUMNS))
  tiles = kernels[0].shape[0] // _ROWS
  # Equal shares of the rows, and no more of them than it takes.
  shares = next(
    n
    for n in range(1, tiles + 1)
    if tiles % n == 0 and (n * starts[-1] >= _PROGRAMS or n == tiles)
  )
  vma = jax.typeof(kernels[0]).manual_axis_type
  out_shape = [
    jax.ShapeDtypeStruct((shares * size,), jnp.float32, manual_axis_type=vma)
    for size in sizes
  ]
  found = lowering.pallas_call(
    functools.partial(_kernel, len(inputs), starts, sizes, tiles // shares),
    out_shape=out_shape,
    grid=(starts[-1], shares),
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=interpret,
    name="neumann_row",
  )(*inputs, *kernels)
  # What adds the sums of the shares is what takes the result.
  return tuple(
    jnp.sum(x.reshape(shares, -1), axis=0).astype(inputs[0].dtype)
    for x in found
  )


def _kernel(count, starts, sizes, steps, *refs):
  inputs, refs = refs[:count], refs[count:]
  kernels, outs = refs[: len(sizes)], refs[len(sizes) :]
  program, share = pl.program_id(0), pl.program_id(1)
  for n, size in enumerate(sizes):
    own = (program >= starts[n]) & (program < starts[n + 1])
    column = (program - starts[n]) * _COLUMNS
    run = functools.partial(
      _columns, inputs, kernels[n], outs[n], column, size, share, steps
    )
    pl.when(own)(run)


def _columns(inputs, kernel, out, column, size, share, steps):
  """Some columns of one product, over a share of its rows."""
  first = share * steps
  tile = _ROWS, _COLUMNS
  columns = pl.ds(column, _COLUMNS)
  inside = column + lax.broadcasted_iota(jnp.int32, tile, 1) < size

  def load(n):
    mask = inside & (n < first + steps)
    return triton.load(
      kernel.at[pl.ds(n * _ROWS, _ROWS), columns], mask=mask, other=0.0
    )

  def step(n, carry):
    total, weights = carry
    # Asked for before the ones at hand are used: the next tile is under way
    # while this one is summed.
    later = load(n + 1)
    x = _row(inputs, pl.ds(n * _ROWS, _ROWS))
    total = total + x[:, None] * weights.astype(jnp.float32)
    return total, later

  start = jnp.zeros(tile, jnp.float32), load(first)
  total, _ = lax.fori_loop(first, first + steps, step, start)
  # One reduction at the end: every one of them is a barrier.
  y = jnp.sum(total, axis=0)
  at = column + lax.broadcasted_iota(jnp.int32, (_COLUMNS,), 0)
  triton.store(
    out.at[pl.ds(share * size + column, _COLUMNS)], y, mask=at < size
  )


def _row(inputs, at):
  """Part of the row, float32, rounded where the model rounds."""
  x = inputs[0][at]
  if len(inputs) == 2:
    wide = x.astype(jnp.float32)
    x = (wide * lax.logistic(wide)).astype(x.dtype) * inputs[1][at]
  return x.astype(jnp.float32)
