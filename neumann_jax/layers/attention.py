"""Gated full attention of Qwen3-Next and Qwen3.5, with a key-value cache.

Keys are known by their slot, the number of the token in its row, so that one
comparison is the causal mask of prefill, decoding, padded and packed rows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.layers.cache import KeyValueCache, check_cache
from neumann_jax.layers.linear import linear
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.positions import Positions
from neumann_jax.layers.rotary import rotate
from neumann_jax.model_config import Execution, ModelConfig
from neumann_jax.sequence_axis import gather_tokens


class GatedAttention(nnx.Module):
  """Causal grouped-query attention with a gate, [B, T, hidden] -> the same.

  Queries and keys are normalised per head and partly rotated; the output of
  every head is multiplied by the sigmoid of a gate that comes with its query.
  Parameters are named and laid out as `self_attn` of a checkpoint.

  Args:
    config: the architecture.
    execution: how it is computed.
    rngs: source of the initial parameters.
  """

  def __init__(
    self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
  ) -> None:
    self.config, self.execution = config, execution
    make = functools.partial(
      linear,
      use_bias=config.attention_bias,
      std=config.initializer_range,
      dtype=execution.dtype,
      param_dtype=execution.param_dtype,
      rngs=rngs,
    )
    heads = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    self.q_proj = make(config.hidden_size, 2 * heads)
    self.k_proj = make(config.hidden_size, shared)
    self.v_proj = make(config.hidden_size, shared)
    self.o_proj = make(heads, config.hidden_size)
    norm = functools.partial(
      RMSNorm, eps=config.rms_norm_eps, param_dtype=execution.param_dtype
    )
    self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)

  def init_cache(self, batch: int, capacity: int) -> KeyValueCache:
    """An empty cache for `capacity` tokens a row."""
    config = self.config
    shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
    empty = jnp.zeros(shape, self.execution.dtype)
    return KeyValueCache(empty, empty)

  def __call__(
    self,
    x: jax.Array,
    positions: Positions,
    *,
    cache: KeyValueCache | None = None,
  ) -> tuple[jax.Array, KeyValueCache | None]:
    """Mixes T tokens with each other and with those in the cache.

    Args:
      x: [B, T, hidden], finite at padding.
      positions: places of the tokens; padding is neither seen nor stored.
      cache: of the calls before, or None; none where the tokens are split over
        `execution.sequence_axis`.

    Returns:
      y [B, T, hidden], and the cache with the tokens added (None for None).
      A token past the capacity of the cache is lost: the model checks.
    """
    q, gate, k, v = self._heads(x, positions)
    key_slot = positions.slot
    if cache is not None:
      self._check_cache(cache, x.shape[0])
      cache = _store(cache, k, v, positions.slot)
      k, v = cache
      key_slot = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    axis = self.execution.sequence_axis
    if axis is not None:
      k, v, key_slot = (gather_tokens(x, axis) for x in (k, v, key_slot))
    out = causal_attention(
      q, k, v, positions, key_slot, query_block=self.execution.query_block
    )
    out = out.reshape(*x.shape[:2], -1)
    gated = out * nnx.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
    return self.o_proj(gated), cache

  def _check_cache(self, cache: KeyValueCache, batch: int) -> None:
    # Rows of any capacity will do: the model checks that the tokens fit.
    keys = cache.keys if isinstance(cache, KeyValueCache) else None
    capacity = 1 if keys is None or keys.ndim < 2 else keys.shape[1]
    like = jax.eval_shape(lambda: self.init_cache(batch, capacity))
    check_cache(cache, like)

  def _heads(
    self, x: jax.Array, positions: Positions
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    config, lead = self.config, x.shape[:2]
    split = self.q_proj(x).reshape(*lead, -1, 2 * config.head_dim)
    q, gate = jnp.split(split, 2, axis=-1)  # [B, T, H, D] each
    k = self.k_proj(x).reshape(*lead, -1, config.head_dim)
    v = self.v_proj(x).reshape(*lead, -1, config.head_dim)
    turn = functools.partial(
      rotate,
      position=positions.rotary,
      rotary_dim=config.rotary_dim,
      theta=config.rope_theta,
    )
    q, k = turn(self.q_norm(q)), turn(self.k_norm(k))
    return q, gate.reshape(*lead, -1), k, v


def causal_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: Positions,
  key_slot: jax.Array,
  *,
  query_block: int,
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

  Returns:
    [B, T, H, D] in q's dtype. A query that sees no key, which only padding
    is, gives the mean of all values.
  """

  def attend(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    q, slot, first = block
    seen = key_slot[:, None] <= slot[:, :, None]  # [B, T, S]
    seen &= key_slot[:, None] >= first[:, :, None]
    # The function mixes half precision with float32, which a caller who forbids
    # promotion need not know.
    with (
      jax.default_matmul_precision("highest"),
      jax.numpy_dtype_promotion("standard"),
    ):
      return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])

  operands = q, positions.slot, positions.first
  length = q.shape[1]
  if length <= query_block:
    return attend(operands)
  blocks = jax.tree.map(lambda x: _blocks(x, query_block), operands)
  out = lax.map(jax.checkpoint(attend), blocks)  # [N, B, block, H, D]
  return jnp.swapaxes(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[
    :, :length
  ]


def _blocks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] -> [N, B, size, ...], padded with zeros."""
  pad = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
  return jnp.swapaxes(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 0, 1)


def _store(
  cache: KeyValueCache, k: jax.Array, v: jax.Array, slot: jax.Array
) -> KeyValueCache:
  """Writes [B, T, Hkv, D] keys and values into their slots."""
  row = jnp.arange(k.shape[0])[:, None]
  write = lambda old, new: old.at[row, slot].set(  # noqa: E731
    new.astype(old.dtype), mode="drop"
  )
  return KeyValueCache(write(cache.keys, k), write(cache.values, v))
