"""One training step of the byte model: cross-entropy, AdamW.

State and step are pure; the host decides how many. The batch of a step depends
on the run's key and its number alone, so that a resumed run reads what an
unbroken one would have read.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness import pace
from experiments.train_lm import batches
from experiments.train_lm.batches import KINDS, Batch, BatchSettings
from neumann_jax import Execution, LanguageModel, ModelConfig
from neumann_jax.checkpoint import params as param_place

Params = dict[str, jax.Array]
# Steps dt of a fresh block's decay exp(-A dt), log-uniform, as in Mamba-2
# (arXiv 2405.21060): a published checkpoint's dt_bias of 1 forgets at once.
_STEP_RANGE = (1e-3, 1e-1)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
  """How the parameters move.

  Attributes:
    rate: greatest learning rate.
    warmup: steps until it is reached.
    constant: share of the run before it falls, linearly to zero.
    clip: greatest norm of a gradient.
    decay: weight decay of matrices, a step of rate 1.
  """

  rate: float = 2e-3
  warmup: int = 300
  constant: float = 0.2
  clip: float = 1.0
  decay: float = 0.1

  def __post_init__(self):
    """Refuses values out of range."""
    if not (self.rate > 0 and self.clip > 0 and self.warmup >= 0):
      raise ValueError(
        f"rate and clip must be positive and warmup >= 0; got {self}"
      )
    if not (0 <= self.constant < 1 and self.decay >= 0):
      raise ValueError(
        f"constant must lie in [0, 1) and decay must be >= 0; got {self}"
      )


class TrainState(NamedTuple):
  """What the next step needs.

  Attributes:
    params: of the model, by path, float32.
    moments: of Adam.
    step: int32 scalar, steps done.
  """

  params: Params
  moments: Any
  step: jax.Array


class StepInfo(NamedTuple):
  """What a step says of itself: scalars.

  Attributes:
    loss: mean over all wanted tokens, in nats.
    gradient: norm before clipping.
    rate: learning rate.
    bits: [len(KINDS)], of a wanted token of every kind; NaN where no row is.
  """

  loss: jax.Array
  gradient: jax.Array
  rate: jax.Array
  bits: jax.Array


class Plan(NamedTuple):
  """What a step computes; static.

  Attributes:
    config: the architecture.
    execution: how it is computed.
    optim: how the parameters move.
    batch: what a batch holds.
    mesh: with the one axis "data", over which the rows are spread.
  """

  config: ModelConfig
  execution: Execution
  optim: OptimSettings
  batch: BatchSettings
  mesh: Mesh


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.95)


def initial_params(
  config: ModelConfig, execution: Execution, seed: int
) -> Params:
  """Fresh parameters by path, with decays that remember."""

  def make() -> dict[tuple, jax.Array]:
    model = LanguageModel(config, execution, rngs=nnx.Rngs(seed))
    return param_place.flat_params(model)

  params = {_name(path): x for path, x in jax.jit(make)().items()}
  key = jax.random.fold_in(jax.random.key(seed), 1)
  low, high = np.log(_STEP_RANGE)
  for i, (name, value) in enumerate(params.items()):
    if name.endswith("dt_bias"):
      drawn = jax.random.uniform(
        jax.random.fold_in(key, i), value.shape, minval=low, maxval=high
      )
      params[name] = jnp.log(jnp.expm1(jnp.exp(drawn)))  # softplus gives dt
  return params


def init(params: Params) -> TrainState:
  """The state before the first step."""
  return TrainState(params, _ADAM.init(params), jnp.int32(0))


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
  state: TrainState,
  text: jax.Array,
  key: chex.PRNGKey,
  total: jax.Array,
  *,
  plan: Plan,
) -> tuple[TrainState, StepInfo]:
  """One step; a gradient that is not finite changes nothing but the count.

  Args:
    state: donated.
    text: [n] tokens of the training text.
    key: of the whole run.
    total: steps of the run, float; decides the learning rate.
    plan: what is computed.

  Returns:
    The state and what the step says of itself.
  """
  batch = batches.batch(key, state.step, text, plan.batch)
  batch = jax.lax.with_sharding_constraint(
    batch, NamedSharding(plan.mesh, P("data"))
  )

  def loss(params: Params) -> tuple[jax.Array, jax.Array]:
    sums = _row_sums(params, batch, plan)  # [B]
    return jnp.sum(sums) / jnp.sum(batch.wanted, dtype=jnp.float32), sums

  found, gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
  norm = optax.global_norm(gradient)
  optim = plan.optim
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
  bits = _bits(found[1], batch.wanted, plan.batch)
  return (
    moved._replace(step=state.step + 1),
    StepInfo(found[0], norm, rate, bits),
  )


def token_losses(model: LanguageModel, tokens: jax.Array) -> jax.Array:
  """Negative log-likelihoods of the next tokens in nats, [B, T - 1]."""
  logits = model.logits(model.hidden_states(tokens)[0][:, :-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def _row_sums(params: Params, batch: Batch, plan: Plan) -> jax.Array:
  """Losses of the wanted tokens, a sum for every row.

  Inside `shard_map`, because kernels do not say how they could be split.
  """

  def local(params: Params, tokens: jax.Array, wanted: jax.Array) -> jax.Array:
    model = model_of(params, plan.config, plan.execution)
    losses = token_losses(model, tokens)
    return jnp.sum(jnp.where(wanted, losses, 0), axis=1)

  rows = P("data")
  return jax.shard_map(
    local, mesh=plan.mesh, in_specs=(P(), rows, rows), out_specs=rows
  )(params, *batch)


def _bits(
  sums: jax.Array, wanted: jax.Array, settings: BatchSettings
) -> jax.Array:
  """Mean loss of a wanted token of every kind, in bits."""
  kind = batches.kinds(settings)
  count = jnp.sum(wanted, axis=1, dtype=jnp.float32)
  total, number = (
    jax.ops.segment_sum(x, kind, num_segments=len(KINDS)) for x in (sums, count)
  )
  return total / number / np.log(2).astype(np.float32)


def _moved(
  state: TrainState,
  gradient: Params,
  norm: jax.Array,
  rate: jax.Array,
  optim: OptimSettings,
) -> TrainState:
  """AdamW's update by the clipped gradient."""
  fits = jnp.minimum(1, optim.clip / jnp.maximum(norm, 1e-12))
  clipped = jax.tree.map(lambda g: g * fits, gradient)
  # optax raises a float to the integer count of steps.
  with jax.numpy_dtype_promotion("standard"):
    updates, moments = _ADAM.update(clipped, state.moments)
  params = {
    name: p - rate * (updates[name] + optim.decay * _decays(name) * p)
    for name, p in state.params.items()
  }
  return TrainState(params, moments, state.step)


def _decays(name: str) -> bool:
  """Whether weight decay pulls at a parameter: only at matrices."""
  return name.endswith((".kernel", "_proj"))


def _name(path: tuple) -> str:
  return ".".join(map(str, path))
