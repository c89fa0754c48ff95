"""The Gated DeltaNet block of Qwen3.5 as a flax.nnx module.

Parameters are named and laid out as the `linear_attn` of a Qwen3.5 checkpoint,
transposed where Flax stores [in, out]. Gates and states are float32 whatever
the dtype of the activations: they decide what the layer remembers.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax import sequence_axis
from neumann_jax.chunk_inverse import dispatch
from neumann_jax.chunk_inverse.api import Gradient
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import inputs as operands
from neumann_jax.delta_rule import layout, wy
from neumann_jax.delta_rule.api import Form, check_gradient
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.recurrent import gated_delta_step
from neumann_jax.delta_rule.sequence_parallel import rule_over
from neumann_jax.layers.cache import Cache, check_cache
from neumann_jax.layers.linear import linear
from neumann_jax.layers.norms import GatedRMSNorm, unit_norm
from neumann_jax.layers.short_conv import short_conv

_SIZES = (
  "hidden_size",
  "num_key_heads",
  "num_value_heads",
  "key_head_dim",
  "value_head_dim",
  "conv_width",
)
# Ranges of the uniform draw behind A_log. "qwen" is the published start, which
# mostly forgets: log decays of -0.01 to -21 a token. "slow" gives about -0.001
# to -0.013, the regime in which chunks are hard to invert.
_DECAY_RANGES = {"qwen": (0.01, 16.0), "slow": (0.001, 0.01)}


class GatedDeltaNet(nnx.Module):
  """Gated DeltaNet token mixer, [B, T, hidden] -> [B, T, hidden].

  Projections to q|k|v, z, b and a; causal depthwise convolution and SiLU over
  q|k|v; beta = sigmoid(b); log decay -exp(A_log) softplus(a + dt_bias); unit q
  and k; the gated delta rule; RMSNorm gated by z; output projection. No
  biases. A checkpoint in bfloat16 differs in one rounding: beta stays float32.

  Args:
    hidden_size: width of the residual stream.
    num_key_heads: Hk.
    num_value_heads: Hv, a whole multiple of Hk.
    key_head_dim: Dk.
    value_head_dim: Dv.
    conv_width: W, taps of the short convolution.
    norm_eps: of the gated RMSNorm.
    decay_init: "qwen", A_log = log U(0.01, 16), or "slow", log U(0.001, 0.01),
      for a block that remembers before it is trained; dt_bias = 1 in both.
    chunk_size: C of the chunk-wise rule.
    spec: its inverse.
    fused: whether it takes u and w from one kernel, see `gated_delta_rule`.
    implementation: its back end.
    gradient: of its inverse, see `neumann_jax.inverse`; a fused rule has the
      implicit one only.
    sequence_axis: mesh axis that splits the tokens, or None. Calls are then
      made inside `jax.shard_map`, on a shard's tokens, at least W of them; the
      cache is the same in all shards.
    dtype: of the activations and of what the rule multiplies; the state and
      the gates are float32.
    param_dtype: of the parameters except A_log and dt_bias, which are float32.
    rngs: source of the initial parameters.

  Raises:
    ValueError: for a size or an option out of range.
  """

  def __init__(
    self,
    hidden_size: int,
    *,
    num_key_heads: int = 16,
    num_value_heads: int = 32,
    key_head_dim: int = 128,
    value_head_dim: int = 128,
    conv_width: int = 4,
    norm_eps: float = 1e-6,
    decay_init: Literal["qwen", "slow"] = "qwen",
    chunk_size: int = 64,
    spec: InverseSpec = InverseSpec(),  # noqa: B008  (frozen)
    fused: bool = False,
    implementation: str = "auto",
    gradient: Gradient = "implicit",
    sequence_axis: str | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    self.hidden_size, self.conv_width = hidden_size, conv_width
    self.num_key_heads, self.num_value_heads = num_key_heads, num_value_heads
    self.key_head_dim, self.value_head_dim = key_head_dim, value_head_dim
    self.dtype = dtype
    self._check_sizes(decay_init)
    self.set_rule(
      chunk_size=chunk_size,
      spec=spec,
      fused=fused,
      implementation=implementation,
      gradient=gradient,
      sequence_axis=sequence_axis,
    )
    make = functools.partial(
      linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    value_dim = num_value_heads * value_head_dim
    self.in_proj_qkv = make(hidden_size, self.conv_dim)
    self.in_proj_z = make(hidden_size, value_dim)
    self.in_proj_b = make(hidden_size, num_value_heads)
    self.in_proj_a = make(hidden_size, num_value_heads)
    self.conv1d = nnx.Param(
      _uniform(rngs, (conv_width, self.conv_dim), -1, 1).astype(param_dtype)
      * conv_width**-0.5
    )  # [W, 2 Hk Dk + Hv Dv]
    rate = _uniform(rngs, (num_value_heads,), *_DECAY_RANGES[decay_init])
    self.A_log = nnx.Param(jnp.log(rate))
    self.dt_bias = nnx.Param(jnp.ones(num_value_heads, jnp.float32))
    self.norm = GatedRMSNorm(
      value_head_dim, eps=norm_eps, param_dtype=param_dtype
    )
    self.out_proj = make(value_dim, hidden_size)

  def set_rule(
    self,
    *,
    chunk_size: int,
    spec: InverseSpec,
    fused: bool,
    implementation: str,
    gradient: Gradient,
    sequence_axis: str | None,
  ) -> None:
    """Chooses how the rule is computed; arguments as of the block.

    Raises:
      ValueError: if it cannot be computed so.
    """
    dispatch.check(implementation, spec, chunk_size)
    if fused:
      k, v = (
        jax.ShapeDtypeStruct((1, 1, 1, width), self.dtype)
        for width in (self.key_head_dim, self.value_head_dim)
      )
      wy.check(implementation, spec, chunk_size, k, v)
    check_gradient(gradient, fused=fused)
    self.chunk_size, self.spec, self.fused = chunk_size, spec, fused
    self.gradient = gradient
    self.implementation, self.sequence_axis = implementation, sequence_axis

  @property
  def conv_dim(self) -> int:
    """Channels of q|k|v: 2 Hk Dk + Hv Dv."""
    keys = self.num_key_heads * self.key_head_dim
    return 2 * keys + self.num_value_heads * self.value_head_dim

  def init_cache(self, batch: int) -> Cache:
    """The cache before the first token, all zeros."""
    state = (self.num_value_heads, self.key_head_dim, self.value_head_dim)
    return Cache(
      jnp.zeros((batch, self.conv_dim, self.conv_width), self.dtype),
      jnp.zeros((batch, *state), jnp.float32),
    )

  def __call__(
    self,
    x: jax.Array,
    *,
    cache: Cache | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Mixes T tokens; one token takes the recurrent form, more the chunks.

    Args:
      x: [B, T, hidden] floating point.
      cache: from the call before, or None at a start.
      segment_ids: [B, T] integers, non-decreasing along a row: documents that
        see nothing of each other. The cache enters the first document and
        leaves the last.
      mask: [B, T], nonzero at real tokens. Padding, left of the first tokens
        or right of the last ones, neither writes, decays nor shifts the cache,
        and its output is 0.

    Returns:
      y [B, T, hidden] in the activation dtype, and the cache after the last
      token.

    Raises:
      TypeError: if x is not floating point.
      ValueError: for a shape or a value out of range, or if both segment_ids
        and mask are given, or mask with a sequence_axis.
    """
    self._check_inputs(x, cache, segment_ids, mask)
    if cache is None:
      cache = self.init_cache(x.shape[0])
    x, mask = self._masked(x, mask)
    inputs, conv_state = self._operands(x, cache.conv_state, segment_ids, mask)
    state = cache.recurrent_state
    if x.shape[1] == 1 and self.sequence_axis is None:
      token = Operands(*(operand[:, 0] for operand in inputs))
      out, state = gated_delta_step(*token, state)
      out = out[:, None]  # [B, 1, Hv, Dv]
    else:
      out, state = rule_over(self.sequence_axis)(
        inputs,
        Form(
          self.chunk_size,
          self.spec,
          self.implementation,
          self.fused,
          self.gradient,
        ),
        initial_state=state,
        segment_ids=segment_ids,
      )
    gate = self.in_proj_z(x).reshape(out.shape)  # [B, T, Hv, Dv]
    y = self.norm(out, gate)
    y = self.out_proj(y.reshape(*x.shape[:2], -1))
    return y, Cache(conv_state, state)

  def chunk_matrices(
    self,
    x: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> layout.ChunkMatrices:
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
    self._check_inputs(x, None, segment_ids, mask)
    x, mask = self._masked(x, mask)
    history = self.init_cache(x.shape[0]).conv_state
    inputs, _ = self._operands(x, history, segment_ids, mask)
    return layout.chunk_matrices(
      inputs.k,
      inputs.log_decay,
      inputs.beta,
      segment_ids=segment_ids,
      chunk_size=self.chunk_size,
    )

  def _operands(
    self,
    x: jax.Array,
    history: jax.Array,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
  ) -> tuple[Operands, jax.Array]:
    qkv, history = short_conv(
      self.in_proj_qkv(x),
      self.conv1d[...],
      history=history,
      segment_ids=segment_ids,
      mask=mask,
      axis_name=self.sequence_axis,
    )
    qkv = nnx.silu(qkv).astype(self.dtype)  # [B, T, 2 Hk Dk + Hv Dv]
    keys = self.num_key_heads * self.key_head_dim
    q, k, v = jnp.split(qkv, [keys, 2 * keys], axis=-1)
    beta = nnx.sigmoid(self.in_proj_b(x).astype(jnp.float32))
    step = nnx.softplus(
      self.in_proj_a(x).astype(jnp.float32) + self.dt_bias[...]
    )
    log_decay = -jnp.exp(self.A_log[...]) * step  # [B, T, Hv]
    if mask is not None:
      beta = jnp.where(mask[..., None], beta, 0)
      log_decay = jnp.where(mask[..., None], log_decay, 0)
    lead = x.shape[:2]
    q, k = (
      unit_norm(x.reshape(*lead, self.num_key_heads, -1)).astype(self.dtype)
      for x in (q, k)
    )
    v = v.reshape(*lead, self.num_value_heads, -1)
    return Operands(q, k, v, log_decay, beta), history

  def _masked(
    self, x: jax.Array, mask: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Zeros padding, by selection: it may hold anything, NaN included."""
    x = x.astype(self.dtype)
    if mask is None:
      return x, None
    mask = jnp.asarray(mask).astype(bool)
    return jnp.where(mask[..., None], x, 0), mask

  def _check_sizes(self, decay_init: str) -> None:
    for name in _SIZES:
      size = getattr(self, name)
      if not isinstance(size, int):
        raise ValueError(f"{name} must be an integer, got {size!r}")
      if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    if self.num_value_heads % self.num_key_heads:
      raise ValueError(
        "num_value_heads must be a whole multiple of num_key_heads, got "
        f"{self.num_value_heads} and {self.num_key_heads}"
      )
    if decay_init not in _DECAY_RANGES:
      raise ValueError(
        f'decay_init must be "qwen" or "slow", got {decay_init!r}'
      )

  def _check_inputs(
    self,
    x: jax.Array,
    cache: Cache | None,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
  ) -> None:
    sequence_axis.check(self.sequence_axis, mask)
    operands.check_hidden(x, self.hidden_size, segment_ids, mask)
    if cache is not None:
      like = jax.eval_shape(functools.partial(self.init_cache, x.shape[0]))
      check_cache(cache, like)


def _uniform(
  rngs: nnx.Rngs, shape: tuple[int, ...], low: float, high: float
) -> jax.Array:
  return jax.random.uniform(
    rngs.params(), shape, jnp.float32, minval=low, maxval=high
  )
