"""One training step of the byte model: cross-entropy, AdamW.

State and step are pure; `harness.training` decides how many. The batch of a
step depends on the run's key and its number alone, so that a resumed run reads
what an unbroken one would have read.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness.training import optimiser
from experiments.harness.training.optimiser import (
  OptimSettings,
  Params,
  TrainState,
)
from experiments.train_lm import batches
from experiments.train_lm.batches import KINDS, Batch, BatchSettings
from neumann_jax import Execution, LanguageModel, ModelConfig
from neumann_jax.checkpoint import params as param_place

# Steps dt of a fresh block's decay exp(-A dt), log-uniform, as in Mamba-2
# (arXiv 2405.21060): a published checkpoint's dt_bias of 1 forgets at once.
_STEP_RANGE = (1e-3, 1e-1)


class Plan(NamedTuple):
  """What a step computes; static."""

  config: ModelConfig  # the architecture
  execution: Execution  # how it is computed
  optim: OptimSettings  # how the parameters move
  batch: BatchSettings  # what a batch holds
  mesh: Mesh  # with the one axis "data", over which the rows are spread


class StepBits(NamedTuple):
  """What a step says of itself: `optimiser.StepInfo`, and bits by kind."""

  loss: jax.Array  # mean over all wanted tokens, in nats
  gradient: jax.Array  # norm before clipping
  rate: jax.Array  # learning rate
  # [len(KINDS)], per wanted token of every kind; NaN where no row is
  bits: jax.Array


def initial_params(
  config: ModelConfig, execution: Execution, seed: int
) -> Params:
  """Fresh parameters by path, with decays that remember."""

  def make(key: chex.PRNGKey) -> dict[tuple, jax.Array]:
    model = LanguageModel(config, execution, rngs=nnx.Rngs(key))
    return param_place.flat_params(model)

  # The key is an operand: XLA would draw from a constant when it compiles.
  made = jax.jit(make)(jax.random.key(seed))
  params = {_name(path): x for path, x in made.items()}
  key = jax.random.fold_in(jax.random.key(seed), 1)
  low, high = np.log(_STEP_RANGE)
  for i, (name, value) in enumerate(params.items()):
    if name.endswith("dt_bias"):
      drawn = jax.random.uniform(
        jax.random.fold_in(key, i), value.shape, minval=low, maxval=high
      )
      params[name] = jnp.log(jnp.expm1(jnp.exp(drawn)))  # softplus gives dt
  return params


def model_of(
  params: Params, config: ModelConfig, execution: Execution
) -> LanguageModel:
  """The model with these parameters."""
  model = param_place.abstract_model(config, execution)
  paths = param_place.flat_params(model)
  return param_place.with_params(
    model, {path: params[_name(path)] for path in paths}
  )


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def step(
  state: TrainState,  # donated
  text: jax.Array,  # [n] tokens of the training text
  key: chex.PRNGKey,  # of the whole run
  total: jax.Array,  # steps of the run, float; decides the learning rate
  *,
  plan: Plan,  # what is computed
) -> tuple[TrainState, StepBits]:
  """One step; a gradient that is not finite changes nothing but the count."""
  batch = batches.batch(key, state.step, text, plan.batch)
  batch = jax.lax.with_sharding_constraint(
    batch, NamedSharding(plan.mesh, P("data"))
  )

  def loss(params: Params) -> tuple[jax.Array, jax.Array]:
    sums = _row_sums(params, batch, plan)  # [B]
    return jnp.sum(sums) / jnp.sum(batch.wanted, dtype=jnp.float32), sums

  (mean, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
  state, info = optimiser.moved(
    state, mean, gradient, total, plan.optim, decays=_decays
  )
  return state, StepBits(*info, _bits(sums, batch.wanted, plan.batch))


def _row_sums(params: Params, batch: Batch, plan: Plan) -> jax.Array:
  """Losses of the wanted tokens, a sum for every row.

  Inside `shard_map`, because kernels do not say how they could be split.
  """

  def local(params: Params, tokens: jax.Array, wanted: jax.Array) -> jax.Array:
    model = model_of(params, plan.config, plan.execution)
    logits = model.logits(model.hidden_states(tokens)[0][:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    )  # [B, T - 1]
    return jnp.sum(jnp.where(wanted, losses, 0), axis=1)

  rows = P("data")
  return jax.shard_map(
    local, mesh=plan.mesh, in_specs=(P(), rows, rows), out_specs=rows
  )(params, *batch)


def _bits(
  sums: jax.Array, wanted: jax.Array, settings: BatchSettings
) -> jax.Array:
  """Mean loss per wanted token of every kind, in bits."""
  kind = batches.kinds(settings)
  count = jnp.sum(wanted, axis=1, dtype=jnp.float32)
  total, number = (
    jax.ops.segment_sum(x, kind, num_segments=len(KINDS)) for x in (sums, count)
  )
  return total / number / np.log(2).astype(np.float32)


def _decays(name: str) -> bool:
  """Whether weight decay pulls at a parameter: only at matrices."""
  return name.endswith((".kernel", "_proj"))


def _name(path: tuple) -> str:
  return ".".join(map(str, path))
