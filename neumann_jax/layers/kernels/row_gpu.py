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

# Entries of a tile: 16 KB of bfloat16, of which two are under way at a time in
# each of two programs a multiprocessor. Not tuned further.
_TILE, _WARPS = 8192, 8
# Columns of a program: 64 bytes of a row; 32 where that would leave
# multiprocessors without a program.
_COLUMNS, _FEW = 32, 16
_FEW_BELOW = 128 * _COLUMNS


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
  if size % (_TILE // _FEW):
    return f"{size} rows are not a multiple of {_TILE // _FEW}"
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
  width = _FEW if sum(sizes) < _FEW_BELOW else _COLUMNS
  starts = [0]
  for size in sizes:
    starts.append(starts[-1] + pl.cdiv(size, width))
  vma = jax.typeof(kernels[0]).manual_axis_type
  out_shape = [
    jax.ShapeDtypeStruct((size,), inputs[0].dtype, manual_axis_type=vma)
    for size in sizes
  ]
  found = pl.pallas_call(
    functools.partial(
      _kernel, len(inputs), starts, sizes, (_TILE // width, width)
    ),
    out_shape=out_shape,
    grid=(starts[-1],),
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=interpret,
    name="neumann_row",
  )(*inputs, *kernels)
  return tuple(found)


def _kernel(count, starts, sizes, tile, *refs):
  inputs, refs = refs[:count], refs[count:]
  kernels, outs = refs[: len(sizes)], refs[len(sizes) :]
  program = pl.program_id(0)
  for n, size in enumerate(sizes):
    own = (program >= starts[n]) & (program < starts[n + 1])
    column = (program - starts[n]) * tile[1]
    run = functools.partial(
      _columns, inputs, kernels[n], outs[n], column, size, tile
    )
    pl.when(own)(run)


def _columns(inputs, kernel, out, column, size, tile):
  """Some columns of one product, from the first row to the last."""
  rows, width = tile
  steps = kernel.shape[0] // rows
  columns = pl.ds(column, width)
  inside = column + lax.broadcasted_iota(jnp.int32, tile, 1) < size

  def load(n):
    mask = inside & (n < steps)
    return triton.load(
      kernel.at[pl.ds(n * rows, rows), columns], mask=mask, other=0.0
    )

  def step(n, carry):
    total, weights = carry
    # Asked for before the ones at hand are used: the next tile is under way
    # while this one is summed.
    later = load(n + 1)
    x = _row(inputs, pl.ds(n * rows, rows))
    total = total + x[:, None] * weights.astype(jnp.float32)
    return total, later

  start = jnp.zeros(tile, jnp.float32), load(0)
  total, _ = lax.fori_loop(0, steps, step, start)
  # One reduction at the end: every one of them is a barrier.
  y = jnp.sum(total, axis=0).astype(out.dtype)
  at = column + lax.broadcasted_iota(jnp.int32, (width,), 0)
  triton.store(out.at[columns], y, mask=at < size)


def _row(inputs, at):
  """Part of the row, float32, rounded where the model rounds."""
  x = inputs[0][at]
  if len(inputs) == 2:
    wide = x.astype(jnp.float32)
    x = (wide * lax.logistic(wide)).astype(x.dtype) * inputs[1][at]
  return x.astype(jnp.float32)
