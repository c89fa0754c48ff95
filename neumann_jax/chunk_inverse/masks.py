"""Where entries of a chunk matrix may live, and how decay weighs them.

All masks are built from iotas with comparisons and shifts only, so that the
same functions trace inside a Pallas kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax


def _row_col(chunk_size: int) -> tuple[jax.Array, jax.Array]:
  shape = (chunk_size, chunk_size)
  row = lax.broadcasted_iota(jnp.int32, shape, 0)
  col = lax.broadcasted_iota(jnp.int32, shape, 1)
  return row, col


def in_band(row: jax.Array, col: jax.Array, width: int) -> jax.Array:
  """Whether entries lie on the diagonal or `width` sub-diagonals below it.

  Like `same_block` and `joined` for row and column numbers of any kind: jax
  arrays, also inside a kernel, or numpy arrays while tracing.
  """
  return (row >= col) & (row - col <= width)


def same_block(row: jax.Array, col: jax.Array, level: int) -> jax.Array:
  """Whether entries lie in one diagonal block of size 2**level."""
  return (row >> level) == (col >> level)


def joined(row: jax.Array, col: jax.Array, level: int) -> jax.Array:
  """Whether entries lie in a pair of blocks that the ladder joins at `level`.

  That is the lower-left block, 2**level wide, of a diagonal block of size
  2**(level + 1): level 0 joins single rows, log2(C) - 1 the halves of a chunk.
  """
  return ((row ^ col) >> level == 1) & (row > col)


def strictly_lower(chunk_size: int) -> jax.Array:
  """True below the diagonal, [C, C] bool."""
  row, col = _row_col(chunk_size)
  return row > col


def same_segment(segment_ids: jax.Array) -> jax.Array:
  """True where two tokens belong to one document: [..., C] -> [..., C, C]."""
  return segment_ids[..., :, None] == segment_ids[..., None, :]


def decay_matrix(
  log_decay: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
  """exp(G_i - G_j) on and below the diagonal, G the cumulative log decay.

  The exponent is summed over the tokens j < m <= i directly instead of as a
  difference of cumulative sums: after a token that forgets nearly everything
  (log decay -20 and less) the difference would lose all its digits. The mask
  acts before exp, so nothing overflows and gradients stay finite.

  Args:
    log_decay: [..., C] float, log decay of each token, <= 0 (-inf allowed).
    segment_ids: [..., C] int or None; tokens of different documents get 0.

  Returns:
    [..., C, C], 1 on the diagonal, 0 above it.
  """
  c = log_decay.shape[-1]
  row, col = _row_col(c)
  # Column j has the log decays of the tokens after j.
  steps = jnp.where(row > col, log_decay[..., :, None], 0)  # [..., C, C]
  exponent = jnp.cumsum(steps, axis=-2)
  keep = row >= col
  if segment_ids is not None:
    keep = keep & same_segment(segment_ids)
  return jnp.exp(jnp.where(keep, exponent, -jnp.inf))
