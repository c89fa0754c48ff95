"""The measurements of the cells, made where they are asked for."""

import threading

import numpy as np

from experiments.data.degradations import Degradation, frozen_operator
from experiments.equal_tuning.cells import tuned_on
from experiments.equal_tuning.programs.decomposed import decomposed
from experiments.equal_tuning.programs.slots import Measured, measured
from experiments.equal_tuning.settings import Given
from posterior_jax.base import Operator
from posterior_jax.baselines import TASKS, Task


class Pictures:
  """Of each degradation what is tuned on and what is reported."""

  def __init__(self, given: Given):
    """Measures nothing yet."""
    self._given = given
    self._made: dict[tuple[Degradation, bool], Measured] = {}
    self._operators: dict[Degradation, Operator] = {}
    size = given.settings.size
    self._plain: dict[Task, Operator] = {
      task: frozen_operator(tuned_on(task), (size, size, 3)) for task in TASKS
    }
    # Programs are compiled by several threads; one is to decompose.
    self._lock = threading.Lock()

  def plain(self, task: Task) -> Operator:
    """A task's operator, which may have no decomposition."""
    return self._plain[task]

  def tuning(self, task: Task) -> Measured:
    """Of a task, what is tuned on."""
    settings, images = self._given.settings, self._given.tuning
    return self._of(tuned_on(task), True, images, settings.seed)

  def report(self, kind: Degradation) -> Measured:
    """Of a degradation, what is reported."""
    settings, images = self._given.settings, self._given.truth
    return self._of(kind, False, images, settings.seed + 1)

  def _of(
    self, kind: Degradation, tuned: bool, images: np.ndarray, seed: int
  ) -> Measured:
    with self._lock:
      if (kind, tuned) not in self._made:
        found = measured(kind, images, self._given.settings.noise_std, seed)
        if kind not in self._operators:
          self._operators[kind] = decomposed(found.operator)
        own = found._replace(operator=self._operators[kind])
        self._made[kind, tuned] = own
      return self._made[kind, tuned]
