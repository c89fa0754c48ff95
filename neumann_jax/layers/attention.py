"""Gated full attention of Qwen3-Next and Qwen3.5, with a key-value cache.

Keys are known by their slot, the number of the token in its row, so that one
comparison is the causal mask of prefill, decoding, padded and packed rows.
"""

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.delta_rule.isolation import clean
from neumann_jax.execution import Execution
from neumann_jax.layers.cache import KeyValueCache
from neumann_jax.layers.linear import linear
from neumann_jax.layers.mixer import Axes
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.positions import PADDING, Positions, rotate
from neumann_jax.model_config import ModelConfig
from neumann_jax.sequence_axis import gather_tokens

# A cache is read up to the first of these many slots that holds all tokens: at
# 256 a step is bound by the weights of its layers, and each further branch is
# one more program to compile.
_FIRST_PREFIX, _PREFIX_RATIO = 256, 4


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

  logical_axes: ClassVar[Mapping[str, Axes]] = {
    "q_proj/kernel": ("embed", "heads"),
    "k_proj/kernel": ("embed", "heads"),
    "v_proj/kernel": ("embed", "heads"),
    "q_proj/bias": ("heads",),
    "k_proj/bias": ("heads",),
    "v_proj/bias": ("heads",),
    "o_proj/kernel": ("heads", "embed"),
  }

  def __init__(
    self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
  ) -> None:
    self.config, self.dtype = config, execution.dtype
    self.set_execution(execution)
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
    # Each head's query and its gate lie side by side, as in a checkpoint.
    self.q_proj = make(config.hidden_size, 2 * heads)
    self.k_proj = make(config.hidden_size, shared)
    self.v_proj = make(config.hidden_size, shared)
    self.o_proj = make(heads, config.hidden_size)
    norm = functools.partial(
      RMSNorm, eps=config.rms_norm_eps, param_dtype=execution.param_dtype
    )
    self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)

  def set_execution(self, execution: Execution) -> None:
    """Takes `query_block` and `sequence_axis`; see `Mixer`."""
    self.query_block = execution.query_block
    self.sequence_axis = execution.sequence_axis

  def init_cache(self, batch: int, capacity: int) -> KeyValueCache:
    """An empty cache for `capacity` tokens a row."""
    config = self.config
    shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
    empty = jnp.zeros(shape, self.dtype)
    return KeyValueCache(empty, empty)

  def __call__(
    self,
    x: jax.Array,
    *,
    positions: Positions,
    cache: KeyValueCache | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, KeyValueCache | None]:
    """Mixes T tokens with each other and with those in the cache.

    Args:
      x: [B, T, hidden], finite at padding.
      positions: places of the tokens; padding is neither seen nor stored.
      cache: of the calls before, or None; none where the tokens are split over
        a sequence axis.
      segment_ids: `positions` know the documents; where it is given, what is
        not finite stays in its own.
      mask: not read, for `positions` know the padding.

    Returns:
      y [B, T, hidden], and the cache with the tokens added (None for None).
      A token past the capacity of the cache is lost: the model checks.
    """
    del mask
    q, gate, k, v = self._heads(x, positions)
    attend = functools.partial(
      causal_attention,
      query_block=self.query_block,
      packed=segment_ids is not None,
    )
    axis = self.sequence_axis
    if cache is not None:
      cache = _store(cache, k, v, positions.slot)
      out = _over_slots_in_use(attend, q, cache, positions)
    else:
      key_slot = positions.slot
      if axis is not None:
        # All keys go to every shard: key heads are few and such layers one in
        # four, so that a ring of shards would save little.
        k, v, key_slot = (gather_tokens(x, axis) for x in (k, v, key_slot))
      out = attend(q, k, v, positions, key_slot)
    out = out.reshape(*x.shape[:2], -1)  # [B, T, H D]
    # The sigmoid in float32: near 1 bfloat16 has steps of 2^-8.
    gated = out * nnx.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
    return self.o_proj(gated), cache

  def chunk_matrices(
    self,
    x: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> None:
    """None: softmax attention inverts nothing."""
    del x, segment_ids, mask

  def _heads(
    self, x: jax.Array, positions: Positions
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    config, lead = self.config, x.shape[:2]
    split = self.q_proj(x).reshape(
      *lead, -1, 2 * config.head_dim
    )  # [B, T, H, 2 D]
    q, gate = jnp.split(split, 2, axis=-1)  # [B, T, H, D] each
    k = self.k_proj(x).reshape(*lead, -1, config.head_dim)  # [B, T, Hkv, D]
    v = self.v_proj(x).reshape(*lead, -1, config.head_dim)  # [B, T, Hkv, D]
    turn = functools.partial(
      rotate,
      position=positions.rotary,
      rotary_dim=config.rotary_dim,
      theta=config.rope_theta,
      scaling=config.rope_scaling,
    )
    # Normalised before the rotation, which keeps norms, so that neither the
    # cache nor a later call needs to know the norm.
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
    bad = (~jnp.isfinite(x).all(axis=-1, keepdims=True) for x in (q, k, v))
    bad_q, bad_k, bad_v = bad  # [B, T, H, 1] and twice [B, S, Hkv, 1]
    spoilt = (bad_k | bad_v)[..., 0]  # [B, S, Hkv]
    q, k, v = clean(q, bad_q), clean(k, bad_k), clean(v, bad_v)

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
  found = jnp.repeat(found > 0, out.shape[2] // spoilt.shape[2], axis=2)
  return jnp.where(found[..., None], jnp.nan, out)


def _over_slots_in_use(
  attend: Callable[..., jax.Array],
  q: jax.Array,
  cache: KeyValueCache,
  positions: Positions,
) -> jax.Array:
  """Attention to a cache at the cost of its tokens, whatever its capacity.

  Args:
    attend: `causal_attention` with its options.
    q: [B, T, H, D].
    cache: with the keys of the queries.
    positions: of the queries.

  Returns:
    [B, T, H, D].
  """
  # One branch for each prefix, and not a loop over blocks of keys: a loop whose
  # length is data has no reverse derivative, and costs a launch for each block.
  sizes = [_FIRST_PREFIX]
  while sizes[-1] < cache.capacity:
    sizes.append(_PREFIX_RATIO * sizes[-1])
  sizes[-1] = cache.capacity

  def over(size: int) -> Callable[..., jax.Array]:
    slots = jnp.arange(size, dtype=jnp.int32)[None]
    return lambda q, keys, values, positions: attend(
      q, keys[:, :size], values[:, :size], positions, slots
    )

  # Padding sees nothing, so that its slot, past every cache, asks for nothing.
  slot = jnp.where(positions.slot == PADDING, 0, positions.slot)
  branch = jnp.sum(jnp.max(slot) >= jnp.array(sizes[:-1], jnp.int32))
  return lax.switch(
    branch, [over(size) for size in sizes], q, *cache, positions
  )


def _blocks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] -> [N, B, size, ...], padded with zeros."""
  pad = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
  return jnp.swapaxes(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 0, 1)


def _store(
  cache: KeyValueCache, k: jax.Array, v: jax.Array, slot: jax.Array
) -> KeyValueCache:
  """Writes [B, T, Hkv, D] keys and values into their slots."""
  # "drop" is what loses padding, whose slot lies past every cache.
  row = jnp.arange(k.shape[0])[:, None]  # [B, 1]
  write = lambda old, new: old.at[row, slot].set(  # noqa: E731
    new.astype(old.dtype), mode="drop"
  )
  return KeyValueCache(write(cache.keys, k), write(cache.values, v))
