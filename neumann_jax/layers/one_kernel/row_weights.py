"""What one kernel of a layer takes of the layer's modules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers.attention import GatedAttention
from neumann_jax.layers.caches.cache import Cache, KeyValueCache
from neumann_jax.layers.feed_forward import SwiGLU
from neumann_jax.layers.gated_delta_net import GatedDeltaNet
from neumann_jax.layers.kernels.layer_weights import (
  Attention,
  FeedForward,
  Mixer,
)
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.one_token.token_step import Block
from neumann_jax.layers.positions import Positions


class FirstHalf(NamedTuple):
  """What a mixer hands in.

  Attributes:
    how: `implementation` and `sequence_axis` are read.
    block: what is static.
    empty: makes a cache of the shapes that the mixer takes.
    layers: its projections.
    weights: makes what the kernel takes, where these are plain.
  """

  how: RuleOptions
  block: Block
  empty: Callable[[], Any]
  layers: list[Any]
  weights: Callable[[], Mixer | Attention]


def first_half(
  mixer: Any, norm: Any, cache: Any, positions: Positions
) -> FirstHalf | None:
  """Of a Gated DeltaNet block or full attention; None for any other pair.

  Args:
    mixer: any mixer.
    norm: of its input.
    cache: of the mixer.
    positions: of the token.
  """
  kinds = type(mixer), type(cache)
  if kinds == (GatedDeltaNet, Cache):
    return _of_rule(mixer, norm)
  if kinds == (GatedAttention, KeyValueCache):
    return _of_attention(mixer, norm, cache, positions)
  return None


def _of_rule(mixer, norm):
  projections = [
    getattr(mixer, f"in_proj_{name}") for name in ("qkv", "z", "b", "a")
  ]
  layers = [*projections, mixer.out_proj]

  def weights():
    *given, out = (layer.kernel[...] for layer in layers)
    found: Any = [norm.weight[...], *given, *mixer.between(), out]
    return Mixer(*found)

  empty = functools.partial(mixer.init_cache, 1)
  return FirstHalf(mixer.rule, mixer.block(), empty, layers, weights)


def _of_attention(mixer, norm, cache, positions):
  layers = [mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj]

  def weights():
    *given, out = (layer.kernel[...] for layer in layers)
    norms = mixer.q_norm.weight[...], mixer.k_norm.weight[...]
    turn = (x.reshape(-1) for x in mixer.rotation(positions))
    places = jnp.stack([positions.slot[0, 0], positions.first[0, 0]])
    found: Any = [norm.weight[...], *given, *norms, out, *turn, places]
    return Attention(*found)

  how = RuleOptions(
    implementation=mixer.rows, sequence_axis=mixer.sequence_axis
  )
  block = Block(0, 1.0, mixer.config.rms_norm_eps)
  empty = functools.partial(mixer.init_cache, 1, cache.capacity)
  return FirstHalf(how, block, empty, layers, weights)


def second_half(norm: Any, feed_forward: Any) -> FeedForward | None:
  """Of an RMSNorm and a SwiGLU of plain projections; None for any others."""
  if type(norm) is not RMSNorm or type(feed_forward) is not SwiGLU:
    return None
  layers = [
    getattr(feed_forward, f"{name}_proj") for name in ("gate", "up", "down")
  ]
  if not plain(layers):
    return None
  kernels = (layer.kernel[...] for layer in layers)
  return FeedForward(norm.weight[...], *kernels)


def plain(layers: list[Any]) -> bool:
  """Whether all are dense projections without bias."""
  return all(type(one) is nnx.Linear and not one.use_bias for one in layers)
