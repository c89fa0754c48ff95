"""The measurements of a task and the programs that restore from them."""

import concurrent.futures
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax as pj
from experiments.data import degradations
from experiments.data.degradations import Degradation, Problem
from experiments.few_calls.methods import METHODS
from experiments.few_calls.search import Point
from experiments.few_calls.settings import Task


class Problems(NamedTuple):
  """One degradation of the pictures that are tuned on and reported on."""

  tuning: Problem
  report: list[Problem]  # batches as large, the last filled up


def measured(task: Task, degradation: Degradation) -> Problems:
  """All pictures under a degradation."""
  settings, batch = task.settings, len(task.tuning)
  truths = np.stack([*task.truths.values()])
  rooms = math.ceil(len(truths) / batch)
  truths = np.resize(truths, (rooms * batch, *truths.shape[1:]))

  def measure(images: np.ndarray, seed: int) -> Problem:
    return degradations.measure(
      degradation, jnp.asarray(images), settings.noise_std, seed
    )

  seed = settings.seed
  return Problems(
    measure(task.tuning, seed),
    [
      measure(part, seed + 1 + i)
      for i, part in enumerate(np.split(truths, rooms))
    ],
  )


class Programs:
  """The compiled programs of all methods, made in threads beforehand."""

  def __init__(self, task: Task):
    """Begins to compile; batches are of as many pictures as are tuned on."""
    self._task = task
    self._pool = concurrent.futures.ThreadPoolExecutor(task.settings.workers)
    self._made: dict[Any, concurrent.futures.Future] = {}

  def begin(self, method: str, problem: Problem, evaluations: int) -> None:
    """Compiles one, unless it is under way."""
    key = self._key(method, problem, evaluations)
    if key not in self._made:
      self._made[key] = self._pool.submit(
        self._compile, method, problem, evaluations
      )

  def run(
    self, method: str, problem: Problem, evaluations: int, point: Point
  ) -> np.ndarray:
    """PSNR of every picture, [N]; NaN where the point is no setting."""
    contender = METHODS[method]
    try:
      operands = contender.operands(evaluations, point)
    except ValueError:  # as a first level below the last
      return np.full(len(problem.truth), math.nan)
    self.begin(method, problem, evaluations)
    program = self._made[self._key(method, problem, evaluations)].result()
    x = program(operands, *self._rest(problem))
    return np.asarray(pj.metrics.psnr(x, problem.truth))

  def reported(
    self, method: str, problems: Problems, evaluations: int, point: Point
  ) -> dict[str, float]:
    """PSNR by picture of those that are reported on."""
    found = [
      self.run(method, problem, evaluations, point)
      for problem in problems.report
    ]
    # The last batch is filled up: what it holds beyond the names is left out.
    return dict(zip(self._task.truths, np.concatenate(found).tolist()))

  def _key(self, method: str, problem: Problem, evaluations: int) -> Any:
    shared = METHODS[method].shared
    return method, problem.name, 0 if shared else evaluations

  def _rest(self, problem: Problem) -> tuple[Any, ...]:
    task = self._task
    key = jax.random.key(task.settings.seed)
    return task.denoise, problem.observation, key, task.spectrum

  def _compile(self, method: str, problem: Problem, evaluations: int) -> Any:
    contender = METHODS[method]
    point = {knob.name: knob.start for knob in contender.knobs(evaluations)}
    operands = contender.operands(evaluations, point)
    restore = jax.jit(contender.restore(evaluations))
    return restore.lower(operands, *self._rest(problem)).compile()
