"""The short convolution of packed documents with a history each."""

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule import inputs, layout


def document_conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  history: jax.Array,
  segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`short_conv` where each of M documents of a row has a history.

  Args:
    x: [B, T, D], raw columns.
    kernel: [W, D].
    history: [B, M, D, W], the W columns before each document, oldest first.
    segment_ids: [B, T] integers.

  Returns:
    y [B, T, D] in float32, NaN for a document past the M-th, and the last W
    columns of each document [B, M, D, W] in x's dtype; one without tokens
    keeps its own.
  """
  (batch, length, _), (count, width) = x.shape, (history.shape[1], len(kernel))
  number = layout.numbers(segment_ids)  # [B, T]
  starts = inputs.segment_starts(segment_ids)
  here = jnp.arange(length, dtype=jnp.int32)
  first = lax.cummax(jnp.where(starts, here, 0), axis=1)
  size = length + count * width
  # Each document's history is put before its tokens: taps then meet those of
  # no other document, and need no mask.
  place = here + width * (number + 1)
  place = jnp.where(number < count, place, size)
  row = jnp.arange(batch)[:, None]
  begin = jnp.full((batch, count), size, jnp.int32)
  begin = begin.at[row, number].min(first + width * number, mode="drop")
  back = jnp.arange(width, dtype=jnp.int32)
  before = begin[..., None] + back  # [B, M, W], past the end for no document
  history = jnp.swapaxes(history.astype(x.dtype), 2, 3)  # [B, M, W, D]
  columns = jnp.zeros((batch, size, x.shape[-1]), x.dtype)
  columns = columns.at[row, place].set(x, mode="drop")
  columns = columns.at[row[..., None], before].set(history, mode="drop")
  padded = jnp.pad(columns, [(0, 0), (width - 1, 0), (0, 0)])
  y = jnp.zeros(columns.shape, jnp.float32)
  for tap in range(width):
    column = padded[:, tap : tap + size].astype(jnp.float32)
    y = y + kernel[tap].astype(jnp.float32) * column
  y = y.at[row, place].get(mode="fill", fill_value=jnp.nan)  # [B, T, D]
  end = begin + width  # of the history, and of the tokens where there are some
  end = end.at[row, number].max(place + 1, mode="drop")
  last = columns.at[row[..., None], end[..., None] - width + back].get(
    mode="fill", fill_value=0
  )  # [B, M, W, D]
  kept = jnp.where(begin[..., None, None] < size, last, history)
  return y, jnp.swapaxes(kept, 2, 3)
