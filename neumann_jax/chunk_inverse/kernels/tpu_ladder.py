"""The ladder on a TPU: substitution up to 16 x 16, then merges by products.

The first four levels of the ladder have next to nothing to multiply, so the
diagonal blocks of 16 are inverted by float32 substitution on the vector unit,
with the rows of 16 matrices side by side in the lanes. Matrices never mix:
what one holds, be it NaN, stays in its own lanes.

Until T is whole it is packed: s x s diagonal blocks side by side, told apart by
their lanes. So are matrices that share registers: of W / C of them, each in
lanes of its own, all take one product.

Axes: C chunk, s block size, n packs of matrices, W lanes of a pack.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax.chunk_inverse import methods

# Matrices whose rows fill the 128 lanes, eight rows of a block at a time.
GROUP = 16
# A program cut by `yield` where another one may be interleaved.
Pieces = Iterator[None]
Dot = Callable[[jax.Array, jax.Array], jax.Array]


def kernel(a_ref, out_ref, *, products: methods.Products, refine: bool) -> None:
  """Inverts a block of matrices.

  Mosaic schedules close to program order, so the merges of a group are
  emitted between the steps of the next group's substitution: those keep the
  matrix unit busy, these the vector unit.

  Args:
    a_ref: [n, C, W], C a power of two from 16, W a multiple of it.
    out_ref: [n, C, W].
    products: of the merges and of the refinement, for a single tile.
    refine: whether to add the correction X + X R.
  """
  total = a_ref.shape[0]
  merges: Pieces = iter(())
  for first in range(0, total, GROUP):
    group = range(first, min(first + GROUP, total))
    blocks: list[jax.Array] = []
    for i, _ in enumerate(_start(a_ref, group, blocks)):
      # At C = 64 a substitution has about twice as many pieces as merges.
      if i % 2:
        next(merges, None)
    _finish(merges)
    merges = _merge(a_ref, out_ref, group, blocks, products, refine)
  _finish(merges)


def _finish(pieces: Pieces) -> None:
  for _ in pieces:
    pass


def _iota(shape: tuple[int, int], axis: int) -> jax.Array:
  return lax.broadcasted_iota(jnp.int32, shape, axis)


def _where(keep: jax.Array, value: float) -> jax.Array:
  """`value` or 0 in float32, also where wider types are enabled."""
  return jnp.where(keep, np.float32(value), np.float32(0))


def _load(a_ref, at: int, row: int, size: int) -> jax.Array:
  """Rows `row` to `row` + `size` - 1 of a pack, [size, W] float32."""
  return a_ref[at, row : row + size, :].astype(jnp.float32)


def _diagonal_blocks(a_ref, group: range) -> tuple[jax.Array, jax.Array]:
  """The strictly lower parts of the 16 x 16 diagonal blocks, transposed.

  Returns:
    Rows 0 to 7 and rows 8 to 15 of every block, [W, 8 n]: column j of block b
    in sublane 16 b + j, row i of pack m in lane 8 m + i.
  """
  c, width = a_ref.shape[1:]
  row, lane = _iota((16, width), 0), _iota((16, width), 1)
  block = (lane & c - 1) >> 4
  halves: tuple[list, list] = ([], [])
  for at in group:
    x = _load(a_ref, at, 0, 16)
    for b in range(1, c // 16):
      x = jnp.where(block == b, _load(a_ref, at, 16 * b, 16), x)
    # By selection: what stands above may be NaN.
    x = jnp.where(lane & 15 < row, x, 0.0)
    halves[0].append(x[:8])
    halves[1].append(x[8:])
  upper, lower = (jnp.concatenate(half, 0).T for half in halves)
  return upper, lower


def _start(a_ref, group: range, out: list[jax.Array]) -> Pieces:
  """Inverses of the 16 x 16 diagonal blocks, by columns from T (I + A) = I.

  Column k of T is final once the columns right of it are, and then takes
  T[:, k] A[k, j] off every column j < k. A block is worked on in quarters of
  8 x 8, columns in sublanes and rows in lanes; the upper right one is zero.

  Args:
    a_ref: [n, C, W].
    group: which packs.
    out: gets one [16, W] a pack.
  """
  c, width = a_ref.shape[-1], 8 * len(group)
  a = _diagonal_blocks(a_ref, group)
  yield
  row, lane = _iota((8, width), 0), _iota((8, width), 1)

  def spread(half: int, k: int, columns: int) -> jax.Array:
    """A[8 half + k, j] in every lane of its matrix, [C / 16, 8, 8 n]."""
    parts = [a[half][at : at + 8] for at in range(8 * columns, c, 16)]
    own = (lane & ~7) + k
    return jnp.stack([jnp.take_along_axis(x, own, axis=1) for x in parts])

  eye = _where(lane & 7 == row, 1.0)
  top = bottom = jnp.broadcast_to(eye, (c // 16, 8, width))
  corner = jnp.zeros_like(top)  # rows 8 to 15, columns 0 to 7
  kept = {}
  # Columns 15 to 8: they belong to the lower quarters alone, and take their
  # share off the corner as they become final. The upper left quarter has the
  # same pattern of steps, so both go in one loop.
  for k in range(7, -1, -1):
    column = bottom[:, k : k + 1]
    corner = corner - column * spread(1, k, 0)
    if k:
      kept[k] = spread(0, k, 0)
      top = top - top[:, k : k + 1] * kept[k]
      bottom = bottom - column * spread(1, k, 1)
    yield
  # Columns 7 to 1 of the corner, with the rows of A that `top` took.
  for k in range(7, 0, -1):
    corner = corner - corner[:, k : k + 1] * kept[k]
    if k % 3 == 0:
      yield
  zero = jnp.zeros_like(top)
  upper = jnp.stack([top, zero], 1).reshape(c, width).T
  yield
  lower = jnp.stack([corner, bottom], 1).reshape(c, width).T
  for m in range(len(group)):
    rows = slice(8 * m, 8 * m + 8)
    out.append(jnp.concatenate([upper[rows], lower[rows]], 0))
  yield


def _merge(
  a_ref,
  out_ref,
  group: range,
  blocks: list[jax.Array],
  products: methods.Products,
  refine: bool,
) -> Pieces:
  """Doubles the blocks until they are T, refines and stores it."""

  def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return products.operand({(0, 0): x}, {(0, 0): y})[0, 0]

  size, c = 16, a_ref.shape[1]
  while size < c:
    yield from _join(a_ref, group, blocks, size, dot)
    size *= 2
  if refine:
    yield from _refine(a_ref, group, blocks, products)
  for at, x in zip(group, blocks):
    out_ref[at] = x.astype(out_ref.dtype)
  yield


def _join(
  a_ref, group: range, blocks: list[jax.Array], size: int, dot: Dot
) -> Pieces:
  """[[T1, 0], [-T2 A21 T1, T2]] for every pair of blocks at once.

  One product serves all pairs: A21 of every pair side by side, times a matrix
  that has T1 on the diagonal of the even blocks and is zero elsewhere. Lanes
  that meet its zeros must be cleared, for A may hold NaN there.

  Args:
    a_ref: [n, C, W].
    group: which packs.
    blocks: [s, W] each; replaced by [2 s, W].
    size: s.
    dot: the product of a merge.
  """
  c, width = a_ref.shape[1:]
  block = _iota((size, width), 1) >> (size.bit_length() - 1)
  evens = range(0, width // size, 2)
  zero = jnp.zeros((size, width), jnp.float32)
  left = []
  for at in group:
    x = zero
    for b in evens:
      row = (b + 1) * size % c
      x = jnp.where(block == b, _load(a_ref, at, row, size), x)
    left.append(x)
  yield
  right = []
  for x in blocks:
    parts = [(jnp.where(block == b, x, 0.0), zero) for b in evens]
    right.append(jnp.concatenate([y for pair in parts for y in pair], 0))
  product = [dot(x, y) for x, y in zip(left, right)]
  yield
  # The sign of -T2 A21 T1 rides on the mask that clears the other lanes.
  sign = [_where(block == b, -1.0) for b in evens]
  right = []
  for x in product:
    parts = [(zero, x * s) for s in sign]
    right.append(jnp.concatenate([y for pair in parts for y in pair], 0))
  product = [dot(x, y) for x, y in zip(blocks, right)]
  yield
  even = block & 1 == 0
  blocks[:] = [
    jnp.concatenate([jnp.where(even, x, 0.0), jnp.where(even, y, x)], 0)
    for x, y in zip(blocks, product)
  ]


def _refine(
  a_ref, group: range, blocks: list[jax.Array], products: methods.Products
) -> Pieces:
  """X + X R with R = I - X - A X, as the generic body refines."""
  c, width = a_ref.shape[1:]
  row, lane = _iota((c, width), 0), _iota((c, width), 1)
  col = lane & c - 1
  eye = _where(row == col, 1.0)
  residuals = []
  for i, at in enumerate(group):
    a = jnp.where(row > col, _load(a_ref, at, 0, c), 0.0)
    x = products.rounded({(0, 0): blocks[i]})
    blocks[i] = x[0, 0]
    ax = products.residual({(0, 0): a}, {(0, 0): _apart(x[0, 0])})
    residuals.append(eye - x[0, 0] - ax[0, 0])
  yield
  for i, r in enumerate(residuals):
    step = products.correction({(0, 0): blocks[i]}, {(0, 0): _apart(r)})
    blocks[i] = blocks[i] + step[0, 0]


def _apart(x: jax.Array) -> jax.Array:
  """The matrices of a pack on the diagonal of one, [C, W] -> [W, W]."""
  c, width = x.shape
  own = _iota((c, width), 1) >> (c.bit_length() - 1)
  parts = [jnp.where(own == m, x, 0.0) for m in range(width // c)]
  return jnp.concatenate(parts, 0)
