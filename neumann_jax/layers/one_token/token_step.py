"""A Gated DeltaNet block between its projections, and one token of it.

What lies between the projections is small and in many parts: with them in XLA,
a step of decoding is bound by launches on a GPU. There they are one kernel, see
`kernels.token_gpu`; what follows is what it computes. On a TPU only the rule
is one, see `delta_rule.one_token`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh, one_token, precision
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers.caches.cache import Cache
from neumann_jax.layers.convolution.short_conv import short_conv
from neumann_jax.layers.gates import Gates, log_decay
from neumann_jax.layers.kernels import token_gpu
from neumann_jax.layers.norms import gated_rms_norm, unit_norm


class Block(NamedTuple):
  """What is static.

  Attributes:
    key_heads: Hk.
    beta_max: 1, or 2 where a token may turn the state around.
    eps: of the gated norm.
  """

  key_heads: int
  beta_max: float
  eps: float


class Projected(NamedTuple):
  """What the projections make of T tokens, in the activation dtype.

  Attributes:
    qkv: [B, T, 2 Hk Dk + Hv Dv], raw columns.
    z: [B, T, Hv Dv], gate of the outputs.
    b: [B, T, Hv], write strength before its sigmoid.
    a: [B, T, Hv], step of the decay.
  """

  qkv: jax.Array
  z: jax.Array
  b: jax.Array
  a: jax.Array


class Weights(NamedTuple):
  """Parameters between the projections.

  Attributes:
    conv: [W, 2 Hk Dk + Hv Dv].
    a_log: [Hv] float32.
    dt_bias: [Hv] float32.
    norm: [Dv].
  """

  conv: jax.Array
  a_log: jax.Array
  dt_bias: jax.Array
  norm: jax.Array


def activated(
  block: Block,
  columns: Sequence[jax.Array],
  weights: Weights,
  dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """q, k and v, as the rule takes them, from convolved columns.

  Args:
    block: what is static.
    columns: of q, k and v, convolved: [B, T, H D] float32 each.
    weights: of the block.
    dtype: of the activations.
  """
  # Rounded once, after the activation: the convolution's sums are float32.
  q, k, v = (nnx.silu(x).astype(dtype) for x in columns)
  lead = v.shape[:2]
  # Normalised in float32 and then rounded: bfloat16 keys can be longer than 1
  # by their rounding, which `envelope(key_norm=)` is for.
  q, k = (
    unit_norm(x.reshape(*lead, block.key_heads, -1)).astype(dtype)
    for x in (q, k)
  )
  return q, k, v.reshape(*lead, -1, weights.norm.shape[0])


def split(x: jax.Array, weights: Weights, axis: int = -1) -> list[jax.Array]:
  """Takes the columns of q, k and v apart, which lie side by side."""
  values = weights.a_log.shape[0] * weights.norm.shape[0]
  keys = (x.shape[axis] - values) // 2
  return jnp.split(x, [keys, 2 * keys], axis=axis)


def gates(
  block: Block,
  b: jax.Array,
  a: jax.Array,
  weights: Weights,
  mask: jax.Array | None,
) -> Gates:
  """Decays and write strengths [B, T, Hv]; padding has neither."""
  # float32 from here on, and bfloat16 nowhere: a decay acts as often as there
  # are tokens after it.
  beta = block.beta_max * nnx.sigmoid(b.astype(jnp.float32))
  step = a.astype(jnp.float32) + weights.dt_bias
  found = Gates(log_decay(weights.a_log, step), beta)
  if mask is None:
    return found
  # A token that writes nothing and forgets nothing is as if it were not there.
  return Gates(*(jnp.where(mask[..., None], gate, 0) for gate in found))


def step(
  how: RuleOptions,
  block: Block,
  token: Projected,
  weights: Weights,
  cache: Cache,
  mask: jax.Array | None,
) -> tuple[jax.Array, Cache]:
  """One token: [B, 1, Hv Dv], normed and gated, and the cache after it.

  Args:
    how: the options of the rule.
    block: what is static.
    token: of T = 1.
    weights: of the block.
    cache: before the token.
    mask: [B, 1] bool or None; where it is False the cache stays as it is.
  """
  implementation = how.implementation
  mesh = on_mesh.mesh_of(cache.recurrent_state, token.qkv)
  if mesh.size > 1 and on_mesh.free_axes(mesh):
    # Columns of q, k and v lie side by side, so that no axis of theirs is one
    # of heads: XLA splits what a kernel of all of the block could not.
    implementation = "xla"
  # Inside `jax.shard_map` a kernel says of its results what of its operands.
  args = layout.varying_alike((token, weights, cache, mask))
  return backends.run(_OPERATION, implementation, (how, block), *args)


def in_xla(
  static: tuple[RuleOptions, Block],
  token: Projected,
  weights: Weights,
  cache: Cache,
  mask: jax.Array | None,
) -> tuple[jax.Array, Cache]:
  """`step` without a kernel of its own; static: the options and the block."""
  how, block = static
  columns, history = short_conv(
    token.qkv, weights.conv, history=cache.conv_state, mask=mask
  )
  heads = activated(block, split(columns, weights), weights, token.z.dtype)
  found = Operands(*heads, *gates(block, token.b, token.a, weights, mask))
  now = Operands(*(x[:, 0] for x in found))
  scale = precision.output_scale(None, now.q)
  out, state = one_token.step(how, now, scale, cache.recurrent_state)
  gate = token.z.reshape(out.shape)  # [B, Hv, Dv]
  y = gated_rms_norm(out, gate, weights.norm, block.eps)
  return y.reshape(token.z.shape), Cache(history, state)


def _refusal(static: tuple[RuleOptions, Block], *arrays: Any) -> str | None:
  _, block = static
  token, weights, cache, _ = arrays
  return token_gpu.refusal(
    block.key_heads, token.z.dtype, weights.conv, cache.recurrent_state
  )


def _launch(
  static: tuple[RuleOptions, Block],
  token: Projected,
  weights: Weights,
  cache: Cache,
  mask: jax.Array | None,
) -> tuple[jax.Array, Cache]:
  _, block = static
  live = jnp.ones_like(token.b[:, 0, 0], bool) if mask is None else mask[:, 0]
  live = layout.varying_as(live, [token.b])
  qkv, z, b, a = (x[:, 0] for x in token)
  y, *new = token_gpu.step(
    qkv,
    z,
    b,
    a,
    live.astype(jnp.int32),
    weights.conv,
    weights.a_log,
    weights.dt_bias,
    weights.norm,
    cache.conv_state,
    cache.recurrent_state,
    key_heads=block.key_heads,
    beta_max=block.beta_max,
    eps=block.eps,
  )
  return y[:, None], Cache(*new)


_OPERATION = backends.Operation(
  in_xla=in_xla, kernels={"gpu": backends.Kernel(_refusal, _launch)}
)
