"""What the Hopper kernels of the delta rule share: tiles, products, gates.

One chunk is 64 tokens, so that every product has 64 rows, a warpgroup's own
shape (wgmma). States and values are carried transposed, [Dv, Dk] and [Dv, C]:
then each product of the chain takes its left operand from the registers that
the product before left it in, and nothing passes through shared memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from neumann_jax import lowering

CHUNK = 64
WIDTH = 128  # columns of keys or values that a program takes at once
HALF = 64  # columns of values that one warpgroup carries

TILE = plgpu.Layout.WGMMA
ROWS = TILE.reduce(1)  # one number a row of a tile
COLS = TILE.reduce(0)  # one number a column

# A chain of products into one accumulator: what it starts from (a shape means
# zeros) and the pairs of operands, left ones in shared memory or registers.
Chain = tuple[jax.Array | tuple[int, int], Sequence[tuple]]


def shared(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
  """Shared memory as TMA and wgmma want it: tiled and swizzled rows."""
  dtype = jnp.dtype(dtype)
  swizzle = plgpu.find_swizzle(shape[-1] * dtype.itemsize * 8)
  transforms = (
    plgpu.TilingTransform((8, swizzle // dtype.itemsize)),
    plgpu.SwizzleTransform(swizzle),
  )
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def accumulate(
  *chains: Chain, meanwhile: Callable[[], None] = lambda: None
) -> list[jax.Array]:
  """Independent chains of products, issued together and awaited once.

  The barrier keeps the compiler from moving arithmetic on the results before
  the wait, which has no data dependence on the accumulators' registers.

  Args:
    *chains: what to multiply.
    meanwhile: runs while the tensor cores do.
  """
  starts = [
    zeros(start) if isinstance(start, tuple) else start for start, _ in chains
  ]

  def body(refs):
    for ref, (_, pairs) in zip(refs, chains):
      for left, right in pairs:
        plgpu.wgmma(ref, left, right)
    meanwhile()

  out = pl.run_state(body)(tuple(plgpu.ACC.init(x) for x in starts))
  return list(lax.optimization_barrier(out))


def zeros(shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
  """A tile of zeros, or a number a row of zeros."""
  layout = TILE if len(shape) == 2 else ROWS
  return plgpu.layout_cast(jnp.zeros(shape, dtype), layout)


def registers(
  ref: Any, *, layout: Any = TILE, optimized: bool = True
) -> jax.Array:
  """What a reference holds, into registers."""
  # mypy sees an older jax, in which the index is not optional.
  load: Any = plgpu.load
  return load(ref, layout=layout, optimized=optimized)


def rows(x: jax.Array, width: int) -> jax.Array:
  """[N] in ROWS -> [N, width]."""
  return lax.broadcast_in_dim(x, (x.shape[0], width), [0])


def cols(x: jax.Array, height: int) -> jax.Array:
  """[N] in COLS -> [height, N]."""
  return lax.broadcast_in_dim(x, (height, x.shape[0]), [1])


def decay(by_row: jax.Array, by_col: jax.Array, *, strict: bool) -> jax.Array:
  """2^(G_i - G_j) on and below the diagonal, or only below it; else 0.

  Above the diagonal the exponent is positive: masked before it is taken.
  """
  shape = (CHUNK, CHUNK)
  i = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=TILE)
  j = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=TILE)
  inside = i > j if strict else i >= j
  exponent = rows(by_row, CHUNK) - cols(by_col, CHUNK)
  return jnp.exp2(jnp.where(inside, exponent, -jnp.inf))


def parted(index: Any, parts: int) -> tuple[Any, Any]:
  """Which whole, and which of its parts, of programs side by side.

  An axis of one program is a Python 0, which jax cannot multiply here.
  """
  if parts == 1:
    return index, 0
  return lax.div(index, parts), lax.rem(index, parts)


def launch(
  body: Callable,
  *,
  name: str,
  out_type: Any,
  scratch: dict,
  grid: tuple[int, ...],
  grid_names: tuple[str, ...],
  warpgroups: int,
  interpret: Any = None,
) -> Callable:
  """`plgpu.kernel` with the options that every kernel here has."""
  call = plgpu.kernel(
    functools.partial(_together, body),
    out_type=out_type,
    scratch_types={**scratch, "done": plgpu.Barrier(num_arrivals=warpgroups)},
    grid=grid,
    grid_names=grid_names,
    num_threads=warpgroups,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(approx_math=True),
    interpret=interpret,
    kernel_name=name,
  )
  return lowering.in_32_bits(call)


def _together(body, *refs, done, **scratch):
  """The body, after which the warpgroups leave together.

  One that leaves while others still multiply ends some runs in an illegal
  instruction (sm_90, jax 0.11.2).
  """
  body(*refs, **scratch)
  plgpu.barrier_arrive(done)
  plgpu.barrier_wait(done)
