"""Packed documents that each start from a state of their own, and leave one.

Documents are moved apart until each begins a chunk, as it does alone: at most
C - 1 inert tokens more for each of M. A chunk then belongs to one document, and
the scan over chunks reads and writes the state of that one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule import (
  inputs,
  isolation,
  kept_names,
  layout,
  precision,
)
from neumann_jax.delta_rule.chunks import chunk_scan
from neumann_jax.delta_rule.chunks.intra_chunk import Terms
from neumann_jax.delta_rule.inputs import Operands


class Places(NamedTuple):
  """Where the tokens of packed documents stand once these are moved apart.

  Attributes:
    number: [B, T] int32, which document of its row a token is of.
    place: [B, T] int32, where it goes; N C, past the end, for a document that
      has no state.
    token: [B, N C] int32, which token stands there; T, past the end, for none.
    document: [N, B] int32, whose state a chunk reads and writes.
  """

  number: jax.Array
  place: jax.Array
  token: jax.Array
  document: jax.Array


def places(segment_ids: jax.Array, count: int, chunk_size: int) -> Places:
  """Moves documents apart, so that each begins a chunk.

  Args:
    segment_ids: [B, T].
    count: M, documents that a row may have.
    chunk_size: C.
  """
  batch, length = segment_ids.shape
  number = layout.numbers(segment_ids)
  here = jnp.arange(length, dtype=jnp.int32)  # [T]
  starts = inputs.segment_starts(segment_ids)
  first = lax.cummax(jnp.where(starts, here, 0), axis=1)  # [B, T]
  # Where a document begins, the one before is filled up to whole chunks.
  before = jnp.pad(first[:, :-1], [(0, 0), (1, 0)])
  gap = jnp.where(starts, (before - here) % chunk_size, 0)
  # Each of at most `count` documents is filled up by less than a chunk.
  chunks = (length + min(count, length) * (chunk_size - 1)) // chunk_size
  size = chunks * chunk_size
  place = here + jnp.cumsum(gap, axis=1, dtype=jnp.int32)
  place = jnp.where(number < count, place, size)
  row = jnp.arange(batch)[:, None]  # [B, 1]
  token = jnp.full((batch, size), length, jnp.int32)
  token = token.at[row, place].set(here, mode="drop")
  document = jnp.zeros((batch, chunks), jnp.int32)
  document = document.at[row, place // chunk_size].max(number, mode="drop")
  # Chunks past the last token leave the state of the last document alone.
  document = lax.cummax(document, axis=1)
  return Places(number, place, token, document.T)


def rule(
  terms: Callable[[Operands], tuple[Terms, jax.Array]],
  arrays: Operands,
  states: jax.Array,
  segment_ids: jax.Array,
  chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
  """The rule for documents with states of their own.

  Args:
    terms: of operands of whole chunks, each of one document, and the factor on
      what a scan makes of them.
    arrays: the operands.
    states: [B, M, Hv, Dk, Dv], of every document before its first token.
    segment_ids: [B, T].
    chunk_size: C.

  Returns:
    out [B, T, Hv, Dv], NaN for a document past the M-th, and the states after
    the documents; one without tokens keeps its own.
  """
  where = places(segment_ids, states.shape[1], chunk_size)
  arrays, states, taint = isolation.isolate_documents(
    arrays, states, segment_ids, where.number
  )
  moved = Operands(*(_take(x, where.token, 0) for x in arrays))
  found, factor = terms(moved)
  heads, dtype = arrays.k.shape[2], precision.compute_dtype(arrays.v)
  grouped = states.astype(dtype).reshape(
    *states.shape[:2], heads, -1, *states.shape[3:]
  )  # [B, M, Hk, R, Dk, Dv]
  grouped = layout.varying_as(grouped, jax.tree.leaves((found, where)))
  after, out = chunk_scan.advance_documents(grouped, found, where.document)
  out = factor * layout.merge_values(out)  # [B, N C, Hv, Dv]
  out = _take(out.astype(arrays.v.dtype), where.place, jnp.nan)
  after = after.reshape(states.shape)
  return kept_names.named(
    isolation.restore(out, after, taint), kept_names.OUTPUTS
  )


def _take(x: jax.Array, index: jax.Array, missing: float) -> jax.Array:
  """Tokens of [B, T, ...] by their number [B, S]: [B, S, ...]."""
  row = jnp.arange(x.shape[0])[:, None]
  return x.at[row, index].get(mode="fill", fill_value=missing)
