"""Causal depthwise convolution of a few taps, with history and documents."""

import jax
import jax.numpy as jnp

from neumann_jax import sequence_axis


def short_conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  history: jax.Array,
  segment_ids: jax.Array | None = None,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """y_t = sum_w kernel_w x_(t - W + 1 + w): the last tap is the current token.

  Args:
    x: [B, T, D], raw columns.
    kernel: [W, D].
    history: [B, D, W], the W columns before x, oldest first; zeros at a start.
    segment_ids: [B, T] integers or None; taps do not cross documents, and the
      history belongs to the first.
    mask: [B, T] bool or None, True at real tokens, not with segment_ids. The
      history comes right before a row's first real token, the new one ends at
      its last.
    axis_name: mesh axis that splits the tokens, inside `jax.shard_map`, or
      None. x is one shard's then; the history comes before the first and the
      new one, the same in all, ends with the last.

  Returns:
    y [B, T, D] in float32, and the new history [B, D, W] in x's dtype.

  Raises:
    ValueError: for a mask with an axis, an unknown axis, or a shard of less
      than W tokens.
  """
  sequence_axis.check(axis_name, mask)
  if axis_name is not None:
    history = sequence_axis.conv_history(x, history, segment_ids, axis_name)
  width, length = kernel.shape[0], x.shape[1]
  # W columns are kept where W - 1 would do: the layout of transformers' cache.
  columns = jnp.concatenate(
    [jnp.swapaxes(history.astype(x.dtype), 1, 2), x], axis=1
  )  # [B, W + T, D]
  if mask is not None:
    columns = _history_to_tokens(columns, mask, width)
  documents = None
  if segment_ids is not None:
    segment_ids = jnp.asarray(segment_ids)
    # The history is given the number of the row's first document: it is its.
    documents = jnp.pad(
      segment_ids, [(0, 0), (width, 0)], mode="edge"
    )  # [B, W + T]
  # W shifted products instead of `lax.conv`: W is 4, a depthwise convolution is
  # bound by memory, and XLA fuses these with the mask of the documents and the
  # activation that follows.
  since = None if segment_ids is None else tokens_since(segment_ids, width)
  y = jnp.zeros(x.shape, jnp.float32)
  for tap in range(width):
    window = slice(tap + 1, tap + 1 + length)
    # Summed in float32: four bfloat16 roundings would cost two bits.
    column = columns[:, window].astype(jnp.float32)  # [B, T, D]
    if since is not None:
      same = since >= width - 1 - tap
      # By selection, because 0 times a NaN of another document is NaN.
      column = jnp.where(same[..., None], column, 0)
    y = y + kernel[tap].astype(jnp.float32) * column
  kept = _last_columns(columns, documents, mask, width)
  if axis_name is not None:
    kept = sequence_axis.from_last(kept, axis_name)
  return y, kept


def tokens_since(segment_ids: jax.Array, width: int) -> jax.Array:
  """Tokens of its document right before each, at most W - 1: [B, T] int32.

  As in the rule a document is an unbroken run: an id that comes back, as that
  of padding on both sides may, begins another one.

  Args:
    segment_ids: [B, T] integers; the history is of the first document.
    width: W.
  """
  before = jnp.pad(segment_ids, [(0, 0), (width - 1, 0)], mode="edge")
  length = segment_ids.shape[1]
  count = jnp.zeros(segment_ids.shape, jnp.int32)
  for back in range(1, width):
    at = width - 1 - back
    same = before[:, at : at + length] == segment_ids
    count = jnp.where(same & (count == back - 1), back, count)
  return count


def last_columns(
  x: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  axis_name: str | None,
) -> jax.Array:
  """The new history of `short_conv`, without its convolution.

  Args:
    x: [B, T, D], raw columns.
    history: [B, D, W], before x; of a shard's own tokens with an axis.
    segment_ids: [B, T] integers or None.
    axis_name: as of `short_conv`.
  """
  width = history.shape[2]
  before = jnp.swapaxes(history.astype(x.dtype), 1, 2)  # [B, W, D]
  columns = jnp.concatenate([before, x[:, -width:]], axis=1)
  documents = None
  if segment_ids is not None:
    ids = jnp.asarray(segment_ids)
    first = jnp.broadcast_to(ids[:, :1], before.shape[:2])
    documents = jnp.concatenate([first, ids[:, -width:]], axis=1)
  kept = _last_columns(columns, documents, None, width)
  return kept if axis_name is None else sequence_axis.from_last(kept, axis_name)


def _history_to_tokens(
  columns: jax.Array, mask: jax.Array, width: int
) -> jax.Array:
  """Moves the first W columns past a row's left padding: [B, W + T, D]."""
  start = jnp.argmax(mask, axis=1)[:, None]  # [B, 1], 0 if none is real
  place = jnp.arange(columns.shape[1])
  inside = jnp.maximum(place - start, 0)  # [B, W + T]
  index = jnp.where(place < start + width, inside, place)
  return jnp.take_along_axis(columns, index[..., None], axis=1)


def _last_columns(
  columns: jax.Array,
  documents: jax.Array | None,
  mask: jax.Array | None,
  width: int,
) -> jax.Array:
  """The W columns up to the last real token: [B, W + T, D] -> [B, D, W]."""
  if mask is None:
    kept = columns[:, -width:]
  else:
    position = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
    end = jnp.max(jnp.where(mask, position, 0), axis=1)  # [B], 0 if none
    index = end[:, None] + jnp.arange(width, dtype=jnp.int32)  # [B, W]
    kept = jnp.take_along_axis(columns, index[..., None], axis=1)
  if documents is not None:
    # What comes next goes on with the last document and must not see others.
    last = documents[:, -width:] == documents[:, -1:]
    kept = jnp.where(sequence_axis.unbroken(last)[..., None], kept, 0)
  return jnp.swapaxes(kept, 1, 2)
