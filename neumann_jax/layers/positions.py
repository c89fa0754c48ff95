"""Where each token stands: in its row, in its document, in the cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax import sequence_axis
from neumann_jax.delta_rule import inputs

# The slot of padding: past every cache, so that writes to it are dropped, and
# after every token, so that no token sees it.
PADDING = np.iinfo(np.int32).max


class Positions(NamedTuple):
  """Places of the tokens of one call, [B, T] int32 each.

  A token sees the keys of slots `first` to `slot`.

  Attributes:
    slot: number of the token among those of its row, the cached ones counted;
      PADDING for padding.
    first: slot of the first token of its document.
    rotary: number of the token in its document, for rotary embedding.
  """

  slot: jax.Array
  first: jax.Array
  rotary: jax.Array


def positions(
  batch: int,
  length: int,
  *,
  stored: jax.Array | None = None,
  start: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  mask: jax.Array | None = None,
) -> Positions:
  """Places of B rows of T tokens.

  Args:
    batch: B.
    length: T.
    stored: [B] int32, tokens that each row has in the cache; None: none.
    start: [B] int32, slot of the first token of the document that the cache
      ends in; None: 0.
    segment_ids: [B, T] integers, non-decreasing, or None; the cache belongs to
      the first document.
    mask: [B, T] bool, True at real tokens, or None.
  """
  none = jnp.zeros(batch, jnp.int32)
  stored = none if stored is None else stored
  start = none if start is None else start
  count = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
  if mask is not None:
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
  slot = stored[:, None] + count
  first = jnp.broadcast_to(start[:, None], slot.shape)
  if segment_ids is not None:
    starts = inputs.segment_starts(segment_ids)
    first = lax.cummax(jnp.where(starts, slot, first), axis=1)
  rotary = slot - first
  if mask is not None:
    slot = jnp.where(mask, slot, PADDING)
    rotary = jnp.maximum(rotary, 0)  # padding on the left stands at -1
  return Positions(slot, first, rotary)


def shard_positions(
  batch: int, length: int, segment_ids: jax.Array | None, axis_name: str
) -> Positions:
  """Places of one shard's tokens among those of all, in `jax.shard_map`.

  Args:
    batch: B.
    length: T / shards.
    segment_ids: [B, T / shards] integers of this shard, or None.
    axis_name: the mesh axis that splits the tokens.

  Raises:
    ValueError: if the axis is unknown.
  """
  offset = sequence_axis.token_offset(length, axis_name)
  if segment_ids is not None:
    segment_ids = sequence_axis.gather_tokens(segment_ids, axis_name)
  total = length * sequence_axis.axis_size(axis_name)
  places = positions(batch, total, segment_ids=segment_ids)
  return Positions(
    *(lax.dynamic_slice_in_dim(x, offset, length, axis=1) for x in places)
  )
