"""One training step of the photo prior: EDM's loss on noisy crops.

The step is pure; the host decides how many. Its key depends on the seed and its
number alone, so that a resumed run draws what an unbroken one would have drawn.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness.training import optimiser
from experiments.harness.training.optimiser import (
  OptimSettings,
  Params,
  StepInfo,
  TrainState,
)
from experiments.train_prior import batches
from experiments.train_prior.batches import BatchSettings, Pool
from posterior_jax.priors import UNetConfig, UNetPrior, edm

STATIC = ("size", "count", "config", "dtype", "optim", "batch", "mesh")


@functools.partial(jax.jit, static_argnames=STATIC, donate_argnames="state")
def step(
  state: TrainState,  # donated
  pool: Pool,  # where crops come from
  key: chex.PRNGKey,  # of the whole run
  total: jax.Array,  # steps of the run, float; decides the learning rate
  *,
  size: int,  # side of the crops
  count: int,  # how many, over all devices of the mesh
  config: UNetConfig,  # shape of the network
  dtype: str,  # name of the dtype of its arithmetic
  optim: OptimSettings,  # how the parameters move
  batch: BatchSettings,  # what is in a batch
  mesh: Mesh,  # with the one axis "data", over which the batch is spread
) -> tuple[TrainState, StepInfo]:
  """One step; a gradient that is not finite changes nothing but the count.

  Returns:
    The state and what the step says of itself; its loss is EDM's weighted
    squared error, per pixel and channel.
  """
  keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
  drawn = (
    batches.crops(keys[0], pool, count=count, size=size, settings=batch),
    batches.noise_levels(keys[1], count, batch),
    jax.random.normal(keys[2], (count, size, size, config.channels)),
  )
  spread = NamedSharding(mesh, P("data"))
  # [N, S, S, C], [N], [N, S, S, C]
  x0, sigma, noise = jax.lax.with_sharding_constraint(drawn, spread)

  def loss(params: Params) -> jax.Array:
    prior = UNetPrior(params, config, dtype)
    found = prior.denoise(x0 + sigma[:, None, None, None] * noise, sigma)
    error = jnp.mean((found - x0) ** 2, axis=(1, 2, 3))  # [N]
    return jnp.mean(edm.loss_weight(sigma, config.sigma_data) * error)

  value, gradient = jax.value_and_grad(loss)(state.params)
  return optimiser.moved(state, value, gradient, total, optim)
