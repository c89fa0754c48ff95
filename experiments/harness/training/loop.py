"""The training loop around a study's step.

The step is pure: it draws its batch from the run's key and the state's number,
takes a gradient, and calls `optimiser.moved`. The loop on the host counts
steps, writes the table "training", keeps checkpoints and stops on SIGTERM. A
run that goes on from a checkpoint ends with the same bits as an unbroken one on
CPUs, and equal to rounding on GPUs.
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
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness import record, writing
from experiments.harness.processes import hosts
from experiments.harness.progress import Progress
from experiments.harness.settings import Checked, setting
from experiments.harness.training import pace
from experiments.harness.training.checkpoints import (
  Checkpoints,
  Damaged,
  Interrupt,
  Saved,
)
from experiments.harness.training.curves import Scalars

TABLE = "training"


@dataclasses.dataclass(frozen=True)
class LoopSettings(Checked):
  """How long a training runs, and what it says on the way."""

  # until the last step, data and compilation included; the number of steps
  # follows from the speed. 0: `steps` decides
  minutes: float
  steps: int  # how many
  save_every: int = setting(at_least=1)  # steps between checkpoints
  report_every: int = setting(at_least=1)  # steps between lines of the table

  def __post_init__(self) -> None:
    super().__post_init__()
    pace.check(self.minutes, self.steps)


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
  """What the loop of a study does besides its steps."""

  name: str  # of the experiment
  settings: LoopSettings  # how long, how often
  # (number of steps done, what the step says) -> numbers of the table besides
  # "step", "of" and "seconds"
  row: Callable[[int, Any], Mapping[str, float]]
  # writes what the run leaves of a state; ValueError where that has diverged
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
    Refused: the weights are such as `Loop.save` does not take.
  """
  checkpoints, scalars = Checkpoints(run.folder), Scalars(run.folder)
  for row in run.rows(TABLE):  # curves are made of the table, once more
    scalars.write(row["step"], _curves(row))

  def keep(saved: Saved) -> None:
    # The checkpoint first: the weights can be made of it, not it of them.
    checkpoints.save(saved)
    try:
      loop.save(saved.state)
    except ValueError as error:  # what diverged fits no file
      raise writing.Refused(
        f"the weights after {int(saved.state.step)} steps cannot be kept: "
        f"{error}; start anew with smaller learning rates"
      ) from error

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
    while number < total and not interrupt.reached():
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
