"""Scales of a DDPM U-Net: what happens between two changes of resolution.

Attributes are named as the layers of diffusers' UNet2DModel. Axis letters: N
images, H W height and width, D channels, E width of the embedded step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.priors.nets.ddpm_blocks import Attention, ResidualBlock


class Layers(NamedTuple):
  """Makers of the layers of one network.

  Attributes:
    residual: of entering and leaving channels.
    attention: of channels and, if not all norms have as many, groups.
    down: of kind and channels, halves the sides.
    up: of kind and channels, doubles them.
  """

  residual: Callable[..., ResidualBlock]
  attention: Callable[..., Attention]
  down: Callable[[str, int], nnx.Module]
  up: Callable[[str, int], nnx.Module]


class _Scale(nnx.Module):
  """Residual blocks, each with attention after it or none with."""

  def __init__(
    self, layers: Layers, entering: Sequence[int], width: int, attention: bool
  ):
    self.resnets = nnx.List(layers.residual(e, width) for e in entering)
    self.attentions = nnx.List(
      layers.attention(width) for _ in entering if attention
    )

  def block(self, i: int, h: jax.Array, embedded: jax.Array) -> jax.Array:
    """The residual block i and its attention."""
    h = self.resnets[i](h, embedded)
    return self.attentions[i](h) if len(self.attentions) else h


class Down(_Scale):
  """A scale on the way down, all of whose outputs are kept."""

  def __init__(
    self,
    layers: Layers,
    entering: Sequence[int],
    width: int,
    attention: bool,
    change: Sequence[str],
  ):
    """Makes the parameters.

    Args:
      layers: makers.
      entering: channels that each residual block sees.
      width: D.
      attention: whether it follows every block.
      change: the kind of what halves the sides, or nothing.
    """
    super().__init__(layers, entering, width, attention)
    self.downsamplers = nnx.List(layers.down(kind, width) for kind in change)

  def __call__(self, h: jax.Array, embedded: jax.Array) -> list[jax.Array]:
    """Outputs of the blocks and of the change, in this order."""
    kept = []
    for i in range(len(self.resnets)):
      h = self.block(i, h, embedded)
      kept.append(h)
    return kept + [_changed(c, h, embedded) for c in self.downsamplers]


class Up(_Scale):
  """A scale on the way up, whose blocks see what was kept as well."""

  def __init__(
    self,
    layers: Layers,
    entering: Sequence[int],
    width: int,
    attention: bool,
    change: Sequence[str],
  ):
    """Makes the parameters; see `Down`."""
    super().__init__(layers, entering, width, attention)
    self.upsamplers = nnx.List(layers.up(kind, width) for kind in change)

  def __call__(
    self, h: jax.Array, kept: list[jax.Array], embedded: jax.Array
  ) -> jax.Array:
    """The scale's output; takes one entry per block off the end of `kept`."""
    for i in range(len(self.resnets)):
      # In reverse of the way down: the finest output was kept first.
      h = self.block(i, jnp.concatenate([h, kept.pop()], -1), embedded)
    for change in self.upsamplers:
      h = _changed(change, h, embedded)
    return h


class Middle(nnx.Module):
  """A residual block, attention and a residual block."""

  def __init__(self, layers: Layers, width: int, attention: Sequence[int]):
    """Makes the parameters.

    Args:
      layers: makers.
      width: D.
      attention: groups of the norm of the one attention, or nothing.
    """
    self.resnets = nnx.List(layers.residual(width, width) for _ in range(2))
    self.attentions = nnx.List(
      layers.attention(width, groups) for groups in attention
    )

  def __call__(self, h: jax.Array, embedded: jax.Array) -> jax.Array:
    """[N, H, W, D] and [N, E]."""
    h = self.resnets[0](h, embedded)
    for attention in self.attentions:
      h = attention(h)
    return self.resnets[1](h, embedded)


class Embedding(nnx.Module):
  """The waves of a step through two layers."""

  def __init__(
    self, features: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    """Makes the parameters, `width` being E."""
    linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
    self.linear_1 = linear(features, width)
    self.linear_2 = linear(width, width)

  def __call__(self, waves: jax.Array) -> jax.Array:
    """[N, features] -> [N, E]."""
    return self.linear_2(nnx.silu(self.linear_1(waves)))


def _changed(
  change: nnx.Module, h: jax.Array, embedded: jax.Array
) -> jax.Array:
  """Resamples; residual blocks are told of the step while they do."""
  if isinstance(change, ResidualBlock):
    return change(h, embedded)
  return change(h)
