"""An image prior given by a denoising network and its parameters by name."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.priors import edm
from posterior_jax.priors.unet import UNet, UNetConfig
from posterior_jax.types import Denoiser


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

  Beyond sigma_max the answer is D(x sigma_max / sigma, sigma_max): an untrained
  network has none, and where nearly all is noise its scale is all that differs.

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
  within = jnp.minimum(sigma, config.sigma_max)
  x, sigma = x * (within / sigma)[:, None, None, None], within
  graph, paths, _ = _structure(config, prior.dtype)
  flat = [(paths[key], nnx.Param(p)) for key, p in prior.params.items()]
  model = nnx.merge(graph, nnx.from_flat_state(flat))
  c = edm.precondition(sigma, config.sigma_data)
  wide = edm.Preconditioning(*(a[:, None, None, None] for a in c))
  return wide.skip * x + wide.out * model(wide.inner * x, c.noise)
