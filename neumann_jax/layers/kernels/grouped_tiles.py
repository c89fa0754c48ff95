"""Grouped products of a TPU, by the kernels that come with jax (megablox).

`jax.experimental.pallas.ops.tpu.megablox` visits the tiles of rows in order and
reads, for each, the matrix of its group: a tile that two groups share is
multiplied once for each of them.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jax.typing import DTypeLike

from neumann_jax.layers.kernels import grouped_blocks, library

# Tiles of a matrix: 512 x 512 in float32 are 1 MiB, and two of them with those
# of x and y fit the 16 MiB that a kernel may take of VMEM on any TPU.
_WIDTH = 512
# Rows of a tile: 16 fill a register of bfloat16, 128 the matrix unit.
_FEWEST, _MOST = 16, 128


def product(
  x: jax.Array,
  kernels: jax.Array,
  sizes: jax.Array,
  *,
  dtype: DTypeLike,
  transposed: bool,
  interpret: bool = False,
) -> jax.Array:
  """`grouped_blocks.product`, by a kernel for bfloat16 and float32."""
  if not _has_kernel(x, kernels, dtype=dtype):
    return grouped_blocks.product(
      x, kernels, sizes, dtype=dtype, transposed=transposed
    )
  length = x.shape[0]
  tiling = _tiling(x, sizes, kernels.shape[1 if transposed else 2])
  x, sizes = _padded(x, tiling[0]), _with_padding(sizes, length, tiling[0])

  # The kernels multiply as the default says, which rounds float32.
  @jax.default_matmul_precision("highest")
  def kernel(x, kernels, sizes):
    return gmm(
      *(x, kernels, sizes, jnp.dtype(dtype), tiling),
      transpose_rhs=transposed,
      interpret=interpret,
    )

  return library.call(kernel, x, kernels, sizes)[:length]


def outer(
  x: jax.Array,
  y: jax.Array,
  sizes: jax.Array,
  *,
  dtype: DTypeLike,
  interpret: bool = False,
) -> jax.Array:
  """`grouped_blocks.outer`, by a kernel for bfloat16 and float32."""
  if not _has_kernel(x, y, dtype=dtype):
    return grouped_blocks.outer(x, y, sizes, dtype=dtype)
  tiling = _tiling(x, sizes, y.shape[1])
  sizes = _with_padding(sizes, x.shape[0], tiling[0])
  x, y = (_padded(rows, tiling[0]) for rows in (x, y))

  @jax.default_matmul_precision("highest")  # as above
  def kernel(x, y, sizes):
    return tgmm(
      *(x.swapaxes(0, 1), y, sizes, jnp.dtype(dtype), tiling),
      interpret=interpret,
    )

  return library.call(kernel, x, y, sizes)


def _has_kernel(*arrays: jax.Array, dtype: DTypeLike) -> bool:
  types = [x.dtype for x in arrays] + [jnp.dtype(dtype)]
  return all(one in (jnp.bfloat16, jnp.float32) for one in types)


def _tiling(x: jax.Array, sizes: jax.Array, width: int) -> tuple[int, int, int]:
  """Rows, columns of x and columns of the other operand of a tile."""
  # A tile as tall as a group is on average: taller ones would be shared by more
  # groups, lower ones leave the matrix unit waiting for the next matrix.
  mean = max(x.shape[0] // sizes.shape[0], 1)
  rows = min(max(1 << (mean - 1).bit_length(), _FEWEST), _MOST)
  return rows, min(x.shape[1], _WIDTH), min(width, _WIDTH)


def _padded(x: jax.Array, tile: int) -> jax.Array:
  return jnp.pad(x, ((0, -x.shape[0] % tile), (0, 0)))


def _with_padding(sizes: jax.Array, length: int, tile: int) -> jax.Array:
  """The last group takes the rows of zeros that fill the last tile."""
  return sizes.at[-1].add(-length % tile)
