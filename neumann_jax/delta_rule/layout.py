"""A sequence cut into chunks, and the matrix A of each chunk.

Arrays of chunks lead with [N, B, Hk, R, C]: the scan runs over N, and the R
value heads that read one key head stay together, so that products of keys are
taken once and broadcast, never repeated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from neumann_jax.chunk_inverse import masks
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.delta_rule import inputs

# exp of it is 0 in float32, and sums of it within a chunk stay finite.
_FORGET = -104.0


class ChunkMatrices(NamedTuple):
  """The chunk matrices of a sequence and the gates behind them.

  Attributes:
    a: [B, Hv, N, C, C], strictly lower triangular.
    beta: [B, Hv, N, C]; 0 on padding.
    log_decay: [B, Hv, N, C]; 0 on padding.
  """

  a: jax.Array
  beta: jax.Array
  log_decay: jax.Array


class Gates(NamedTuple):
  """Decay between the tokens of a chunk and across its borders, in [0, 1].

  Attributes:
    decay: [N, B, Hk, R, C, C], exp(G_i - G_j) for i >= j; 0 above the diagonal
      and between documents.
    enter: [N, B, Hk, R, C], exp(G_i): the weight of the incoming state at
      token i, 0 once a document has started inside the chunk.
  """

  decay: jax.Array
  enter: jax.Array


def chunk_matrices(
  k: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  segment_ids: jax.Array | None = None,
  chunk_size: int = 64,
) -> ChunkMatrices:
  """The matrices A_ij = beta_i <k_i, k_j> exp(G_i - G_j) that the rule inverts.

  Args:
    k: [B, T, Hk, Dk], normalised keys.
    log_decay: [B, T, Hv], <= 0.
    beta: [B, T, Hv], in [0, 2].
    segment_ids: [B, T] integers, non-decreasing; entries between documents
      are 0.
    chunk_size: C, a power of two; the last chunk is padded with inert tokens.

  Returns:
    A and its gates, in float32 (float64 for float64 keys).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range.
  """
  inputs.check(
    {"k": k, "log_decay": log_decay, "beta": beta}, segment_ids=segment_ids
  )
  check_chunk_size(chunk_size)
  dtype = inputs.compute_dtype(k)
  heads = k.shape[2]
  k = split_keys(jnp.asarray(k, dtype), chunk_size)  # [N, B, Hk, C, Dk]
  beta = split_gates(jnp.asarray(beta, dtype), chunk_size, heads)
  log_decay = split_gates(jnp.asarray(log_decay, dtype), chunk_size, heads)
  gates = chunk_gates(log_decay, split_documents(segment_ids, chunk_size))
  a = matrix(k, beta, gates.decay)  # [N, B, Hk, R, C, C]
  return ChunkMatrices(*map(_by_head, (a, beta, log_decay)))


def matrix(k: jax.Array, beta: jax.Array, decay: jax.Array) -> jax.Array:
  """A from [N, B, Hk, C, Dk] keys: [N, B, Hk, R, C, C], strictly lower."""
  gram = inputs.einsum("nbhid,nbhjd->nbhij", k, k, k.dtype)
  a = beta[..., :, None] * gram[:, :, :, None] * decay
  return jnp.where(masks.strictly_lower(k.shape[-2]), a, 0)


def chunk_gates(
  log_decay: jax.Array, documents: jax.Array | None = None
) -> Gates:
  """Every decay that a chunk needs.

  Args:
    log_decay: [N, B, Hk, R, C], <= 0, -inf allowed.
    documents: [N, B, 1, 1, C] from `split_documents`, or None.

  Returns:
    Gates; weights between documents are exactly 0 and so are their gradients,
    because the mask acts on the exponent.
  """
  total = jnp.cumsum(log_decay, axis=-1)
  if documents is not None:
    # The state that enters a chunk belongs to the document that the chunk
    # before ended in; initial_state belongs to the first document.
    first, last = documents[:1, ..., :1], documents[:-1, ..., -1:]
    incoming = jnp.concatenate([first, last])  # [N, B, 1, 1, 1]
    total = jnp.where(documents == incoming, total, -jnp.inf)
  return Gates(masks.decay_matrix(log_decay, documents), jnp.exp(total))


def finite_decay(
  log_decay: jax.Array, segment_ids: jax.Array | None = None
) -> jax.Array:
  """The gates as kernels read them: a document begins by forgetting.

  Args:
    log_decay: [B, T, Hv], <= 0, -inf allowed.
    segment_ids: [B, T] or None.

  Returns:
    [B, T, Hv] float32, at least -104.
  """
  finite = jnp.maximum(log_decay.astype(jnp.float32), _FORGET)
  if segment_ids is None:
    return finite
  starts = inputs.segment_starts(jnp.asarray(segment_ids))
  return jnp.where(starts[..., None], _FORGET, finite)


def padded(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, ...], T padded with zeros to a multiple of C."""
  pad = -x.shape[1] % chunk_size
  return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))


def split_documents(
  segment_ids: jax.Array | None, chunk_size: int
) -> jax.Array | None:
  """Numbers documents 0, 1, ... a row: [B, T] -> [N, B, 1, 1, C] int32."""
  if segment_ids is None:
    return None
  starts = inputs.segment_starts(jnp.asarray(segment_ids))
  number = jnp.cumsum(starts, axis=1, dtype=jnp.int32)  # [B, T]
  # Padding continues the last document.
  pad = -number.shape[1] % chunk_size
  number = jnp.pad(number, [(0, 0), (0, pad)], mode="edge")
  return _split(number, chunk_size)[:, :, None, None, :]


def split_keys(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, Hk, Dk] -> [N, B, Hk, C, Dk], padded with zeros."""
  return jnp.swapaxes(_split(x, chunk_size), 2, 3)


def split_values(x: jax.Array, chunk_size: int, key_heads: int) -> jax.Array:
  """[B, T, Hv, Dv] -> [N, B, Hk, R, C, Dv], padded with zeros."""
  b, t, hv, dv = x.shape
  x = x.reshape(b, t, key_heads, hv // key_heads, dv)
  return jnp.moveaxis(_split(x, chunk_size), 2, 4)


def split_gates(x: jax.Array, chunk_size: int, key_heads: int) -> jax.Array:
  """[B, T, Hv] -> [N, B, Hk, R, C], padded with zeros: inert tokens."""
  return split_values(x[..., None], chunk_size, key_heads)[..., 0]


def merge_values(x: jax.Array, length: int) -> jax.Array:
  """Inverse of `split_values`: [N, B, Hk, R, C, Dv] -> [B, T, Hv, Dv]."""
  n, b, hk, r, c, dv = x.shape
  x = jnp.transpose(x, (1, 0, 4, 2, 3, 5))  # [B, N, C, Hk, R, Dv]
  return x.reshape(b, n * c, hk * r, dv)[:, :length]


def _split(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, ...] -> [N, B, C, ...], T padded with zeros to a multiple of C."""
  x = padded(x, chunk_size)
  x = x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
  return jnp.swapaxes(x, 0, 1)


def _by_head(x: jax.Array) -> jax.Array:
  """[N, B, Hk, R, ...] -> [B, Hv, N, ...]."""
  x = jnp.moveaxis(x, 0, 3)  # [B, Hk, R, N, ...]
  return x.reshape(x.shape[0], -1, *x.shape[3:])
