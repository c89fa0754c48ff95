"""One step of tuning: cross-entropy of the wanted tokens, AdamW.

The state holds what is tuned, in float32; what stays as it is stands beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data.packed_rows import Rows
from experiments.harness.training import optimiser
from experiments.harness.training.optimiser import (
  OptimSettings,
  Params,
  TrainState,
)
from neumann_jax import Execution, LanguageModel, ModelConfig, sharding, tuning
from neumann_jax.checkpoint import params as param_place

# What weight decay pulls at, by the ends of names.
_DECAYING = ("kernel", "embedding", "_proj", "lora_a", "lora_b")


class Plan(NamedTuple):
  """What a step computes; static."""

  config: ModelConfig  # the architecture
  execution: Execution  # how it is computed
  lora: tuning.LoraSpec | None  # of the adapters; None: all is tuned
  optim: OptimSettings  # how the parameters move
  balance: float  # weight of the router's balance loss
  vocab_block: int  # words whose logits are held at a time


class Batch(NamedTuple):
  """`packed_rows.Rows` on the devices."""

  tokens: jax.Array  # [B, T] int32
  segments: jax.Array  # [B, T] int32
  real: jax.Array  # [B, T] bool
  wanted: jax.Array  # [B, T - 1] bool


class StepLosses(NamedTuple):
  """What a step says: `optimiser.StepInfo`, and its parts; scalars."""

  loss: jax.Array  # what is descended: the next, and the weighted balance
  gradient: jax.Array  # norm before clipping
  rate: jax.Array  # learning rate
  token_loss: jax.Array  # mean over the wanted tokens, in nats
  balance: jax.Array  # the router's balance loss, 0 where it has no weight
  tokens: jax.Array  # wanted tokens


Step = Callable[
  [TrainState, Params, Batch, jax.Array], tuple[TrainState, StepLosses]
]


def abstract_model(plan: Plan) -> LanguageModel:
  """The model, adapters included, with shapes for parameters."""
  model = param_place.abstract_model(plan.config, plan.execution)
  lora = plan.lora
  if lora is None:
    return model
  return nnx.eval_shape(
    lambda model: tuning.add_adapters(model, lora, rngs=nnx.Rngs(0)), model
  )


def named(model: LanguageModel) -> Params:
  """Parameters by their dotted names."""
  flat = param_place.flat_params(model)
  return {".".join(map(str, path)): x for path, x in flat.items()}


def is_tuned(name: str, plan: Plan) -> bool:
  """Whether the parameter of a name is tuned."""
  return plan.lora is None or name.endswith((".lora_a", ".lora_b"))


def model_of(params: Params, plan: Plan) -> LanguageModel:
  """The model with these parameters."""
  model = abstract_model(plan)
  flat = param_place.flat_params(model)
  return param_place.with_params(
    model, {path: params[".".join(map(str, path))] for path in flat}
  )


def placed(rows: Rows, mesh: Mesh) -> Batch:
  """Rows on the mesh; each process makes those of its own devices."""
  where = NamedSharding(mesh, P(sharding.batch_sharding(mesh).spec[0]))
  return Batch(*(_spread(array, where) for array in rows))


def _spread(array: np.ndarray, where: NamedSharding) -> jax.Array:
  return jax.make_array_from_callback(
    array.shape, where, lambda index: array[index]
  )


def losses(
  params: Params, rows: Batch, plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sum over the wanted tokens, how many there are, and the balance loss."""
  model = model_of(params, plan)
  real = rows.real.astype(jnp.float32)
  hidden, routing = model.routed_hidden_states(
    rows.tokens, counted=real, segment_ids=rows.segments
  )
  found = tuning.token_losses(
    model, hidden[:, :-1], rows.tokens[:, 1:], block=plan.vocab_block
  )  # [B, T - 1]
  total = jnp.sum(jnp.where(rows.wanted, found, 0))
  count = jnp.sum(rows.wanted, dtype=jnp.float32)
  if routing is None or not plan.balance:
    return total, count, jnp.float32(0)
  return total, count, tuning.balance_loss(routing)


def make(plan: Plan, state: TrainState) -> Step:
  """The compiled step, whose states lie where this one does."""

  def step(
    state: TrainState, frozen: Params, rows: Batch, total: jax.Array
  ) -> tuple[TrainState, StepLosses]:
    def loss(params: Params) -> tuple[jax.Array, Any]:
      summed, count, balance = losses(params | frozen, rows, plan)
      mean = summed / jnp.maximum(count, 1)
      return mean + plan.balance * balance, (mean, balance, count)

    (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    state, info = optimiser.moved(
      state, value, gradient, total, plan.optim, decays=_decays
    )
    return state, StepLosses(*info, *parts)

  # Left to the partitioner, the shardings of what comes out may differ from
  # those of what goes in, and the second step would compile again.
  where = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def make_evaluation(
  plan: Plan,
) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
  """Sum over the wanted tokens of some rows, and how many there are."""
  return jax.jit(lambda params, rows: losses(params, rows, plan)[:2])


def mean_loss(
  params: Params, rows: Rows, plan: Plan, mesh: Mesh, batch: int
) -> tuple[float, int]:
  """Mean loss over the wanted tokens of many rows, and how many there are."""
  evaluate, total, count = make_evaluation(plan), 0.0, 0
  for start in range(0, len(rows.tokens), batch):
    places = np.arange(start, start + batch)
    part = rows.take(places % len(rows.tokens))
    # A last batch that is not full repeats rows, which do not count.
    fresh = (places < len(rows.tokens))[:, None]
    part = part._replace(wanted=part.wanted & fresh)
    summed, wanted = evaluate(params, placed(part, mesh))
    total, count = total + float(summed), count + int(wanted)
  return total / max(count, 1), count


def _decays(name: str) -> bool:
  return name.endswith(_DECAYING)
