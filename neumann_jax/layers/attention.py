"""Gated full attention of Qwen3-Next and Qwen3.5, with a key-value cache.

Keys are known by their slot, the number of the token in its row, so that one
comparison is the causal mask of prefill, decoding, padded and packed rows.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.delta_rule import layout
from neumann_jax.execution import Execution
from neumann_jax.layers import call_attention
from neumann_jax.layers.caches import cached_keys
from neumann_jax.layers.caches.cache import KeyValueCache, documents_a_row
from neumann_jax.layers.caches.cached_keys import KeyValues
from neumann_jax.layers.causal_attention import causal_attention
from neumann_jax.layers.kernels import library_attention
from neumann_jax.layers.kernels.library_attention import Attend
from neumann_jax.layers.linear import linear
from neumann_jax.layers.mixer import Axes, Tokens
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.one_token import attention_token, row_products
from neumann_jax.layers.positions import Positions, rotation
from neumann_jax.model_config import ModelConfig
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
    """Takes `attention`, `query_block`, and of the rule what runs on a mesh.

    See `Mixer`. Of the rule's implementation it reads what products of a single
    row take.

    Raises:
      ValueError: if a named attention cannot run with these heads.
    """
    self.attention = execution.attention
    self.query_block = execution.query_block
    self.sequence_axis = execution.sequence_axis
    self.rows = execution.rule.implementation
    self.mesh_axes = execution.rule.batch_axes, execution.rule.head_axis
    if self.attention not in ("auto", "xla"):
      config, shape = self.config, jax.ShapeDtypeStruct
      heads = config.num_attention_heads, config.num_key_value_heads
      q, k = (shape((1, 2, n, config.head_dim), self.dtype) for n in heads)
      library_attention.check(self.attention, q, k)

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
    cache: KeyValues | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, KeyValues | None]:
    """Mixes T tokens with each other and with those in the cache.

    Args:
      x: [B, T, hidden], finite at padding.
      positions: places of the tokens; padding is neither seen nor stored.
      cache: of the calls before, or None; none where the tokens are split over
        a sequence axis. One of B M rows has one for each document of a row;
        attention is that of XLA then.
      segment_ids: `positions` know the documents; where it is given, what is
        not finite stays in its own.
      mask: `positions` know the padding; None where there is none.

    Returns:
      y [B, T, hidden], and the cache with the tokens added (None for None).
      A token past the capacity of the cache is lost: the model checks.
    """
    tokens = Tokens(positions, segment_ids, mask)
    mixed, cache = self.before_output(x, tokens, cache)
    return self.output(mixed), cache

  def output(self, mixed: jax.Array) -> jax.Array:
    """The last projection, [B, T, H D] -> [B, T, hidden]."""
    return row_products.project(self.rows, mixed, [self.o_proj])[0]

  def before_output(
    self, x: jax.Array, tokens: Tokens, cache: KeyValues | None
  ) -> tuple[jax.Array, KeyValues | None]:
    """A call without its last projection: [B, T, H D] and the cache."""
    positions, segment_ids, mask = tokens
    q, gate, k, v = self._heads(x, positions)
    packed = segment_ids is not None
    documents = packed or mask is not None
    attend = functools.partial(
      causal_attention, query_block=self.query_block, packed=packed
    )
    axis = self.sequence_axis
    # With a cache what a row holds is known when it runs.
    within = self._within_call(q, k, packed, documents and cache is None)
    if cache is not None:
      document = None
      if documents_a_row(cache.keys.shape[-4], x.shape[0], segment_ids):
        assert segment_ids is not None
        document = layout.numbers(segment_ids)
        within = None
      cache = cached_keys.store(cache, k, v, positions.slot, document)
      after = functools.partial(
        cached_keys.over_slots_in_use, attend, q, cache, positions, document
      )
      if within is None:
        out = after()
      else:
        out = call_attention.by_what_is_known(
          *(within, after, (q, k, v), positions),
          documents=library_attention.takes_documents(self.attention, q, k),
        )
    elif within is not None:
      ids = call_attention.documents_of(positions) if documents else None
      out = within(q, k, v, ids)
    else:
      key_slot = positions.slot
      if axis is not None:
        # All keys go to every shard: key heads are few and such layers one in
        # four, so that a ring of shards would save little.
        k, v, key_slot = (gather_tokens(x, axis) for x in (k, v, key_slot))
      out = attend(q, k, v, positions, key_slot)
    out = out.reshape(*x.shape[:2], -1)  # [B, T, H D]
    return attention_token.after_gate(out, gate), cache

  def _within_call(
    self, q: jax.Array, k: jax.Array, packed: bool, documents: bool
  ) -> Attend | None:
    """Attention to the tokens of the call alone, by a library; or None."""
    if q.shape[1] == 1:
      # To the cache, then: on a GPU XLA's products of one query are faster
      # than cuDNN, 14 and 43 us over 4096 slots on one H200.
      return None
    elsewhere = functools.partial(
      call_attention.in_blocks, query_block=self.query_block
    )
    isolated = functools.partial(functools.partial, call_attention.isolated)
    return library_attention.choose(
      *(self.attention, q, k, self.sequence_axis, self.mesh_axes, elsewhere),
      documents=documents,
      around=isolated if packed else None,
    )

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
    layers = self.q_proj, self.k_proj, self.v_proj
    both, k, v = row_products.project(self.rows, x, layers)
    norms = self.q_norm.weight[...], self.k_norm.weight[...]
    turn = self.rotation(positions)
    eps = config.rms_norm_eps
    q, gate, k, v = attention_token.heads(both, k, v, norms, turn, eps)
    return q, gate.reshape(*lead, -1), k, v

  def rotation(self, positions: Positions) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the tokens' angles, [B, T, r / 2] each."""
    config = self.config
    return rotation(
      positions.rotary,
      config.rotary_dim,
      config.rope_theta,
      config.rope_scaling,
    )
