"""An image prior given by a denoising network and its parameters by name."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.base import Denoiser
from posterior_jax.foreign_files.messages import clean, shown
from posterior_jax.priors import edm
from posterior_jax.priors.arguments import check_arguments
from posterior_jax.priors.parametrisation import Parametrisation
from posterior_jax.short_repr import short_repr

# Standard deviations; 1 in 5e8 draws of the noise is beyond it. What lies
# further is no noise, and a network amplifies what it has never seen without
# bound.
REACH = 6.0
# Noise that no pixel shows: at 0 a network is told a logarithm of nothing.
_LEAST = 1e-6


class NetworkConfig(Hashable, Protocol):
  """What is asked of the shape of a network."""

  @property
  def channels(self) -> int:
    """C of the images."""

  @property
  def unit(self) -> int:
    """What the sides of an image must be divisible by."""

  @property
  def parametrisation(self) -> Parametrisation:
    """How the network's output becomes a clean image."""

  def build(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
    """F of `edm`: takes [N, H, W, C] and [N], gives [N, H, W, C] float32."""


Config = TypeVar("Config", bound=NetworkConfig)


class _Structure(NamedTuple):
  """What a network is besides its numbers."""

  graph: nnx.GraphDef
  paths: dict[str, tuple]  # by name
  shapes: dict[str, tuple[int, ...]]


class _OneKey(nnx.RngStream):
  """A stream that gives one key at every draw, where only shapes are asked for.

  That of flax counts its draws in an array, and looks for the sharding of a
  traced count. jax answers with an error, for whose message it searches all
  equations of the trace: more than half of the time that a network's shapes
  take.
  """

  def __call__(self) -> jax.Array:
    return self.key[...]


@functools.cache
def _structure(config: NetworkConfig, dtype: str) -> _Structure:
  def build() -> Any:
    rngs = nnx.Rngs(0)
    for name, _ in list(rngs.items()):
      setattr(rngs, name, _OneKey(0, tag=name))
    return config.build(dtype=jnp.dtype(dtype), rngs=rngs)

  graph, state = nnx.split(nnx.eval_shape(build))
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
class UNetPrior(Generic[Config]):
  """An image prior given by a denoising network.

  `unet_prior` makes one, `photo_prior` loads one that is shipped,
  `load_adm` and `load_diffusers` read those of others. Images lie in [-1, 1];
  pixels further from there than noise gets, REACH sigma, are brought back.

  Attributes:
    params: float32 arrays by name, as "down.0.1.inner.kernel".
    config: shape of the network: `UNetConfig` or `DDPMConfig`; its
      `parametrisation` is the class of schedule that it was trained with.
    dtype: name of the dtype of the arithmetic.
    reach: how many sigma a pixel may lie beyond [-1, 1] before it is brought
      back; None for a prior that is not of pictures.
  """

  params: dict[str, jax.Array]
  config: Config = dataclasses.field(metadata={"static": True})
  dtype: str = dataclasses.field(default="float32", metadata={"static": True})
  reach: float | None = dataclasses.field(
    default=REACH, metadata={"static": True}
  )

  __repr__ = short_repr

  @property
  def denoise(self) -> Denoiser:
    """E[x0 | x] as a function whose arrays are leaves: no retrace for new."""
    return jax.tree_util.Partial(_denoise, self)


def param_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter by name, without making one."""
  return dict(_structure(config, "float32").shapes)


def initial_params(
  config: NetworkConfig, key: jax.Array
) -> dict[str, jax.Array]:
  """Random parameters; those of `UNetConfig` first answer c_skip x.

  Args:
    config: shape of the network.
    key: of the initialisation.

  Returns:
    float32 arrays by name.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> config = pj.priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)
    >>> params = pj.priors.initial_params(config, jax.random.key(0))
    >>> params["enter.kernel"].shape
    (3, 3, 3, 4)
  """
  model = config.build(dtype=jnp.float32, rngs=nnx.Rngs(key))
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {_name(path): leaf[...] for path, leaf in flat}


def unet_prior(
  config: Config,
  params: Mapping[str, jax.Array | np.ndarray],
  *,
  dtype: DTypeLike = jnp.float32,
  reach: float | None = REACH,
) -> UNetPrior[Config]:
  """A checked `UNetPrior`, of images in [-1, 1].

  Args:
    config: shape of the network.
    params: arrays by name, of any floating-point dtype.
    dtype: of the arithmetic: float32, or bfloat16 on accelerators.
    reach: how many sigma a pixel may lie beyond [-1, 1] before it is brought
      back; None for a prior of other data, whose values have other bounds.

  Returns:
    The prior, its parameters float32.

  Raises:
    ValueError: naming the first parameter that is missing, unknown, of another
      shape or kind, or not finite where values are known.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> config = pj.priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)
    >>> params = pj.priors.initial_params(config, jax.random.key(0))
    >>> prior = pj.priors.unet_prior(config, params)
    >>> prior.denoise(jnp.zeros((1, 8, 8, 3)), jnp.ones(1)).shape
    (1, 8, 8, 3)
  """
  prior = prior_of_file(config, params, dtype=dtype, reach=reach)
  for key, value in params.items():
    _check_finite(key, value)
  return prior


def prior_of_file(
  config: Config,
  params: Mapping[str, jax.Array | np.ndarray],
  *,
  dtype: DTypeLike,
  reach: float | None = REACH,
) -> UNetPrior[Config]:
  """`unet_prior` of numbers whose reader has found them finite."""
  try:
    # NumPy takes None for float64.
    name = "None" if dtype is None else jnp.dtype(dtype).name
  except TypeError:
    name = repr(dtype)
  if name not in ("float32", "bfloat16"):
    raise ValueError(f"dtype must be float32 or bfloat16, got {name}")
  shapes = _structure(config, name).shapes
  check_arrays("params", params, shapes)
  whole = {key: jnp.asarray(params[key], jnp.float32) for key in shapes}
  return UNetPrior(whole, config, name, reach)


def _check_finite(key: str, value: jax.Array | np.ndarray) -> None:
  if isinstance(value, jax.core.Tracer):
    return
  # In float32: numpy's isfinite does not take bfloat16 everywhere.
  count = int((~np.isfinite(np.asarray(value, np.float32))).sum())
  if count:
    raise ValueError(
      f"{key!r} of params must be finite, {count} of its {value.size} numbers "
      "are not"
    )


def check_arrays(
  where: str,
  found: Mapping[str, jax.Array | np.ndarray],
  wanted: Mapping[str, tuple[int, ...]],
) -> None:
  """Refuses arrays that are not exactly those wanted.

  Args:
    where: what holds them, for the message.
    found: arrays by name.
    wanted: shapes by name.

  Raises:
    ValueError: naming the first array that is missing, unknown, of another
      shape or not floating point.
  """
  for key in [*wanted, *found]:
    if key not in found:
      raise ValueError(
        f"{where} must hold {key!r} of shape {wanted[key]}, which is missing"
      )
    if key not in wanted:
      raise ValueError(
        f"{where} must not hold {shown(key)}: the network has none"
      )
    shape, dtype = tuple(found[key].shape), found[key].dtype
    if shape != wanted[key]:
      raise ValueError(
        f"{key!r} of {where} must have shape {wanted[key]}, got "
        f"{clean(str(shape))}"
      )
    if not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f"{key!r} of {where} must be floating point, got {dtype}"
      )


def _denoise(prior: UNetPrior, x: jax.Array, sigma: jax.Array) -> jax.Array:
  """D(x, sigma): x [N, H, W, C], sigma [N] -> [N, H, W, C] float32.

  Beyond the parametrisation's sigma_max the answer is D(x sigma_max / sigma,
  sigma_max): a network has none where it was not trained, and where nearly all
  is noise its scale is all that differs. Pixels further than `reach` sigma from
  [-1, 1], where all images lie, are brought back to there first: no noise gets
  so far, and a network amplifies without bound what it has never seen. Without
  noise the answer is x.

  Raises:
    TypeError: if one of them is no array.
    ValueError: if the images do not fit the network, or sigma the images.
  """
  config = prior.config
  check_arguments(x, sigma, (None, None, config.channels), unit=config.unit)
  x = x.astype(jnp.float32)
  sigma = jnp.maximum(sigma.astype(jnp.float32), _LEAST)
  if prior.reach is not None:
    furthest = (1 + prior.reach * sigma)[:, None, None, None]
    x = jnp.clip(x, -furthest, furthest)
  # Above the training's largest level nearly all is noise: the image is scaled
  # down to that level instead of asking for what was never trained.
  within = jnp.minimum(sigma, config.parametrisation.sigma_max)
  x, sigma = x * (within / sigma)[:, None, None, None], within
  graph, paths, _ = _structure(config, prior.dtype)
  flat = [(paths[key], nnx.Param(p)) for key, p in prior.params.items()]
  model = nnx.merge(graph, nnx.from_flat_state(flat))
  c = config.parametrisation.scalings(sigma)
  wide = edm.Preconditioning(*(a[:, None, None, None] for a in c))
  return wide.skip * x + wide.out * model(wide.inner * x, c.noise)
