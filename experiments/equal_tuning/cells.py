"""The cells of the comparison: a method, a task and a budget each."""

import os
import pathlib
from typing import NamedTuple

from experiments.data.degradations import FROZEN, Degradation
from experiments.equal_tuning.methods import LATE, METHODS
from experiments.equal_tuning.settings import Settings
from posterior_jax.baselines import TASKS

_MEDIUM = "medium"  # of the motion kernels, the one that is tuned on


class Cell(NamedTuple):
  """A method, a task and a budget, by its number in the settings."""

  budget: int
  task: str
  method: str

  def __str__(self) -> str:
    return f"{self.budget} {self.task} {self.method}"


def cells(settings: Settings) -> list[Cell]:
  """All of them, in the order of the work."""
  return [
    Cell(number, task, method)
    for number in range(len(settings.evaluations))
    for late in (False, True)
    for task in settings.tasks or TASKS
    for method in settings.methods or METHODS
    if (method in LATE) == late
  ]


def before(cell: Cell) -> Cell:
  """The cell of the budget before, whose winners a search begins from."""
  return cell._replace(budget=cell.budget - 1)


def kinds(task: str) -> list[Degradation]:
  """Degradations of a task, the one that is tuned on first."""
  found = [each for each in FROZEN if each.task == task]
  return sorted(found, key=lambda each: each.kernel != _MEDIUM)


def begun(path: pathlib.Path) -> bool:
  """Whether this call was the first to begin a cell."""
  try:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
  except FileExistsError:
    return False
  return True
