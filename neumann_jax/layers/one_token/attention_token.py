"""Full attention between its projections, and one token of it."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.layers.caches import cached_keys
from neumann_jax.layers.caches.cache import KeyValueCache
from neumann_jax.layers.causal_attention import causal_attention
from neumann_jax.layers.norms import rms_norm
from neumann_jax.layers.positions import Positions, turned


def heads(
  both: jax.Array,
  k: jax.Array,
  v: jax.Array,
  norms: tuple[jax.Array, jax.Array],
  turn: tuple[jax.Array, jax.Array],
  eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Queries, their gates, keys and values by head, from the projections.

  Args:
    both: [B, T, 2 H D].
    k: [B, T, Hkv D].
    v: [B, T, Hkv D].
    norms: weights of those of queries and keys, [D] each.
    turn: as of `positions.rotation`.
    eps: of both norms.

  Returns:
    [B, T, H, D] twice and [B, T, Hkv, D] twice.
  """
  dim = norms[0].shape[0]
  both, k, v = (x.reshape(*x.shape[:2], -1, dim) for x in (both, k, v))
  both = both.reshape(*both.shape[:2], -1, 2 * dim)  # [B, T, H, 2 D]
  q, gate = jnp.split(both, 2, axis=-1)  # [B, T, H, D] each
  # Normalised before the rotation, which keeps norms, so that neither the
  # cache nor a later call needs to know the norm.
  q, k = (turned(rms_norm(x, w, eps), *turn) for x, w in zip((q, k), norms))
  return q, gate, k, v


def after_gate(out: jax.Array, gate: jax.Array) -> jax.Array:
  """out times the sigmoid of its gate, [..., H D]."""
  # The sigmoid in float32: near 1 bfloat16 has steps of 2^-8.
  return out * nnx.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)


def one_token(
  projected: tuple[jax.Array, ...],
  norms: tuple[jax.Array, jax.Array],
  turn: tuple[jax.Array, jax.Array],
  places: jax.Array,
  cache: KeyValueCache,
  eps: float,
) -> tuple[jax.Array, KeyValueCache]:
  """What lies between the projections of one token of one row.

  Args:
    projected: [1, 1, 2 H D] and twice [1, 1, Hkv D], see `heads`.
    norms: as of `heads`.
    turn: cosines and sines of its angles, [r / 2] each.
    places: [2] int32, its slot and the first that it sees.
    cache: before the token.
    eps: of both norms.

  Returns:
    [1, 1, H D], and the cache with the token.
  """
  at = turn[0].reshape(1, 1, -1), turn[1].reshape(1, 1, -1)
  both, k, v = projected
  q, gate, k, v = heads(both, k, v, norms, at, eps)
  slot, first = (x.reshape(1, 1) for x in places)
  positions = Positions(slot, first, slot)
  cache = cached_keys.store(cache, k, v, slot)
  attend = functools.partial(causal_attention, query_block=1)
  out = cached_keys.over_slots_in_use(attend, q, cache, positions)
  return after_gate(out.reshape(1, 1, -1), gate.reshape(1, 1, -1)), cache
