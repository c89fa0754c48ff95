"""The U-Net of DDPM in all forms that published weights have.

Residual blocks and attention on scales joined by concatenation (Ho et al.
2020), with the options of ADM (Dhariwal and Nichol 2021) and of diffusers'
UNet2DModel, whose names for layers are used here. Axis letters: N images, H W C
image, D width of a scale, E width of the embedded step.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.foreign_files.messages import clean
from posterior_jax.priors.nets import ddpm_blocks
from posterior_jax.priors.nets.convolution import Conv
from posterior_jax.priors.nets.ddpm_scales import (
  Down,
  Embedding,
  Layers,
  Middle,
  Up,
)
from posterior_jax.priors.parametrisation import VP, Parametrisation


@dataclasses.dataclass(frozen=True)
class DDPMConfig:
  """Shape of the network, and what it was trained to answer.

  Tuples have one entry per scale, the full resolution first.

  Attributes:
    widths: D of every scale.
    blocks: residual blocks of a scale on the way down; one more on the way up.
    attention: scales with attention after every block on the way down.
    attention_up: the same on the way up.
    attention_middle: whether there is attention in the middle.
    heads: of every attention, where head_width is None.
    head_width: channels of a head.
    down: "conv" or "residual", how sides are halved after every scale but the
      coarsest.
    up: the same for doubling, back to every scale but the coarsest.
    channels: C of the images.
    outputs: channels of the output, >= C; those after the first C (a variance)
      are left out.
    features: how many sines and cosines of the step.
    embedding: E.
    fourier: whether the waves' rates are stored with the weights.
    cos_first: order of cosines and sines.
    shift: subtracted from the count of waves in their rates.
    scale_shift: see `ddpm_blocks.ResidualBlock`.
    padding: see `ddpm_blocks.DownConv`.
    groups: of the norms.
    middle_groups: of the attention's norm in the middle, 0 without one.
    epsilon: of the norms.
    parametrisation: what the network was trained to answer.
  """

  widths: tuple[int, ...]
  blocks: int
  attention: tuple[bool, ...]
  attention_up: tuple[bool, ...]
  down: tuple[str, ...]
  up: tuple[str, ...]
  features: int
  embedding: int
  attention_middle: bool = True
  heads: int = 1
  head_width: int | None = None
  channels: int = 3
  outputs: int = 3
  fourier: bool = False
  cos_first: bool = True
  shift: float = 0.0
  scale_shift: bool = True
  padding: int = 1
  groups: int = 32
  middle_groups: int = 32
  epsilon: float = 1e-5
  parametrisation: Parametrisation = VP()  # noqa: RUF009  (frozen)

  def __post_init__(self):
    """Refuses sizes that make no network."""
    scales = len(self.widths)
    flags = len(self.attention), len(self.attention_up)
    changes = len(self.down), len(self.up)
    if not scales or {*flags} != {scales} or {*changes} != {scales - 1}:
      raise ValueError(
        "widths, attention and attention_up must name as many scales, at "
        f"least one, and down and up one less; got {clean(str(self))}"
      )
    sizes: tuple[int, ...] = (self.blocks, self.channels, self.embedding)
    sizes += self.groups, self.heads
    sizes += self.head_width or 1, self.middle_groups + 1, self.features - 3
    if min(*sizes, *self.widths) < 1 or self.features % 2:
      raise ValueError(
        "widths, blocks, channels, embedding, groups and heads must be "
        f"positive and features even and at least 4; got {clean(str(self))}"
      )
    if not self.shift < self.features // 2:
      raise ValueError(
        f"shift must be below half of features, {self.features // 2}, got "
        f"{self.shift}"
      )
    if self.outputs < self.channels:
      raise ValueError(
        f"outputs must be at least channels, {self.channels}, got "
        f"{self.outputs}"
      )
    flagged = zip(self.widths, self.attention, self.attention_up)
    attended = {width for width, *flags in flagged if any(flags)}
    attended |= {self.widths[-1]} if self.attention_middle else set()
    unit = self.head_width or self.heads
    for width in self.widths:
      if width % self.groups or (width in attended and width % unit):
        raise ValueError(
          f"widths must be divisible by groups, {self.groups}, and where there "
          f"is attention by heads or head_width, {unit}; got {width}"
        )
    if self.middle_groups and self.widths[-1] % self.middle_groups:
      raise ValueError(
        f"middle_groups must divide {self.widths[-1]}, got {self.middle_groups}"
      )

  @property
  def unit(self) -> int:
    """What the sides of an image must be divisible by."""
    return 2 ** (len(self.widths) - 1)

  def heads_of(self, width: int) -> int:
    """How many heads an attention of `width` channels has."""
    return width // self.head_width if self.head_width else self.heads

  def build(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "DDPMUNet":
    """The network with random parameters."""
    return DDPMUNet(self, dtype=dtype, rngs=rngs)


class DDPMUNet(nnx.Module):
  """[N, H, W, C] and [N] -> [N, H, W, C].

  Parameters are float32; `dtype` is that of the products.
  """

  def __init__(
    self,
    config: DDPMConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      config: shape of the network.
      dtype: of the products.
      rngs: streams of the initialisation.
    """
    layers = _layers(config, dtype, rngs)
    conv = functools.partial(Conv, kernel_size=(3, 3), dtype=dtype, rngs=rngs)
    first = config.widths[0]
    self.config = config
    count = config.features // 2
    self.time_proj = (
      ddpm_blocks.FourierRates(count, rngs=rngs) if config.fourier else None
    )
    self.time_embedding = Embedding(
      config.features, config.embedding, dtype=dtype, rngs=rngs
    )
    self.conv_in = conv(config.channels, first)
    self.down_blocks, kept = _down(config, layers)
    self.mid_block = Middle(
      layers,
      config.widths[-1],
      [config.middle_groups] * config.attention_middle,
    )
    self.up_blocks = _up(config, layers, kept)
    self.conv_norm_out = ddpm_blocks.group_norm(
      first, config.groups, config.epsilon, rngs
    )
    self.conv_out = conv(first, config.outputs)

  def __call__(self, x: jax.Array, noise: jax.Array) -> jax.Array:
    """The network's answer in float32.

    Args:
      x: [N, H, W, C], H and W divisible by `DDPMConfig.unit`.
      noise: [N], c_noise.

    Returns:
      [N, H, W, C] float32.
    """
    config, rates = self.config, self._rates()
    waves = ddpm_blocks.waves(noise, rates, cos_first=config.cos_first)
    embedded = nnx.silu(self.time_embedding(waves))  # [N, E]
    h = self.conv_in(x)
    kept = [h]
    for scale in self.down_blocks:
      kept += scale(kept[-1], embedded)
    h = self.mid_block(kept[-1], embedded)
    for scale in self.up_blocks:
      h = scale(h, kept, embedded)
    h = nnx.silu(self.conv_norm_out(h.astype(jnp.float32)))
    # ADM's networks answer a variance after the C channels of the noise.
    return self.conv_out(h)[..., : config.channels].astype(jnp.float32)

  def _rates(self) -> jax.Array | np.ndarray:
    if self.time_proj is not None:
      return self.time_proj()
    return ddpm_blocks.wave_rates(self.config.features // 2, self.config.shift)


def _layers(config: DDPMConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> Layers:
  parts: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
  norms = parts | {"epsilon": config.epsilon}

  def residual(entering: int, width: int, **options: Any):
    return ddpm_blocks.ResidualBlock(
      entering,
      width,
      embedding=config.embedding,
      groups=config.groups,
      scale_shift=config.scale_shift,
      **norms,
      **options,
    )

  def attention(width: int, groups: int = config.groups):
    heads = config.heads_of(width)
    return ddpm_blocks.Attention(width, heads=heads, groups=groups, **norms)

  def down(kind: str, width: int) -> nnx.Module:
    if kind == "residual":
      return residual(width, width, change="down")
    return ddpm_blocks.DownConv(width, padding=config.padding, **parts)

  def up(kind: str, width: int) -> nnx.Module:
    if kind == "residual":
      return residual(width, width, change="up")
    return ddpm_blocks.UpConv(width, **parts)

  return Layers(residual, attention, down, up)


def _down(config: DDPMConfig, layers: Layers) -> tuple[nnx.List, list[int]]:
  """Scales on the way down, and the widths of what they keep."""
  scales, kept = [], [config.widths[0]]
  for level, width in enumerate(config.widths):
    entering = [kept[-1]] + [width] * (config.blocks - 1)
    change = config.down[level : level + 1]
    attention = config.attention[level]
    scales.append(Down(layers, entering, width, attention, change))
    kept += [width] * (config.blocks + len(change))
  return nnx.List(scales), kept


def _up(config: DDPMConfig, layers: Layers, kept: list[int]) -> nnx.List:
  """Scales on the way up, the coarsest first."""
  # The channels that each block sees: its own and one output of the way down.
  scales, h = [], config.widths[-1]
  for level in reversed(range(len(config.widths))):
    width = config.widths[level]
    entering = []
    for _ in range(config.blocks + 1):
      entering.append(h + kept.pop())
      h = width
    change = config.up[level - 1 : level] if level else ()
    attention = config.attention_up[level]
    scales.append(Up(layers, entering, width, attention, change))
  return nnx.List(scales)
