"""Where each token stands in its row, document and cache; rotary embedding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax import sequence_axis
from neumann_jax.delta_rule import inputs, layout
from neumann_jax.yarn import Yarn

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
    stored: [B] int32, tokens that each row has in the cache; None: none. Or
      [B M], where each of M documents of a row has a row of the cache.
    start: [B] int32, slot of the first token of the document that the cache
      ends in; None: 0. Or [B M].
    segment_ids: [B, T] integers, one for each document, or None; the cache
      belongs to the first document.
    mask: [B, T] bool, True at real tokens, or None.
  """
  if stored is not None and start is not None and segment_ids is not None:
    if stored.shape[0] != batch:
      return _of_documents(stored, start, segment_ids)
  none = jnp.zeros(batch, jnp.int32)
  stored = none if stored is None else stored
  start = none if start is None else start
  count = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
  if mask is not None:
    # Padding counts for nothing, on whichever side it stands.
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
  slot = stored[:, None] + count  # [B, T]
  first = jnp.broadcast_to(start[:, None], slot.shape)
  if segment_ids is not None:
    starts = inputs.segment_starts(segment_ids)
    # Slots grow along a row: the largest start so far is that of the document.
    first = lax.cummax(jnp.where(starts, slot, first), axis=1)
  rotary = slot - first
  if mask is not None:
    slot = jnp.where(mask, slot, PADDING)
    rotary = jnp.maximum(rotary, 0)  # padding on the left stands at -1
  return Positions(slot, first, rotary)


def _of_documents(
  stored: jax.Array, start: jax.Array, segment_ids: jax.Array
) -> Positions:
  """Places in the cache of a document; padding for those that have none."""
  batch, length = segment_ids.shape
  count = stored.shape[0] // batch
  number = layout.numbers(segment_ids)  # [B, T]
  starts = inputs.segment_starts(segment_ids)
  here = jnp.arange(length, dtype=jnp.int32)
  place = here - lax.cummax(jnp.where(starts, here, 0), axis=1)
  stored, start = (x.reshape(batch, count) for x in (stored, start))
  own = jnp.minimum(number, count - 1)
  slot = jnp.take_along_axis(stored, own, axis=1) + place
  first = jnp.take_along_axis(start, own, axis=1)
  rotary = slot - first
  return Positions(jnp.where(number < count, slot, PADDING), first, rotary)


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
  # The places of all tokens are made in every shard and cut: a few integers a
  # token, where passing counts from shard to shard would be serial.
  offset = sequence_axis.token_offset(length, axis_name)
  if segment_ids is not None:
    segment_ids = sequence_axis.gather_tokens(segment_ids, axis_name)
  total = length * sequence_axis.axis_size(axis_name)
  places = positions(batch, total, segment_ids=segment_ids)
  return Positions(
    *(lax.dynamic_slice_in_dim(x, offset, length, axis=1) for x in places)
  )


def rotation(
  position: jax.Array, rotary_dim: int, theta: float, scaling: Yarn | None
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of position * theta^(-2 i / r), for `turned`.

  Args:
    position: [B, T] integers.
    rotary_dim: r, even, at most D.
    theta: base of the frequencies.
    scaling: of the frequencies, and of what is rotated; None: none.

  Returns:
    [B, T, r/2] float32 each.
  """
  # In float32: bfloat16 holds no position above 256 exactly.
  if scaling is None:
    power = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    frequency = theta**-power  # [r/2]
  else:
    frequency = jnp.asarray(scaling.frequencies(theta, rotary_dim))
  angle = position[..., None].astype(jnp.float32) * frequency  # [B, T, r/2]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  if scaling is not None:
    cos, sin = cos * scaling.scale, sin * scaling.scale
  return cos, sin


def turned(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns component pairs (i, i + r/2) of x by the angles of `rotation`.

  The first r components are turned, the others pass (arXiv 2104.09864, in the
  half-split layout of Llama and Qwen).

  Args:
    x: [B, T, H, D].
    cos: [B, T, r/2] float32.
    sin: [B, T, r/2] float32.

  Returns:
    [B, T, H, D] in x's dtype.
  """
  cos, sin = cos[:, :, None], sin[:, :, None]
  half = cos.shape[-1]
  left, right, rest = jnp.split(x, [half, 2 * half], axis=-1)
  left, right = left.astype(jnp.float32), right.astype(jnp.float32)
  both = jnp.concatenate(
    [left * cos - right * sin, right * cos + left * sin], axis=-1
  )
  return jnp.concatenate([both.astype(x.dtype), rest], axis=-1)
