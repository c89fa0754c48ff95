"""Causal attention as products under a mask, a block of queries at a time."""

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule.isolation import clean
from neumann_jax.layers.positions import Positions


def causal_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: Positions,
  key_slot: jax.Array,
  *,
  query_block: int,
  packed: bool = False,
) -> jax.Array:
  """softmax(q k^t / sqrt(D)) v over the keys that each token sees.

  Args:
    q: [B, T, H, D].
    k: [B, S, Hkv, D]; query head h reads key head h // (H / Hkv).
    v: [B, S, Hkv, D].
    positions: of the queries.
    key_slot: [B or 1, S] int32, slots of the keys.
    query_block: queries at a time; memory is query_block * S, and the backward
      pass computes the scores of a block again.
    packed: whether rows hold several documents, of which one may hold what is
      not finite: weights of 0 would not keep it from the others.

  Returns:
    [B, T, H, D] in q's dtype. A query that sees no key, which only padding
    is, gives the mean of all values.
  """
  spoilt = None
  if packed:
    (q, k, v), bad_q, spoilt = cleaned(q, k, v)

  def attend(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    q, slot, first = block
    # One comparison is causality, capacity (empty slots are later than all
    # tokens), padding and, with the next, documents.
    seen = key_slot[:, None] <= slot[:, :, None]  # [B, T, S]
    seen &= key_slot[:, None] >= first[:, :, None]
    # The function mixes half precision with float32, which a caller who forbids
    # promotion need not know.
    with (
      jax.default_matmul_precision("highest"),
      jax.numpy_dtype_promotion("standard"),
    ):
      out = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])
    return out if spoilt is None else _spoil(out, seen, spoilt)

  operands = q, positions.slot, positions.first
  length = q.shape[1]
  if length <= query_block:
    out = attend(operands)
  else:
    # `lax.map` of `jax.checkpoint`: neither pass holds scores of two blocks.
    blocks = jax.tree.map(lambda x: _blocks(x, query_block), operands)
    out = lax.map(jax.checkpoint(attend), blocks)  # [N, B, block, H, D]
    out = jnp.swapaxes(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])
    out = out[:, :length]
  return jnp.where(bad_q, jnp.nan, out) if packed else out


def cleaned(
  q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array, jax.Array]:
  """Operands without what is not finite; which queries, which keys it was.

  Returns:
    The operands, [B, T, H, 1] and [B, S, Hkv] bool.
  """
  bad = (~jnp.isfinite(x).all(axis=-1, keepdims=True) for x in (q, k, v))
  bad_q, bad_k, bad_v = bad  # [B, T, H, 1] and twice [B, S, Hkv, 1]
  found = clean(q, bad_q), clean(k, bad_k), clean(v, bad_v)
  return found, bad_q, (bad_k | bad_v)[..., 0]


def _spoil(out: jax.Array, seen: jax.Array, spoilt: jax.Array) -> jax.Array:
  """NaN for the queries that see a key or value which is not finite.

  Args:
    out: [B, T, H, D].
    seen: [B, T, S] bool.
    spoilt: [B, S, Hkv] bool.
  """
  # A product, because `any` over [B, T, S, Hkv] would be as large as scores.
  found = jnp.einsum(
    "bts,bsh->bth", seen.astype(jnp.float32), spoilt.astype(jnp.float32)
  )
  return without(out, found > 0)


def without(out: jax.Array, found: jax.Array) -> jax.Array:
  """NaN in [B, T, H, D] where `found` [B, T, Hkv]."""
  found = jnp.repeat(found, out.shape[2] // found.shape[2], axis=2)
  return jnp.where(found[..., None], jnp.nan, out)


def _blocks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] -> [N, B, size, ...], padded with zeros."""
  pad = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
  return jnp.swapaxes(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 0, 1)
