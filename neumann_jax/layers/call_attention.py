"""Attention of the tokens of one call to each other, by a library.

A library takes q, k, v and the documents of the tokens: [B, T] int32, equal for
tokens that see each other, or None where all of a row do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule.inputs import segment_starts
from neumann_jax.layers.causal_attention import (
  causal_attention,
  cleaned,
  without,
)
from neumann_jax.layers.kernels import library_attention
from neumann_jax.layers.kernels.library_attention import Attend
from neumann_jax.layers.positions import PADDING, Positions


def isolated(
  attend: Attend,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  documents: jax.Array | None,
) -> jax.Array:
  """A library's attention that keeps NaN of one document from the others."""
  (q, k, v), bad_q, spoilt = cleaned(q, k, v)
  out = attend(q, k, v, documents)
  # A token sees all keys since its document began: how many of them are bad
  # is a difference of sums, where no library says what a token sees.
  spoilt = spoilt.astype(jnp.int32)
  total = jnp.cumsum(spoilt, axis=1)  # [B, T, Hkv]
  first = jnp.zeros(q.shape[:2], jnp.int32)
  if documents is not None:
    first = _first(documents)
  before = jnp.take_along_axis(total - spoilt, first[..., None], axis=1)
  return jnp.where(bad_q, jnp.nan, without(out, total > before))


def documents_of(positions: Positions) -> jax.Array:
  """[B, T] int32, equal for the tokens of a call that see each other."""
  padding = positions.slot == PADDING
  return jnp.where(padding, library_attention.NONE, positions.first)


def _first(documents: jax.Array) -> jax.Array:
  """[B, T] int32, where the document of each token begins in the call."""
  place = jnp.arange(documents.shape[1], dtype=jnp.int32)
  return lax.cummax(jnp.where(segment_starts(documents), place, 0), axis=1)


def in_blocks(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  documents: jax.Array | None,
  *,
  query_block: int,
) -> jax.Array:
  """`causal_attention` of the tokens of a call to each other."""
  place = jnp.arange(q.shape[1], dtype=jnp.int32)
  place = jnp.broadcast_to(place, q.shape[:2])  # [B, T]
  first = jnp.zeros_like(place) if documents is None else _first(documents)
  where = Positions(place, first, place)
  return causal_attention(q, k, v, where, place, query_block=query_block)


def by_what_is_known(
  within: Attend,
  after: Callable[[], jax.Array],
  operands: tuple[jax.Array, jax.Array, jax.Array],
  positions: Positions,
  *,
  documents: bool = True,
) -> jax.Array:
  """Attention of a call with a cache: to the call alone if that was empty.

  Args:
    within: attention to the tokens of the call.
    after: attention to all that the cache holds.
    operands: of `within`.
    positions: of the queries.
    documents: whether `within` takes them; else `after` is what rows with
      padding before their tokens take.
  """
  slot = positions.slot
  place = jnp.arange(slot.shape[1], dtype=jnp.int32)
  real = slot != PADDING
  # Of a row that is all padding the least slot is PADDING.
  empty = jnp.all(jnp.min(slot, axis=1) % PADDING == 0)
  # Padding after the tokens is hidden from them by causality.
  whole = jnp.all(
    jnp.where(real, (slot == place) & (positions.first == 0), True)
  )
  if not documents:
    return lax.cond(empty & whole, lambda: within(*operands, None), after)
  ids = documents_of(positions)
  branches = [
    lambda: within(*operands, None),
    lambda: within(*operands, ids),
    after,
  ]
  return lax.switch(jnp.where(empty, jnp.where(whole, 0, 1), 2), branches)
