"""Training: the update of the parameters, and the loop around a step.

The step of a study is pure: it draws its batch from the run's key and the
state's number, takes a gradient, and calls `moved`. The loop on the host counts
steps, writes the table "training", keeps checkpoints and stops on SIGTERM. A
run that goes on from a checkpoint ends with the same bits as an unbroken one.
"""

import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness import hosts, pace, record
from experiments.harness.checkpoints import (
  Checkpoints,
  Damaged,
  Interrupt,
  Saved,
)
from experiments.harness.progress import Progress
from experiments.harness.scalars import Scalars
from experiments.harness.settings import Checked, setting

Params = dict[str, jax.Array]
TABLE = "training"


@dataclasses.dataclass(frozen=True)
class LoopSettings(Checked):
  """How long a training runs, and what it says on the way.

  Attributes:
    minutes: until the last step, data and compilation included; the number of
      steps follows from the speed. 0: `steps` decides.
    steps: how many.
    save_every: steps between checkpoints.
    report_every: steps between lines of the table.
  """

  minutes: float
  steps: int
  save_every: int = setting(at_least=1)
  report_every: int = setting(at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    pace.check(self.minutes, self.steps)


@dataclasses.dataclass(frozen=True)
class OptimSettings(Checked):
  """How the parameters move: AdamW of clipped gradients, maybe averaged.

  Attributes:
    rate: greatest learning rate.
    warmup: steps until it is reached.
    constant: share of the run before it falls, linearly to zero.
    clip: greatest norm of a gradient.
    decay: weight decay of a step of rate 1.
    average: decay of the parameters' exponential moving average; 0: none is
      kept.
    b2: decay of the second moment.
  """

  rate: float = setting(1e-3, above=0)
  warmup: int = setting(300, at_least=0)
  constant: float = setting(0.2, at_least=0, below=1)
  clip: float = setting(1.0, above=0)
  decay: float = setting(0.0, at_least=0)
  average: float = setting(0.0, at_least=0, below=1)
  b2: float = setting(0.95, at_least=0, below=1)


class TrainState(NamedTuple):
  """What the next step needs.

  Attributes:
    params: by name, float32.
    average: their exponential moving average, empty where none is kept.
    moments: of the optimiser.
    step: int32 scalar, steps done.
  """

  params: Params
  average: Params
  moments: Any
  step: jax.Array


class StepInfo(NamedTuple):
  """What a step says of itself: scalars.

  Attributes:
    loss: of the step's batch.
    gradient: norm before clipping.
    rate: learning rate.
  """

  loss: jax.Array
  gradient: jax.Array
  rate: jax.Array


def init(params: Params, optim: OptimSettings) -> TrainState:
  """The state before the first step."""
  average = jax.tree.map(jnp.copy, params) if optim.average else {}
  moments = _optimiser(optim, 0.0, None).init(params)
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
    updates, moments = _optimiser(optim, rate, decays).update(
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


def _optimiser(
  optim: OptimSettings,
  rate: jax.Array | float,
  decays: Callable[[str], bool] | None,
) -> optax.GradientTransformation:
  """AdamW at a rate that is a number of the trace, not a schedule of optax.

  Those need the number of steps before the trace; a run of given minutes
  learns it on the way.
  """

  def mask(params: Params) -> dict[str, bool]:
    return {name: decays is None or decays(name) for name in params}

  return optax.chain(
    optax.clip_by_global_norm(optim.clip),
    optax.adamw(rate, b1=0.9, b2=optim.b2, weight_decay=optim.decay, mask=mask),
  )


State = TypeVar("State", bound=Any)


class Step(Protocol):
  """A step of a study: donates the state and returns the next."""

  def __call__(
    self, state: Any, number: int, total: jax.Array
  ) -> tuple[Any, Any]:
    """The next state, and what the step says of itself: has a `loss`.

    Args:
      state: donated.
      number: of steps done, known on the host.
      total: steps of the whole run, float.
    """
    ...


class Loop(NamedTuple):
  """What the loop of a study does besides its steps.

  Attributes:
    name: of the experiment.
    settings: how long, how often.
    row: (number of steps done, what the step says) -> numbers of the table
      besides "step", "of" and "seconds".
    save: writes what the run leaves of a state.
  """

  name: str
  settings: LoopSettings
  row: Callable[[int, Any], Mapping[str, float]]
  save: Callable[[Any], None]


def start(
  state: State,
  settings: LoopSettings,
  placed: Mesh | Any,
  folder: pathlib.Path | None,
) -> Saved:
  """The newest whole checkpoint, or the state before the first step; placed.

  What is damaged is put aside, and said.

  Args:
    state: the latter.
    settings: of the loop.
    placed: on all of whose devices the state is to be, a mesh; or where every
      array of it, a tree of shardings.
    folder: of the run whose checkpoints are looked for; None: of none.
  """
  total = float(settings.steps) if settings.steps else math.inf
  if isinstance(placed, Mesh):
    placed = NamedSharding(placed, P())
  saved = Saved(hosts.place(state, placed), total)
  if folder is not None:
    saved = _newest(Checkpoints(folder), saved)
  return saved._replace(state=hosts.place(saved.state, placed))


def _newest(checkpoints: Checkpoints, fresh: Saved) -> Saved:
  while checkpoints.newest is not None:
    try:
      return checkpoints.restore(fresh.state)
    except Damaged as error:
      words = f"step {checkpoints.newest or 0}"
      print(f"{error}; going on from {words}", file=sys.stderr)
  return fresh


def train(saved: Saved, step: Step, loop: Loop, run: record.Run) -> Any:
  """Steps until the last one, keeping checkpoints.

  Args:
    saved: where to begin, from `start`.
    step: of the study.
    loop: what else is done.
    run: takes the table "training", curves and checkpoints.

  Returns:
    The last state.

  Raises:
    SystemExit: SIGTERM came; the state after the step under way is kept.
  """
  checkpoints, scalars = Checkpoints(run.folder), Scalars(run.folder)
  for row in run.rows(TABLE):  # curves are made of the table, once more
    scalars.write(row["step"], _curves(row))

  def keep(saved: Saved) -> None:
    # The checkpoint first: the weights can be made of it, not it of them.
    checkpoints.save(saved)
    loop.save(saved.state)

  with Interrupt() as interrupt:
    try:
      saved = _steps(saved, step, loop, run, scalars, keep, interrupt)
      keep(saved)
    finally:
      scalars.close()
  if interrupt.asked:
    number = int(saved.state.step)
    raise SystemExit(f"stopped at step {number}; {run.how_to_go_on()}")
  return saved.state


def _curves(row: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of a line that `Loop.row` gave."""
  ours = ("step", "of", "seconds")
  return {name: float(x) for name, x in row.items() if name not in ours}


def _steps(
  saved: Saved,
  step: Step,
  loop: Loop,
  run: record.Run,
  scalars: Scalars,
  keep: Callable[[Saved], None],
  interrupt: Interrupt,
) -> Saved:
  """Steps until the last one or the signal."""
  settings, (state, total) = loop.settings, saved
  number = int(state.step)
  # A run gone on with may have lines beyond its last checkpoint.
  known = max((row["step"] for row in run.rows(TABLE)), default=0)
  watch = None  # step and second since which the speed is measured
  with Progress(0, label=loop.name) as tick:
    while number < total and not interrupt.reached(number):
      # numpy's: an array of jax's would lie on one device of one process.
      steps: Any = np.float32(total)
      state, info = step(state, number, steps)
      number += 1
      if number % settings.report_every == 0 or number == total:
        tick(f"step {number} of {total:.0f}, loss {float(info.loss):.4f}")
        if number > known:
          values = loop.row(number, info)
          seconds = round(run.seconds(), 2)
          about = {"step": number, "of": total, "seconds": seconds}
          run.write(TABLE, about | dict(values))
          scalars.write(number, values)
        if math.isinf(total):
          watch = watch or (number, time.monotonic())
          plan = functools.partial(
            pace.planned,
            watch,
            number,
            minutes=settings.minutes,
            spent=run.seconds(),
          )
          total = hosts.from_first(plan)  # one clock counts
      if number % settings.save_every == 0:
        keep(Saved(state, total))
  return Saved(state, total)
