"""A decoder layer's step of one row, where one kernel computes all of it.

A step of decoding one row is bound by how fast weights are read and by what
lies between the products. On a GPU a layer is one kernel, see
`kernels/layer_gpu.py`; what follows is what it computes.
"""

import functools
from typing import Any

import jax
from flax import nnx

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers import row_products, token_step
from neumann_jax.layers.caches.cache import Cache, check_cache
from neumann_jax.layers.feed_forward import SwiGLU
from neumann_jax.layers.gated_delta_net import GatedDeltaNet
from neumann_jax.layers.kernels import layer_gpu, layer_plan
from neumann_jax.layers.kernels.layer_plan import FeedForward, Mixed, Mixer
from neumann_jax.layers.norms import RMSNorm, rms_norm
from neumann_jax.layers.token_step import Block, Projected, Weights

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
) -> tuple[jax.Array, Cache] | None:
  """The layer's output and the cache after the token, or None.

  None where x is not one token of one row, the layer not of a Gated DeltaNet
  block and a SwiGLU, or no kernel could compute it.

  Args:
    x: [B, T, K].
    norm: of the mixer's input.
    mixer: any mixer.
    inner_norm: of the input of the second half.
    feed_forward: any second half.
    cache: of the mixer, or None.

  Raises:
    ValueError: for a cache of another layer.
  """
  if type(mixer) is not GatedDeltaNet or not isinstance(cache, Cache):
    return None
  if x.shape[:2] != (1, 1) or cache.conv_state.shape[0] != 1:
    return None
  # The kernel goes by these shapes, and the mixer is not asked any more.
  check_cache(cache, jax.eval_shape(lambda: mixer.init_cache(1)))
  projections = [
    getattr(mixer, f"in_proj_{name}") for name in ("qkv", "z", "b", "a")
  ]
  plain = _plain([*projections, mixer.out_proj])
  second = _weights(inner_norm, feed_forward)
  if not plain or second is None or type(norm) is not RMSNorm:
    _say(mixer.rule.implementation, _NOT_PLAIN)
    return None
  given: Any = [norm.weight[...]]
  given += [layer.kernel[...] for layer in projections]
  given += [*mixer.between(), mixer.out_proj.kernel[...]]
  block = mixer.block()
  if norm.eps != block.eps or inner_norm.eps != block.eps:
    _say(mixer.rule.implementation, "its norms must have one eps")
    return None
  return _run(mixer.rule, block, x, second, Mixer(*given), cache)


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
  weights = _weights(norm, feed_forward)
  if weights is None or not _plain([out]):
    _say(implementation, _NOT_PLAIN)
    return None
  left = Mixed(mixed.reshape(-1), out.kernel[...])
  how = RuleOptions(implementation=implementation)
  found = _run(how, Block(0, 1.0, norm.eps), x, weights, left, None)
  return None if found is None else found[0]


def _plain(layers: list[Any]) -> bool:
  return all(type(one) is nnx.Linear and not one.use_bias for one in layers)


def _weights(norm: Any, feed_forward: Any) -> FeedForward | None:
  if type(norm) is not RMSNorm or type(feed_forward) is not SwiGLU:
    return None
  layers = [
    getattr(feed_forward, f"{name}_proj") for name in ("gate", "up", "down")
  ]
  if not _plain(layers):
    return None
  kernels = (layer.kernel[...] for layer in layers)
  return FeedForward(norm.weight[...], *kernels)


def _run(
  how: RuleOptions,
  block: Block,
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  cache: Cache | None,
) -> Any:
  if how.implementation not in _NAMES:
    return None
  arrays = x, weights, mixer, cache
  # Asked here, and not left to the operation: instead of the kernel run those
  # of the layer's parts, and not the XLA form.
  reason = _refusal((how, block), *arrays)
  mesh = on_mesh.mesh_of(*jax.tree.leaves(arrays))
  if how.sequence_axis is not None:
    reason = "tokens are split over devices"
  elif mesh.size > 1 and on_mesh.free_axes(mesh):
    reason = "it runs on one device, and there is a mesh"
  if reason is not None:
    _say(how.implementation, reason)
    return None
  # Inside `jax.shard_map` a kernel says of its results what of its operands.
  arrays = layout.varying_alike(arrays)
  return backends.run(_OPERATION, how.implementation, (how, block), *arrays)


def _say(implementation: str, reason: str) -> None:
  if implementation in _NAMES:
    backends.say_fallback(implementation, "gpu", reason, _PARTS)


def _in_xla(
  static: tuple[RuleOptions, Block],
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  cache: Cache | None,
) -> tuple[jax.Array, Cache | None]:
  block = static[1]
  multiply = functools.partial(row_products.in_xla, None)
  if isinstance(mixer, Mixed):
    x = x + multiply((mixer.row.reshape(1, 1, -1),), (mixer.out,))[0]
  elif cache is not None:
    inner = rms_norm(x, mixer.norm, block.eps)
    token = Projected(*multiply((inner,), mixer.projections))
    between = Weights(*mixer.between)
    y, cache = token_step.in_xla(static, token, between, cache, None)
    x = x + multiply((y,), (mixer.out,))[0]
  inner = rms_norm(x, weights.norm, block.eps)
  gate, up = multiply((inner,), (weights.gate, weights.up))
  return x + multiply((gate, up), (weights.down,))[0], cache


def _refusal(
  static: tuple[RuleOptions, Block],
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  cache: Cache | None,
) -> str | None:
  kept = (None, None) if cache is None else cache
  return layer_plan.refusal(_static(static[1]), x, weights, mixer, *kept)


def _launch(
  static: tuple[RuleOptions, Block],
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  cache: Cache | None,
) -> tuple[jax.Array, Cache | None]:
  kept = (None, None) if cache is None else cache
  row = x.reshape(-1)
  found: Any = layer_gpu.step(_static(static[1]), row, weights, mixer, *kept)
  y, *new = found
  return y.reshape(x.shape), None if cache is None else Cache(*new)


def _static(block: Block) -> layer_plan.Static:
  return layer_plan.Static(block.key_heads, block.beta_max, block.eps)


_OPERATION = backends.Operation(
  in_xla=_in_xla, kernels={"gpu": backends.Kernel(_refusal, _launch)}
)
