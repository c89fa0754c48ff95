"""One training step of the photo prior: EDM's loss, Adam, an average.

State and step are pure; the host decides how many. The key of a step depends
on the seed and its number alone, so that a resumed run draws what an unbroken
one would have drawn.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness import pace
from experiments.train_prior import batches
from experiments.train_prior.batches import BatchSettings, Pool
from posterior_jax.priors import UNetConfig, UNetPrior, edm

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimSettings:
  """How the parameters move.

  Attributes:
    rate: greatest learning rate.
    warmup: steps until it is reached.
    constant: share of the run before it falls, linearly to zero.
    clip: greatest norm of a gradient.
    average: decay of the exponential moving average of the parameters.
  """

  rate: float = 1e-3
  warmup: int = 500
  constant: float = 0.3
  clip: float = 1.0
  average: float = 0.9995

  def __post_init__(self):
    """Refuses values out of range."""
    if not (self.rate > 0 and self.clip > 0 and self.warmup >= 0):
      raise ValueError(
        f"rate and clip must be positive and warmup >= 0; got {self}"
      )
    if not (0 <= self.constant < 1 and 0 <= self.average < 1):
      raise ValueError(f"constant and average must lie in [0, 1); got {self}")


class TrainState(NamedTuple):
  """What the next step needs.

  Attributes:
    params: of the network.
    average: their exponential moving average, which is what is kept.
    moments: of Adam.
    step: int32 scalar, steps done.
  """

  params: Params
  average: Params
  moments: Any
  step: jax.Array


class StepInfo(NamedTuple):
  """What a step says of itself: scalars.

  Attributes:
    loss: EDM's weighted squared error, per pixel and channel.
    gradient: norm before clipping.
    rate: learning rate.
  """

  loss: jax.Array
  gradient: jax.Array
  rate: jax.Array


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)


def init(params: Params) -> TrainState:
  """The state before the first step."""
  copy = jax.tree.map(jnp.copy, params)
  return TrainState(params, copy, _ADAM.init(params), jnp.int32(0))


@functools.partial(
  jax.jit,
  static_argnames=(
    "size",
    "count",
    "config",
    "dtype",
    "optim",
    "batch",
    "mesh",
  ),
  donate_argnames="state",
)
def step(
  state: TrainState,
  pool: Pool,
  key: chex.PRNGKey,
  total: jax.Array,
  *,
  size: int,
  count: int,
  config: UNetConfig,
  dtype: str,
  optim: OptimSettings,
  batch: BatchSettings,
  mesh: Mesh,
) -> tuple[TrainState, StepInfo]:
  """One step; a gradient that is not finite changes nothing but the count.

  Args:
    state: donated.
    pool: where crops come from.
    key: of the whole run.
    total: steps of the run, float; decides the learning rate.
    size: side of the crops.
    count: how many, over all devices of the mesh.
    config: shape of the network.
    dtype: name of the dtype of its arithmetic.
    optim: how the parameters move.
    batch: what is in a batch.
    mesh: with the one axis "data", over which the batch is spread.

  Returns:
    The state and what the step says of itself.
  """
  x0, sigma, noise = _drawn(
    jax.random.fold_in(key, state.step),
    pool,
    (count, size, size, config.channels),
    batch,
    NamedSharding(mesh, P("data")),
  )

  def loss(params: Params) -> jax.Array:
    prior = UNetPrior(params, config, dtype)
    found = prior.denoise(x0 + sigma[:, None, None, None] * noise, sigma)
    error = jnp.mean((found - x0) ** 2, axis=(1, 2, 3))  # [N]
    return jnp.mean(edm.loss_weight(sigma, config.sigma_data) * error)

  value, gradient = jax.value_and_grad(loss)(state.params)
  norm = optax.global_norm(gradient)
  rate = pace.learning_rate(
    state.step,
    total,
    rate=optim.rate,
    warmup=optim.warmup,
    constant=optim.constant,
  )
  moved = _moved(state, gradient, norm, rate, optim)
  finite = jnp.isfinite(norm)
  moved = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, state)
  return (
    moved._replace(step=state.step + 1),
    StepInfo(value, norm, rate),
  )


def _drawn(
  key: chex.PRNGKey,
  pool: Pool,
  shape: tuple[int, int, int, int],
  batch: BatchSettings,
  spread: NamedSharding,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Clean images [N, S, S, C], noise levels [N] and unit noise."""
  keys = jax.random.split(key, 3)
  count, size, _, _ = shape
  x0 = batches.crops(keys[0], pool, count=count, size=size, settings=batch)
  sigma = batches.noise_levels(keys[1], count, batch)
  noise = jax.random.normal(keys[2], shape)
  return jax.lax.with_sharding_constraint((x0, sigma, noise), spread)


def _moved(
  state: TrainState,
  gradient: Params,
  norm: jax.Array,
  rate: jax.Array,
  optim: OptimSettings,
) -> TrainState:
  """Adam's update by the clipped gradient, and the average."""
  fits = jnp.minimum(1, optim.clip / jnp.maximum(norm, 1e-12))
  clipped = jax.tree.map(lambda g: g * fits, gradient)
  # optax raises a float to the integer count of steps.
  with jax.numpy_dtype_promotion("standard"):
    updates, moments = _ADAM.update(clipped, state.moments)
  params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
  # Young averages forget faster: the first steps are far from the last.
  done = state.step.astype(jnp.float32)
  keep = jnp.minimum(optim.average, (done + 1) / (done + 10))
  average = jax.tree.map(
    lambda a, p: keep * a + (1 - keep) * p, state.average, params
  )
  return TrainState(params, average, moments, state.step)
