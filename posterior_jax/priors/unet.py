"""A fully convolutional denoiser: a U-Net without norms under EDM scalings.

Residual blocks (Lim et al. 2017) modulated by the noise level, on four scales
joined by sums as in DRUNet (Zhang et al. 2021). There is no norm over space
and no attention, so what is computed at a pixel depends on its neighbourhood
alone and the same weights serve every size; most of the arithmetic is at half
resolution and below. Axis letters: N images, H W C image, D width of a scale,
E width of the embedded noise level.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.priors import edm
from posterior_jax.types import Denoiser


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
  """

  channels: int = 3
  widths: tuple[int, ...] = (48, 96, 160, 224)
  blocks: tuple[int, ...] = (1, 2, 2, 1)
  embedding: int = 128
  sigma_data: float = 0.5

  def __post_init__(self):
    """Refuses sizes that make no network."""
    if len(self.widths) != len(self.blocks) or not self.widths:
      raise ValueError(
        "widths and blocks must name as many scales, at least one; got "
        f"{self.widths} and {self.blocks}"
      )
    sizes = (self.channels, self.embedding, *self.widths, *self.blocks)
    if min(sizes) < 1 or self.embedding % 2:
      raise ValueError(
        "channels, widths, blocks and embedding must be positive and the "
        f"embedding even; got {self}"
      )
    if not self.sigma_data > 0:
      raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")

  @property
  def unit(self) -> int:
    """What the sides of an image must be divisible by."""
    return 2 ** (len(self.widths) - 1)


class _Block(nnx.Module):
  """x + conv(silu(modulate(conv(silu x)))); the identity at initialisation."""

  def __init__(
    self, width: int, embedding: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    conv, linear = _layers(dtype, rngs)
    zeros = nnx.initializers.zeros_init()
    self.inner = conv(width, width)
    self.outer = conv(width, width, kernel_init=zeros)
    self.modulation = linear(embedding, 2 * width, kernel_init=zeros)

  def __call__(self, x: jax.Array, noise: jax.Array) -> jax.Array:
    scale, shift = jnp.split(self.modulation(noise)[:, None, None], 2, -1)
    h = self.inner(nnx.silu(x)) * (1 + scale) + shift
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
      block = functools.partial(_Block, dtype=dtype, rngs=rngs)
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
      h = _through(blocks, skip + _to_space(enlarge(h)), embedded)
    return self.leave(nnx.silu(h)).astype(jnp.float32)


def _layers(dtype: DTypeLike, rngs: nnx.Rngs) -> tuple[Callable, Callable]:
  """The two kinds of layer: a 3 x 3 convolution and a linear map."""
  conv = functools.partial(nnx.Conv, kernel_size=(3, 3), dtype=dtype, rngs=rngs)
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


class _Structure(NamedTuple):
  """What a `UNet` is besides its numbers."""

  graph: nnx.GraphDef
  paths: dict[str, tuple]  # by name
  shapes: dict[str, tuple[int, ...]]


@functools.cache
def _structure(config: UNetConfig, dtype: str) -> _Structure:
  model = nnx.eval_shape(
    lambda: UNet(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(model)
  flat = {_name(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
  return _Structure(
    graph,
    {name: path for name, (path, _) in flat.items()},
    {name: tuple(leaf.shape) for name, (_, leaf) in flat.items()},
  )


def _name(path: tuple) -> str:
  return ".".join(map(str, path))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UNetPrior:
  """An image prior given by a denoising network.

  `unet_prior` makes one, `photo_prior` loads the one that is shipped.

  Attributes:
    params: float32 arrays by name, as "down.0.1.inner.kernel".
    config: shape of the network.
    dtype: name of the dtype of the arithmetic.
  """

  params: dict[str, jax.Array]
  config: UNetConfig = dataclasses.field(metadata={"static": True})
  dtype: str = dataclasses.field(default="float32", metadata={"static": True})

  @property
  def denoise(self) -> Denoiser:
    """E[x0 | x] as a function whose arrays are leaves: no retrace for new."""
    return jax.tree_util.Partial(_denoise, self)


def initial_params(config: UNetConfig, key: jax.Array) -> dict[str, jax.Array]:
  """Random parameters, whose first answer is c_skip x.

  Args:
    config: shape of the network.
    key: of the initialisation.

  Returns:
    float32 arrays by name.
  """
  model = UNet(config, rngs=nnx.Rngs(key))
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {_name(path): leaf[...] for path, leaf in flat}


def unet_prior(
  config: UNetConfig,
  params: Mapping[str, jax.Array | np.ndarray],
  *,
  dtype: DTypeLike = jnp.float32,
) -> UNetPrior:
  """A checked `UNetPrior`.

  Args:
    config: shape of the network.
    params: arrays by name, of any floating-point dtype.
    dtype: of the arithmetic: float32, or bfloat16 on accelerators.

  Returns:
    The prior, its parameters float32.

  Raises:
    ValueError: naming the first parameter that is missing, unknown, or of
      another shape or kind.
  """
  name = jnp.dtype(dtype).name
  if name not in ("float32", "bfloat16"):
    raise ValueError(f"dtype must be float32 or bfloat16, got {name}")
  shapes = _structure(config, name).shapes
  for key in [*shapes, *params]:
    if key not in params:
      raise ValueError(f"params lack {key!r} of shape {shapes[key]}")
    if key not in shapes:
      raise ValueError(f"params hold {key!r}, which this network has not")
    found = params[key]
    if tuple(found.shape) != shapes[key]:
      raise ValueError(
        f"params[{key!r}] must have shape {shapes[key]}, got "
        f"{tuple(found.shape)}"
      )
    if not jnp.issubdtype(found.dtype, jnp.floating):
      raise ValueError(
        f"params[{key!r}] must be floating point, got {found.dtype}"
      )
  whole = {key: jnp.asarray(params[key], jnp.float32) for key in shapes}
  return UNetPrior(whole, config, name)


def _denoise(prior: UNetPrior, x: jax.Array, sigma: jax.Array) -> jax.Array:
  """D(x, sigma): x [N, H, W, C], sigma [N] -> [N, H, W, C] float32.

  Raises:
    ValueError: if the images do not fit the network, or sigma the images.
  """
  config = prior.config
  if (
    x.ndim != 4
    or x.shape[3] != config.channels
    or 0 in x.shape
    or x.shape[1] % config.unit
    or x.shape[2] % config.unit
  ):
    raise ValueError(
      f"x must have shape [N, H, W, {config.channels}], H and W positive and "
      f"divisible by {config.unit}, got {x.shape}"
    )
  if sigma.shape != x.shape[:1]:
    raise ValueError(
      f"sigma must have one entry an image, shape {x.shape[:1]}, got "
      f"{sigma.shape}"
    )
  x, sigma = x.astype(jnp.float32), sigma.astype(jnp.float32)
  graph, paths, _ = _structure(config, prior.dtype)
  flat = [(paths[key], nnx.Param(p)) for key, p in prior.params.items()]
  model = nnx.merge(graph, nnx.from_flat_state(flat))
  c = edm.precondition(sigma, config.sigma_data)
  wide = edm.Preconditioning(*(a[:, None, None, None] for a in c))
  return wide.skip * x + wide.out * model(wide.inner * x, c.noise)
