"""A fully convolutional denoiser: a U-Net under EDM scalings.

Residual blocks (Lim et al. 2017) modulated by the noise level, on four scales
joined by sums as in DRUNet (Zhang et al. 2021). There is no norm over space
and no attention, so what is computed at a pixel depends on its neighbourhood
alone and the same weights serve every size; most of the arithmetic is at half
resolution and below. Axis letters: N images, H W C image, D width of a scale,
E width of the embedded noise level.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.foreign_files.messages import clean, shown
from posterior_jax.priors.nets.convolution import Conv
from posterior_jax.priors.parametrisation import EDM


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Shape of the network.

  Attributes:
    channels: C of the images.
    widths: D of every scale, the full resolution first.
    blocks: residual blocks of every scale on the way down, and again on the
      way up; the coarsest scale has them once, twice as many.
    embedding: E.
    sigma_data: standard deviation of a clean pixel.
    sigma_max: largest noise level that the network has seen; it answers at
      larger ones for the image scaled down to this one.
    sigma_min: smallest one; it is told of this level where there is less.
    normed: whether a block sees its input over its root mean square, taken over
      the channels of a pixel, times a learned scale (RMSNorm), and not silu of
      it.
  """

  channels: int = 3
  widths: tuple[int, ...] = (48, 96, 160, 224)
  blocks: tuple[int, ...] = (1, 2, 2, 1)
  embedding: int = 128
  sigma_data: float = 0.5
  sigma_max: float = 80.0
  sigma_min: float = 0.01
  normed: bool = False

  def __post_init__(self):
    """Refuses sizes that make no network."""
    if len(self.widths) != len(self.blocks) or not self.widths:
      raise ValueError(
        "widths and blocks must name as many scales, at least one; got "
        f"{clean(str(self.widths))} and {clean(str(self.blocks))}"
      )
    sizes = (self.channels, self.embedding, *self.widths, *self.blocks)
    if min(sizes) < 1 or self.embedding % 2:
      raise ValueError(
        "channels, widths, blocks and embedding must be positive and the "
        f"embedding even; got {clean(str(self))}"
      )
    if not isinstance(self.normed, bool):
      raise ValueError(
        f"normed must be True or False, got {shown(self.normed)}"
      )
    EDM(self.sigma_data, self.sigma_max, self.sigma_min)  # refuses wrong ones

  @property
  def unit(self) -> int:
    """What the sides of an image must be divisible by."""
    return 2 ** (len(self.widths) - 1)

  @property
  def parametrisation(self) -> EDM:
    """EDM's, within the levels that the network has seen."""
    return EDM(self.sigma_data, self.sigma_max, self.sigma_min)

  def build(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "UNet":
    """The network with random parameters."""
    return UNet(self, dtype=dtype, rngs=rngs)


class _Block(nnx.Module):
  """x + conv(silu(modulate(conv(g x)))); the identity at initialisation.

  g is silu, or RMSNorm over the channels of a pixel.
  """

  def __init__(
    self,
    width: int,
    embedding: int,
    *,
    normed: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    conv, linear = _layers(dtype, rngs)
    zeros = nnx.initializers.zeros_init()
    norm = functools.partial(nnx.RMSNorm, width, dtype=dtype, rngs=rngs)
    self.norm = norm() if normed else None
    self.inner = conv(width, width)
    # Zeros: at initialisation every block is the identity, and the whole
    # network the linear estimate c_skip x (`edm`).
    self.outer = conv(width, width, kernel_init=zeros)
    self.modulation = linear(embedding, 2 * width, kernel_init=zeros)

  def __call__(self, x: jax.Array, noise: jax.Array) -> jax.Array:
    scale, shift = jnp.split(self.modulation(noise)[:, None, None], 2, -1)
    # flax has the mean square of bfloat16 in float32, and asks for promotion.
    with jax.numpy_dtype_promotion("standard"):
      h = nnx.silu(x) if self.norm is None else self.norm(x)
    h = self.inner(h) * (1 + scale) + shift
    return x + self.outer(nnx.silu(h))


class UNet(nnx.Module):
  """F of `edm`: [N, H, W, C] and [N] -> [N, H, W, C].

  Parameters are float32; `dtype` is that of the arithmetic.
  """

  def __init__(
    self,
    config: UNetConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      config: shape of the network.
      dtype: of the arithmetic.
      rngs: streams of the initialisation.
    """
    conv, linear = _layers(dtype, rngs)
    *finer, coarsest = config.widths
    first, last = config.widths[0], config.blocks[-1]
    pairs = list(zip(config.widths, config.widths[1:]))

    def stage(width: int, count: int) -> nnx.List:
      block = functools.partial(
        _Block, normed=config.normed, dtype=dtype, rngs=rngs
      )
      return nnx.List(block(width, config.embedding) for _ in range(count))

    self.embedding = config.embedding
    self.dtype = dtype
    self.embed = linear(config.embedding, config.embedding)
    self.enter = conv(config.channels, first)
    self.down = nnx.List(map(stage, finer, config.blocks))
    self.reduce = nnx.List(linear(4 * a, b) for a, b in pairs)
    self.middle = stage(coarsest, 2 * last)
    self.enlarge = nnx.List(linear(b, 4 * a) for a, b in pairs)
    self.up = nnx.List(map(stage, finer, config.blocks))
    zeros = nnx.initializers.zeros_init()
    self.leave = conv(first, config.channels, kernel_init=zeros)

  def __call__(self, x: jax.Array, noise: jax.Array) -> jax.Array:
    """The network's output in float32.

    Args:
      x: [N, H, W, C], H and W divisible by `UNetConfig.unit`.
      noise: [N], c_noise.

    Returns:
      [N, H, W, C] float32.
    """
    embedded = nnx.silu(self.embed(_fourier(noise, self.embedding)))  # [N, E]
    h = self.enter(x.astype(self.dtype))
    skips = []
    for blocks, reduce in zip(self.down, self.reduce):
      h = _through(blocks, h, embedded)
      skips.append(h)
      h = reduce(_to_depth(h))
    h = _through(self.middle, h, embedded)
    for blocks, enlarge, skip in zip(
      reversed(self.up), reversed(self.enlarge), reversed(skips)
    ):
      # A sum, not a concatenation: half the channels, and half the arithmetic.
      h = _through(blocks, skip + _to_space(enlarge(h)), embedded)
    return self.leave(nnx.silu(h)).astype(jnp.float32)


def _layers(dtype: DTypeLike, rngs: nnx.Rngs) -> tuple[Callable, Callable]:
  """The two kinds of layer: a 3 x 3 convolution and a linear map."""
  conv = functools.partial(Conv, kernel_size=(3, 3), dtype=dtype, rngs=rngs)
  return conv, functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)


def _through(
  blocks: Sequence[_Block], h: jax.Array, embedded: jax.Array
) -> jax.Array:
  for block in blocks:
    h = block(h, embedded)
  return h


def wave_rates(width: int) -> np.ndarray:
  """Angular rates of the waves of c_noise that embed it, [width / 2]."""
  # c_noise spans about -1.2 to 1.1; the fastest wave turns 9 times in it.
  return np.geomspace(0.5, 8 * np.pi, width // 2)


def _fourier(noise: jax.Array, width: int) -> jax.Array:
  """Sines and cosines of c_noise: [N, width]."""
  angle = noise[:, None] * wave_rates(width)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def _to_depth(x: jax.Array) -> jax.Array:
  """[N, H, W, D] -> [N, H/2, W/2, 4 D]."""
  n, height, width, d = x.shape
  x = x.reshape(n, height // 2, 2, width // 2, 2, d)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
    n, height // 2, width // 2, 4 * d
  )


def _to_space(x: jax.Array) -> jax.Array:
  """[N, H, W, 4 D] -> [N, 2 H, 2 W, D], the inverse of `_to_depth`."""
  n, height, width, d = x.shape
  x = x.reshape(n, height, width, 2, 2, d // 4).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, 2 * height, 2 * width, d // 4)
