"""A decoder layer's step of one row, where one kernel computes all of it.

A step of decoding one row is bound by how fast weights are read and by what
lies between the products. On a GPU a layer is one kernel, see
`kernels.layer_gpu`; what follows is what it computes.
"""

import functools
from typing import Any

import jax

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers.attention import GatedAttention
from neumann_jax.layers.caches.cache import (
  Cache,
  KeyValueCache,
  LayerCache,
  check_cache,
)
from neumann_jax.layers.kernels import layer_gpu, layer_plan
from neumann_jax.layers.kernels.layer_weights import (
  Attention,
  Mixed,
  Operands,
  Static,
)
from neumann_jax.layers.norms import RMSNorm, rms_norm
from neumann_jax.layers.one_kernel import row_weights
from neumann_jax.layers.one_token import (
  attention_token,
  row_products,
  token_step,
)
from neumann_jax.layers.one_token.token_step import Block, Projected, Weights
from neumann_jax.layers.positions import Positions

# That ask for the kernel, and what runs where it does not.
_NAMES = ("auto", "gpu")
_PARTS = "kernels of a layer's parts"
_NOT_PLAIN = (
  "one kernel takes layers of RMSNorm, SwiGLU and dense projections without "
  "bias or adapters"
)


def whole(
  x: jax.Array,
  norm: Any,
  mixer: Any,
  inner_norm: Any,
  feed_forward: Any,
  cache: Any,
  positions: Positions,
) -> tuple[jax.Array, LayerCache] | None:
  """The layer's output and the cache after the token, or None.

  None where x is not one token of one row, the layer not of a Gated DeltaNet
  block or full attention and a SwiGLU, or no kernel could compute it.

  Args:
    x: [B, T, K].
    norm: of the mixer's input.
    mixer: any mixer.
    inner_norm: of the input of the second half.
    feed_forward: any second half.
    cache: of the mixer, or None.
    positions: of the tokens.

  Raises:
    ValueError: for a cache of another layer.
  """
  if x.shape[:2] != (1, 1) or cache is None:
    return None
  if any(array.shape[0] != 1 for array in cache):
    return None
  half = row_weights.first_half(mixer, norm, cache, positions)
  if half is None:
    return None
  # The kernel goes by these shapes, and the mixer is not asked any more.
  check_cache(cache, jax.eval_shape(half.empty))
  name, eps = half.how.implementation, half.block.eps
  second = row_weights.second_half(inner_norm, feed_forward)
  plain = row_weights.plain(half.layers) and type(norm) is RMSNorm
  if second is None or not plain:
    _say(name, _NOT_PLAIN)
    return None
  if norm.eps != eps or inner_norm.eps != eps:
    _say(name, "its norms must have one eps")
    return None
  if type(mixer) is GatedAttention and mixer.attention != "auto":
    _say(name, f"attention={mixer.attention!r} is asked for")
    return None
  given = Operands(x, second, half.weights(), tuple(cache))
  found = _run(half.how, half.block, given)
  return None if found is None else (found[0], type(cache)(*found[1:]))


def after_mixer(
  implementation: str,
  x: jax.Array,
  mixed: jax.Array,
  out: Any,
  norm: Any,
  feed_forward: Any,
) -> jax.Array | None:
  """y + feed_forward(norm(y)) of y = x + out(mixed), or None as of `whole`.

  Args:
    implementation: as of `RuleOptions`.
    x: [B, T, K].
    mixed: [B, T, R], of a mixer, before its last projection.
    out: that projection.
    norm: of the second half.
    feed_forward: any second half.
  """
  if x.shape[:2] != (1, 1):
    return None
  weights = row_weights.second_half(norm, feed_forward)
  if weights is None or not row_weights.plain([out]):
    _say(implementation, _NOT_PLAIN)
    return None
  left = Mixed(mixed.reshape(-1), out.kernel[...])
  how = RuleOptions(implementation=implementation)
  found = _run(how, Block(0, 1.0, norm.eps), Operands(x, weights, left))
  return None if found is None else found[0]


def _run(
  how: RuleOptions, block: Block, given: Operands
) -> tuple[jax.Array, ...] | None:
  """The output and what is kept, or None where the kernel does not run."""
  if how.implementation not in _NAMES:
    return None
  # Asked here, and not left to the operation: instead of the kernel run those
  # of the layer's parts, and not the XLA form.
  reason = _refusal((how, block), given)
  mesh = on_mesh.mesh_of(*jax.tree.leaves(given))
  if how.sequence_axis is not None:
    reason = "tokens are split over devices"
  elif mesh.size > 1 and on_mesh.free_axes(mesh):
    reason = "it runs on one device, and there is a mesh"
  if reason is not None:
    _say(how.implementation, reason)
    return None
  # Inside `jax.shard_map` a kernel says of its results what of its operands.
  given = layout.varying_alike(given)
  return backends.run(_OPERATION, how.implementation, (how, block), given)


def _say(implementation: str, reason: str) -> None:
  if implementation in _NAMES:
    backends.say_fallback(implementation, "gpu", reason, _PARTS)


def _in_xla(
  static: tuple[RuleOptions, Block], given: Operands
) -> tuple[jax.Array, ...]:
  block, (x, weights, first, kept) = static[1], given
  multiply = functools.partial(row_products.in_xla, None)
  if isinstance(first, Mixed):
    y = first.row.reshape(1, 1, -1)
  else:
    inner = rms_norm(x, first.norm, block.eps)
    projected = multiply((inner,), first.projections)
    if isinstance(first, Attention):
      y, kept = attention_token.one_token(
        projected,
        (first.q_norm, first.k_norm),
        (first.cos, first.sin),
        first.places,
        KeyValueCache(*kept),
        block.eps,
      )
    else:
      between = Weights(*first.between)
      token = Projected(*projected)
      y, kept = token_step.in_xla(static, token, between, Cache(*kept), None)
  x = x + multiply((y,), (first.out,))[0]
  inner = rms_norm(x, weights.norm, block.eps)
  gate, up = multiply((inner,), (weights.gate, weights.up))
  return x + multiply((gate, up), (weights.down,))[0], *kept


def _refusal(static: tuple[RuleOptions, Block], given: Operands) -> str | None:
  return layer_plan.refusal(_static(static[1]), given)


def _launch(
  static: tuple[RuleOptions, Block], given: Operands
) -> tuple[jax.Array, ...]:
  row = given._replace(x=given.x.reshape(-1))
  y, *kept = layer_gpu.step(_static(static[1]), row)
  return y.reshape(given.x.shape), *kept


def _static(block: Block) -> Static:
  return Static(block.key_heads, block.beta_max, block.eps)


_OPERATION = backends.Operation(
  in_xla=_in_xla, kernels={"gpu": backends.Kernel(_refusal, _launch)}
)
