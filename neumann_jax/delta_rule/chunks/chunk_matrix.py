"""A of a chunk, what the rule inverts: A_ij = beta_i <k_i, k_j> exp(G_i - G_j).

Only i > j counts; everything else is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from neumann_jax.chunk_inverse import masks
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.delta_rule import inputs, layout, precision
from neumann_jax.delta_rule.gates import chunk_gates


class ChunkMatrices(NamedTuple):
  """The chunk matrices of a sequence and the gates behind them.

  Attributes:
    a: [B, Hv, N, C, C], strictly lower triangular.
    beta: [B, Hv, N, C]; 0 on padding.
    log_decay: [B, Hv, N, C]; 0 on padding.
    key_norm: [B, Hv, N] float32, at least 1: no key of the chunk is longer.
      `envelope` takes it, because keys that were normalised and then rounded
      can exceed 1.
  """

  a: jax.Array
  beta: jax.Array
  log_decay: jax.Array
  key_norm: jax.Array | float = 1.0


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
    log_decay: [B, T, Hv], log decay per token, <= 0.
    beta: [B, T, Hv], in [0, 2].
    segment_ids: [B, T] integers, one for each document; entries between
      documents are 0.
    chunk_size: C, a power of two; the last chunk is padded with inert tokens.

  Returns:
    A and its gates, in float32 (float64 for float64 keys).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range.

  Example:
    Two orthogonal keys that alternate: a token meets its own key two before.

    >>> import jax.numpy as jnp
    >>> k = jnp.tile(jnp.eye(2), (2, 1))[None, :, None]  # [1, 4, 1, 2]
    >>> gates = jnp.zeros((1, 4, 1)), jnp.full((1, 4, 1), 0.5)
    >>> chunk_matrices(k, *gates, chunk_size=4).a[0, 0, 0]
    Array([[0. , 0. , 0. , 0. ],
           [0. , 0. , 0. , 0. ],
           [0.5, 0. , 0. , 0. ],
           [0. , 0.5, 0. , 0. ]], dtype=float32)
  """
  inputs.check(
    {"k": k, "log_decay": log_decay, "beta": beta}, segment_ids=segment_ids
  )
  check_chunk_size(chunk_size)
  dtype = precision.compute_dtype(k)
  heads = k.shape[2]
  k = layout.split_keys(jnp.asarray(k, dtype), chunk_size)
  beta, log_decay = (
    layout.split_gates(jnp.asarray(x, dtype), chunk_size, heads)
    for x in (beta, log_decay)
  )  # [N, B, Hk, R, C]
  documents = layout.split_documents(segment_ids, chunk_size)
  a = matrix(k, beta, chunk_gates(log_decay, documents).decay)
  norm = jnp.broadcast_to(precision.key_norm(k)[..., None], beta.shape[:-1])
  return ChunkMatrices(*map(layout.by_head, (a, beta, log_decay, norm)))


def matrix(k: jax.Array, beta: jax.Array, decay: jax.Array) -> jax.Array:
  """A from [N, B, Hk, C, Dk] keys: [N, B, Hk, R, C, C], strictly lower."""
  # Once per key head; its R value heads differ in gates alone.
  gram = precision.einsum("nbhid,nbhjd->nbhij", k, k, k.dtype)
  a = beta[..., :, None] * gram[:, :, :, None] * decay
  return jnp.where(masks.strictly_lower(k.shape[-2]), a, 0)
