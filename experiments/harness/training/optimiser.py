"""What moves the parameters of every training, and maybe averages them.

The step of a study takes a gradient and calls `moved`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.harness.settings import Checked, setting
from experiments.harness.training import pace

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimSettings(Checked):
  """How the parameters move: AdamW of clipped gradients, maybe averaged."""

  rate: float = setting(1e-3, above=0)  # greatest learning rate
  warmup: int = setting(300, at_least=0)  # steps until it is reached
  # share of the run before it falls, linearly to zero
  constant: float = setting(0.2, at_least=0, below=1)
  clip: float = setting(1.0, above=0)  # greatest norm of a gradient
  decay: float = setting(0.0, at_least=0)  # weight decay of a step of rate 1
  # decay of the parameters' exponential moving average; 0: none is kept
  average: float = setting(0.0, at_least=0, below=1)
  b2: float = setting(0.95, at_least=0, below=1)  # decay of the second moment

  def rule(
    self,
    rate: jax.Array | float,
    decays: Callable[[str], bool] | None = None,
  ) -> optax.GradientTransformation:
    """What moves by clipped gradients, at a rate that is a number of the trace.

    Not a schedule of optax: those need the number of steps before the trace; a
    run of given minutes learns it on the way.
    """
    clip = optax.clip_by_global_norm(self.clip)
    return optax.chain(clip, self.moves(rate, decays))

  def moves(
    self,
    rate: jax.Array | float,
    decays: Callable[[str], bool] | None,
  ) -> optax.GradientTransformation:
    """AdamW, which decays what `decays` names; None: all."""

    def mask(params: Params) -> dict[str, bool]:
      return {name: decays is None or decays(name) for name in params}

    return optax.adamw(
      rate, b1=0.9, b2=self.b2, weight_decay=self.decay, mask=mask
    )


class TrainState(NamedTuple):
  """What the next step needs."""

  params: Params  # by name, float32
  average: Params  # their exponential moving average, empty where none is kept
  moments: Any  # of the optimiser
  step: jax.Array  # int32 scalar, steps done


class StepInfo(NamedTuple):
  """What a step says of itself: scalars."""

  loss: jax.Array  # of the step's batch
  gradient: jax.Array  # norm before clipping
  rate: jax.Array  # learning rate


def init(params: Params, optim: OptimSettings) -> TrainState:
  """The state before the first step."""
  average = jax.tree.map(jnp.copy, params) if optim.average else {}
  moments = optim.rule(0.0).init(params)
  return TrainState(params, average, moments, jnp.int32(0))


def moved(
  state: TrainState,
  loss: jax.Array,
  gradient: Params,
  total: jax.Array,
  optim: OptimSettings,
  *,
  decays: Callable[[str], bool] | None = None,
) -> tuple[TrainState, StepInfo]:
  """The state after a step, and what the step says of itself.

  A gradient that is not finite changes nothing but the count.

  Args:
    state: before it.
    loss: scalar.
    gradient: of the loss by every parameter.
    total: steps of the whole run, float, infinite while it is not known;
      decides the learning rate.
    optim: how the parameters move.
    decays: whether weight decay pulls at a parameter of this name; None: at
      all.
  """
  norm = optax.global_norm(gradient)
  rate = pace.learning_rate(
    state.step,
    total,
    rate=optim.rate,
    warmup=optim.warmup,
    constant=optim.constant,
  )
  # optax raises a float to the integer count of steps.
  with jax.numpy_dtype_promotion("standard"):
    updates, moments = optim.rule(rate, decays).update(
      gradient, state.moments, state.params
    )
  params = optax.apply_updates(state.params, updates)
  average = state.average
  if optim.average:
    # Young averages forget faster: the first steps are far from the last.
    done = state.step.astype(jnp.float32)
    keep = jnp.minimum(optim.average, (done + 1) / (done + 10))
    average = optax.incremental_update(params, average, 1 - keep)
  after = TrainState(params, average, moments, state.step)
  finite = jnp.isfinite(norm)
  after = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, state)
  return after._replace(step=state.step + 1), StepInfo(loss, norm, rate)
