"""The Gated DeltaNet block of Qwen3.5 as a flax.nnx module.

Parameters are named and laid out as the `linear_attn` of a Qwen3.5 checkpoint,
transposed where Flax stores [in, out]. Gates and states are float32 whatever
the dtype of the activations: they decide what the layer remembers.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.delta_rule.chunks import wy
from neumann_jax.delta_rule.chunks.chunk_matrix import ChunkMatrices
from neumann_jax.execution import Execution
from neumann_jax.layers import delta_call
from neumann_jax.layers.caches.cache import Cache
from neumann_jax.layers.linear import linear
from neumann_jax.layers.mixer import Axes
from neumann_jax.layers.norms import GatedRMSNorm
from neumann_jax.layers.one_token.token_step import Block, Weights
from neumann_jax.layers.positions import Positions
from neumann_jax.model_config import ModelConfig

# Ranges of the uniform draw behind A_log. "qwen" is the published start, which
# mostly forgets: log decays of -0.01 to -21 a token. "slow" gives about -0.001
# to -0.013, the regime in which chunks are hard to invert.
_DECAY_RANGES = {"qwen": (0.01, 16.0), "slow": (0.001, 0.01)}


class GatedDeltaNet(nnx.Module):
  """Gated DeltaNet token mixer, [B, T, hidden] -> [B, T, hidden].

  Projections to q|k|v, z, b and a; causal depthwise convolution and SiLU over
  q|k|v; beta = sigmoid(b), or twice that with `config.allow_neg_eigval`; log
  decay -exp(A_log) softplus(a + dt_bias); unit q and k; the gated delta rule;
  RMSNorm gated by z; output projection. No biases. A checkpoint in bfloat16
  differs in one rounding: beta stays float32.

  Args:
    config: the architecture; `hidden_size`, `rms_norm_eps` and the sizes that
      begin with `linear_` are read.
    execution: how it is computed. With a `sequence_axis` calls are made inside
      `jax.shard_map`, on a shard's tokens, at least W of them, and the cache is
      the same in all shards. A_log and dt_bias are float32 parameters whatever
      `param_dtype` is.
    decay_init: "qwen", A_log = log U(0.01, 16), or "slow", log U(0.001, 0.01),
      for a block that remembers before it is trained; dt_bias = 1 in both.
    rngs: source of the initial parameters.

  Raises:
    ValueError: for an unknown start, or a kernel that cannot run these heads.

  Example:
    >>> import jax.numpy as jnp
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> config = nj.ModelConfig(hidden_size=16)
    >>> layer = nj.GatedDeltaNet(config, rngs=nnx.Rngs(0))
    >>> y, cache = nnx.jit(lambda layer, x: layer(x))(
    ...   layer, jnp.ones((2, 5, 16))
    ... )
    >>> y.shape, cache.recurrent_state.shape
    ((2, 5, 16), (2, 8, 32, 32))
  """

  logical_axes: ClassVar[Mapping[str, Axes]] = {
    "in_proj_qkv/kernel": ("embed", "heads"),
    "in_proj_z/kernel": ("embed", "heads"),
    "in_proj_b/kernel": ("embed", "heads"),
    "in_proj_a/kernel": ("embed", "heads"),
    "out_proj/kernel": ("heads", "embed"),
    "conv1d": (None, "heads"),
    "A_log": ("heads",),
    "dt_bias": ("heads",),
  }

  def __init__(
    self,
    config: ModelConfig,
    execution: Execution = Execution(),  # noqa: B008  (frozen)
    *,
    decay_init: Literal["qwen", "slow"] = "qwen",
    rngs: nnx.Rngs,
  ) -> None:
    if decay_init not in _DECAY_RANGES:
      raise ValueError(
        f'decay_init must be "qwen" or "slow", got {decay_init!r}'
      )
    self.config, self.dtype = config, execution.dtype
    self.set_execution(execution)
    make = functools.partial(
      linear,
      dtype=execution.dtype,
      param_dtype=execution.param_dtype,
      rngs=rngs,
    )
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    value_dim = heads * config.linear_value_head_dim
    self.in_proj_qkv = make(hidden, self.conv_dim)
    self.in_proj_z = make(hidden, value_dim)
    self.in_proj_b = make(hidden, heads)
    self.in_proj_a = make(hidden, heads)
    width = config.linear_conv_kernel_dim
    self.conv1d = nnx.Param(
      _uniform(rngs, (width, self.conv_dim), -1, 1).astype(
        execution.param_dtype
      )
      * width**-0.5
    )  # [W, 2 Hk Dk + Hv Dv]
    # float32 whatever param_dtype is: A_log is the exponent of a decay that
    # acts over thousands of tokens.
    rate = _uniform(rngs, (heads,), *_DECAY_RANGES[decay_init])
    self.A_log = nnx.Param(jnp.log(rate))  # [Hv]
    self.dt_bias = nnx.Param(jnp.ones(heads, jnp.float32))  # [Hv]
    self.norm = GatedRMSNorm(
      config.linear_value_head_dim,
      eps=config.rms_norm_eps,
      param_dtype=execution.param_dtype,
    )
    self.out_proj = make(value_dim, hidden)

  def set_execution(self, execution: Execution) -> None:
    """Takes `rule` of the options; see `Mixer`.

    Raises:
      ValueError: if the rule has no kernel for these heads.
    """
    rule = execution.rule
    # Asked now and not at the first call: head sizes are known, and a refusal
    # should come before anything is compiled.
    if rule.fused:
      k, v = (
        jax.ShapeDtypeStruct((1, 1, 1, width), self.dtype)
        for width in (
          self.config.linear_key_head_dim,
          self.config.linear_value_head_dim,
        )
      )
      wy.check(rule, k, v)
    self.rule = rule

  @property
  def conv_dim(self) -> int:
    """Channels of q|k|v: 2 Hk Dk + Hv Dv."""
    config = self.config
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return 2 * keys + values

  def init_cache(self, batch: int, capacity: int | None = None) -> Cache:
    """The cache before the first token, all zeros.

    Args:
      batch: B.
      capacity: not read: the state has one size for any number of tokens.
    """
    del capacity
    config = self.config
    state = (
      config.linear_num_value_heads,
      config.linear_key_head_dim,
      config.linear_value_head_dim,
    )
    columns = (batch, self.conv_dim, config.linear_conv_kernel_dim)
    return Cache(
      jnp.zeros(columns, self.dtype), jnp.zeros((batch, *state), jnp.float32)
    )

  def __call__(
    self,
    x: jax.Array,
    *,
    positions: Positions | None = None,
    cache: Cache | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Mixes T tokens; one token takes the recurrent form, more the chunks.

    Args:
      x: [B, T, hidden] floating point.
      positions: not read: the recurrence keeps the order of the tokens.
      cache: from the call before, or None at a start.
      segment_ids: [B, T] integers, one of its own for each document, which
        see nothing of each other. The cache enters the first document and
        leaves the last; one of B M rows has a row for each document.
      mask: [B, T] bool or integers, nonzero at real tokens. Padding, left of
        the first tokens or right of the last ones, neither writes, decays nor
        shifts the cache, and its output is 0.

    Returns:
      y [B, T, hidden] in the activation dtype, and the cache after the last
      token.

    Raises:
      TypeError: if x is not floating point.
      ValueError: for a shape or a value out of range, or if both segment_ids
        and mask are given, or mask with a sequence_axis.
    """
    del positions
    return delta_call.mixed(self, x, cache, segment_ids, mask)

  def chunk_matrices(
    self,
    x: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> ChunkMatrices:
    """The matrices that the block would invert for x, and their gates.

    Args:
      x: [B, T, hidden], as for `__call__` without a cache.
      segment_ids: [B, T] integers or None.
      mask: [B, T] or None.

    Returns:
      a [B, Hv, N, C, C], beta and log_decay [B, Hv, N, C], float32.

    Raises:
      TypeError: if x is not floating point.
      ValueError: as for `__call__`.
    """
    return delta_call.matrices(self, x, segment_ids, mask)

  def between(self) -> Weights:
    """The parameters between the projections."""
    named = self.conv1d, self.A_log, self.dt_bias, self.norm.weight
    return Weights(*(x[...] for x in named))

  def block(self) -> Block:
    """What is static between the projections."""
    config = self.config
    return Block(
      config.linear_num_key_heads,
      2.0 if config.allow_neg_eigval else 1.0,
      config.rms_norm_eps,
    )


def _uniform(
  rngs: nnx.Rngs, shape: tuple[int, ...], low: float, high: float
) -> jax.Array:
  return jax.random.uniform(
    rngs.params(), shape, jnp.float32, minval=low, maxval=high
  )
