"""The cells of the comparison: a method, a task and a budget each."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, cast

from experiments.data.degradations import Degradation
from experiments.equal_tuning.methods import LATE, METHODS
from experiments.equal_tuning.settings import Settings
from posterior_jax.baselines import TASKS, Task

MOTION: Task = "motion_blur"  # the task that has kernels
_MEDIUM = "medium"  # of them the one that is tuned on


class Cell(NamedTuple):
  """A method, a task and a budget, by its number in the settings."""

  budget: int
  task: Task
  method: str

  def __str__(self) -> str:
    return f"{self.budget} {self.task} {self.method}"


def cells(settings: Settings) -> list[Cell]:
  """All of them, in the order of the work."""
  return [
    Cell(number, cast(Task, task), method)
    for number in range(len(settings.evaluations))
    for late in (False, True)
    for task in settings.tasks or TASKS
    for method in settings.methods or METHODS
    if (method in LATE) == late
  ]


def before(cell: Cell) -> Cell:
  """The cell of the budget before, whose winners a search begins from."""
  return cell._replace(budget=cell.budget - 1)


def tuned_on(task: Task) -> Degradation:
  """What a task is tuned on."""
  return Degradation(task, _MEDIUM if task == MOTION else "")


def reported(task: Task, kernels: Sequence[str]) -> list[Degradation]:
  """Degradations of a task: of motion blur those of some kernels."""
  if task != MOTION:
    return [Degradation(task)]
  return [Degradation(task, each) for each in kernels]


def begun(path: pathlib.Path) -> bool:
  """Whether this call was the first to begin a cell."""
  try:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
  except FileExistsError:
    return False
  return True
