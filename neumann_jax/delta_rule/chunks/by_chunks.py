"""The rule of one device by chunks: in one kernel, or in two parts.

The parts are what needs no state, for all chunks at once, and the scan that
carries the state from chunk to chunk. `by_chunks` is the rule of a row of one
document, `of_documents` of several, `with_states` of several that each have a
state of their own.
"""

import functools
from typing import Any

import jax

from neumann_jax import backends
from neumann_jax.delta_rule import isolation, kept_names, layout, precision
from neumann_jax.delta_rule.chunks import (
  chunk_scan,
  document_states,
  intra_chunk,
  wy,
)
from neumann_jax.delta_rule.chunks.intra_chunk import Terms
from neumann_jax.delta_rule.hopper import rule as hopper_rule
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.layout import Chunks
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import rule as tpu_rule


@functools.partial(jax.jit, static_argnums=4)
def with_states(
  arrays: Operands,
  scale: jax.Array,
  states: jax.Array,
  segment_ids: jax.Array,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  """For documents with states of their own, [B, M, Hv, Dk, Dv].

  A kernel of all of the rule, or of the scan over chunks, has one state a row:
  u and w may come from a kernel, the scan is that of XLA.
  """
  reason = "the kernels have one state a row, not one for each document"
  if tpu_rule.asked(how):
    backends.say_fallback(how.implementation, "tpu", reason, tpu_rule.PARTS)
  if how.implementation == "gpu":
    backends.say_fallback("gpu", "gpu", reason, "XLA's scan over chunks")

  def terms(arrays: Operands) -> tuple[Terms, jax.Array]:
    chunks, factor = split(arrays, scale, None, how.chunk_size)
    if not how.fused:
      return intra_chunk.terms(chunks, how), factor
    u, w = split_wy(arrays, chunks, None, how)
    gates = chunks.log_decay, chunks.documents
    return intra_chunk.terms_of_wy(chunks.q, chunks.k, u, w, *gates), factor

  return document_states.rule(
    terms, arrays, states, segment_ids, how.chunk_size
  )


@functools.partial(jax.jit, static_argnums=4)
def of_documents(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  """`by_chunks` for rows of which one document may hold NaN."""
  arrays, state, taint = isolation.isolate(arrays, initial_state, segment_ids)
  out, state = by_chunks(arrays, scale, state, segment_ids, how)
  return isolation.restore(out, state, taint)


@functools.partial(jax.jit, static_argnums=(4, 5))
def by_chunks(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
  whole: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """By one kernel where `whole` and there is one, else in two parts.

  That is what needs no state first, then the scan over chunks.
  """
  if whole and hopper_rule.takes(arrays, how):
    rest = (scale, initial_state, segment_ids, how)
    found = hopper_rule.rule(arrays, *rest, _by_parts)
    return kept_names.named(found, kept_names.OUTPUTS)
  if whole and tpu_rule.takes(arrays, how):
    rest = (scale, initial_state, segment_ids, how)
    found = tpu_rule.rule(_ON_TPU, arrays, *rest)
    return kept_names.named(found, kept_names.OUTPUTS)
  q, k, v, log_decay, beta = arrays
  state = layout.grouped_state(initial_state, k, v, q, log_decay, beta)
  chunks, factor = split(arrays, scale, segment_ids, how.chunk_size)
  by_kernel = chunk_scan.has_kernel(how.implementation, chunks.k, chunks.v)
  if how.fused or by_kernel:
    u, w = split_wy(arrays, chunks, segment_ids, how)
    # The scan makes attention itself: a kernel keeps it on the chip.
    given = chunk_scan.Inputs.of(chunks, u, w, factor, state)
    out, state = backends.run(
      chunk_scan.OPERATION, how.implementation, how.chunk_size, given
    )
  else:
    # Gates serve u and w and the scan, in one computation that the backward
    # pass makes again.
    terms = intra_chunk.terms(chunks, how)
    state, out = chunk_scan.advance(state, terms)
    out = factor * layout.merge_values(out)  # [B, N C, Hv, Dv]
  found = out[:, : v.shape[1]].astype(v.dtype), layout.flat_state(state)
  return kept_names.named(found, kept_names.OUTPUTS)


def _by_parts(*operands: Any) -> tuple[jax.Array, jax.Array]:
  """`by_chunks` without a kernel for all of it."""
  return by_chunks(*operands, False)


_ON_TPU = tpu_rule.operation(lambda how, *operands: _by_parts(*operands, how))


def split(
  arrays: Operands,
  scale: jax.Array,
  segment_ids: jax.Array | None,
  chunk_size: int,
) -> tuple[Chunks, jax.Array]:
  """The operands by chunks, and what is left of the scale for the output."""
  q, k, v, log_decay, beta = arrays
  dtype = precision.product_dtype(v, q, k)
  # Into q, Dk wide and per key head, rather than into outputs, where it does
  # not round.
  q, factor = precision.scaled(q, scale, dtype)
  return layout.split(
    *(q, k, v, log_decay, beta, segment_ids),
    chunk_size=chunk_size,
    dtype=dtype,
  ), factor


def split_wy(
  arrays: Operands,
  chunks: Chunks,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  """u [N, B, Hk, R, C, Dv] and w, Dk wide, for a scan that makes the rest."""
  if not how.fused:
    # Nothing multiplies queries here.
    terms = intra_chunk.terms(chunks._replace(q=None), how)
    return terms.u, terms.w
  # The operation gives u and w in v's type, which where the products are wide
  # would round them for nothing.
  dtype = chunks.k.dtype
  _, k, v, log_decay, beta = arrays
  given = k.astype(dtype), v.astype(dtype), log_decay, beta, segment_ids
  found = backends.run(wy.OPERATION, how.implementation, how, *given)
  heads = arrays.k.shape[2]
  u, w = (
    layout.split_values(x.astype(chunks.k.dtype), how.chunk_size, heads)
    for x in found
  )
  return u, w
