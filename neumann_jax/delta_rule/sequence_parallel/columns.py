"""The rule with more columns in its state than values: what reads and moves it.

The columns of a state from Dv on meet no values. Started from those of an
identity they end as the map of a sequence, M, and the tokens read P_t of them,
before anything is known of the state that enters. By a scan in XLA, or by the
kernels of a TPU, to which such columns are a value head more, of zeros.
"""

import functools

import jax
import jax.numpy as jnp

from neumann_jax.delta_rule import layout
from neumann_jax.delta_rule.chunks import by_chunks, chunk_scan, intra_chunk
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import rule as tpu_rule


def columns(
  arrays: Operands,
  scale: jax.Array,
  start: jax.Array,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  """The rule from a wide state.

  Args:
    arrays: the operands.
    scale: of the output.
    start: [B, Hk, R, Dk, Dv + Dk], before the first token.
    segment_ids: [B, T] or None.
    how: the options of the rule.

  Returns:
    What the tokens read, [B, T, Hv, Dv + Dk], and the state after the last one,
    as `start`. By kernels the first has v's type.
  """
  pairs, state = arrays, start
  if arrays.k.shape[-1] == arrays.v.shape[-1]:
    pairs, state = _as_heads(arrays, start)
  # Of other widths they refuse them, which is said where they were named.
  if tpu_rule.takes(pairs, how):
    found = tpu_rule.rule(_ON_TPU, pairs, scale, state, segment_ids, how)
    return _as_columns(*found, start.shape)
  return _by_scan(arrays, scale, start, segment_ids, how)


def _by_scan(arrays, scale, start, segment_ids, how):
  chunks, factor = by_chunks.split(arrays, scale, segment_ids, how.chunk_size)
  if how.fused:
    u, w = by_chunks.split_wy(arrays, chunks, segment_ids, how)
    terms = intra_chunk.terms_of_wy(
      chunks.q, chunks.k, u, w, chunks.log_decay, chunks.documents
    )
  else:
    terms = intra_chunk.terms(chunks, how)
  state, out = chunk_scan.advance(start, terms)
  out = factor * layout.merge_values(out)
  return out[:, : arrays.v.shape[1]], state


def _as_heads(arrays: Operands, start: jax.Array) -> tuple[Operands, jax.Array]:
  """Two value heads for each: the values, and zeros that read the rest."""
  v = jnp.stack([arrays.v, jnp.zeros_like(arrays.v)], axis=3)
  twice = functools.partial(jnp.repeat, repeats=2, axis=2)
  state = layout.flat_state(start)  # [B, Hv, Dk, 2 D]
  state = jnp.stack(jnp.split(state, 2, axis=-1), axis=2)
  heads = arrays._replace(
    v=v.reshape(*v.shape[:2], -1, v.shape[-1]),
    log_decay=twice(arrays.log_decay),
    beta=twice(arrays.beta),
  )
  return heads, state.reshape(state.shape[0], -1, *state.shape[3:])


def _as_columns(
  out: jax.Array, state: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Takes back `_as_heads`; the heads of a pair are neighbours."""
  out = out.reshape(*out.shape[:2], -1, shape[-1])  # [B, T, Hv, 2 D]
  b, _, dk, d = state.shape
  state = jnp.swapaxes(state.reshape(b, -1, 2, dk, d), 2, 3)
  return out, state.reshape(shape)


def _of_heads(heads, scale, state, segment_ids, how):
  """What the kernels compute, by the scan."""
  b, _, dk, d = state.shape
  hk, hv = heads.k.shape[2], heads.v.shape[2] // 2
  arrays = heads._replace(
    v=heads.v[:, :, ::2],
    log_decay=heads.log_decay[:, :, ::2],
    beta=heads.beta[:, :, ::2],
  )
  start = jnp.swapaxes(state.reshape(b, hv, 2, dk, d), 2, 3)
  start = start.reshape(b, hk, hv // hk, dk, 2 * d)
  out, final = _by_scan(arrays, scale, start, segment_ids, how)
  out = out.astype(heads.v.dtype).reshape(heads.v.shape)
  final = jnp.stack(jnp.split(layout.flat_state(final), 2, axis=-1), axis=2)
  return out, final.reshape(state.shape)


_ON_TPU = tpu_rule.operation(
  lambda how, heads, scale, state, segment_ids: _of_heads(
    heads, scale, state, segment_ids, how
  )
)
