"""One cell after the other: tuned, reported, and averaged over chains."""

import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.degradations import Degradation
from experiments.equal_tuning import winners
from experiments.equal_tuning.cells import Cell, before, kinds
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.rounds import Rounds, Values
from experiments.equal_tuning.settings import Given
from experiments.equal_tuning.slots import (
  Measured,
  Program,
  Slot,
  measured,
  scores,
)
from experiments.equal_tuning.tables import TABLE, TRIED
from experiments.few_calls.contenders import has_form
from experiments.few_calls.search import Point
from posterior_jax.baselines import TASKS

CRITERIA = ("PSNR", "LPIPS")


class Bench:
  """Programs, measurements and results of the cells."""

  def __init__(self, given: Given, folder: pathlib.Path):
    """Measures all pictures.

    Args:
      given: settings and data.
      folder: for the winners, which later cells begin from.
    """
    self._given, self._folder = given, folder
    settings = given.settings
    self._tuning: dict[str, Measured] = {}
    self._report: dict[Degradation, Measured] = {}
    noise, seed = settings.noise_std, settings.seed
    self._without: set[tuple[str, str]] = set()  # methods without a form
    for task in settings.tasks or TASKS:
      own = kinds(task)
      self._tuning[task] = measured(own[0], given.tuning, noise, seed)
      operator = self._tuning[task].operator
      self._without |= {
        (method, task) for method in METHODS if not has_form(method, operator)
      }
      for kind in own:
        self._report[kind] = measured(kind, given.truth, noise, seed + 1)

  def program(self, cell: Cell) -> Program | None:
    """Compiled; None where a method has no form for the operator."""
    settings = self._given.settings
    pictures = self._tuning[cell.task]
    if not self._has_form(cell):
      return None
    self._starts(cell)  # refused here, before anything is compiled
    contender, calls = METHODS[cell.method], settings.evaluations[cell.budget]
    program = Program(
      contender,
      calls,
      settings.slots,
      self._given.denoise,
      self._given.spectrum,
      settings.seed,
    )
    start = {knob.name: knob.start for knob in contender.knobs(calls)}
    program.compile(start, pictures)
    return program

  def waits(self, cell: Cell) -> bool:
    """Whether the winners that a cell begins from are still to come."""
    if cell.budget == 0 or not self._has_form(cell):
      return False
    return not winners.path(self._folder, before(cell)).exists()

  def give_up(self, cell: Cell) -> None:
    """Leaves no winners, so that nobody waits for a cell that failed."""
    winners.keep(self._folder, cell, [], [])

  def done(
    self, cell: Cell, program: Program
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tunes a cell, restores by its winners."""
    began = time.monotonic()
    settings = self._given.settings
    calls = settings.evaluations[cell.budget]
    about = {"method": cell.method, "evaluations": calls, "task": cell.task}
    search = self._searched(cell, program)
    for point, means in search.tried.items():
      yield (
        TRIED,
        about
        | {
          "point": _shown(self._named(cell, point)),
          "psnr": means[0],
          "lpips": -means[1],
        },
      )
    best = [search.best(number) for number in range(len(CRITERIA))]
    inside = [search.interior(winner) for winner in best]
    winners.keep(self._folder, cell, best, inside)
    points = [self._named(cell, point) for point in best]
    tuned = time.monotonic() - began
    began = time.monotonic()
    yield from self._restored(cell, program, points, inside, about)
    print(
      f"{cell.method}, {calls}, {cell.task}: "
      + "; ".join(
        f"{_shown(p)} {search.tried[w]}{'' if within else ' EDGE'}"
        for p, w, within in zip(points, best, inside)
      )
      + f"; tuned in {tuned:.1f} s, run in {time.monotonic() - began:.2f} s",
      flush=True,
    )

  def _restored(
    self,
    cell: Cell,
    program: Program,
    points: list[Point],
    inside: list[bool],
    about: dict[str, Any],
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report's pictures by the winner of each criterion."""
    for kind in kinds(cell.task):
      pictures = self._report[kind]
      count = len(pictures.truth)
      slots = [Slot(p, i) for p in points for i in range(count)]
      started = time.monotonic()
      found = self._scored(program(slots, pictures), slots, pictures)
      seconds = time.monotonic() - started
      for number, criterion in enumerate(CRITERIA):
        own = slice(number * count, (number + 1) * count)
        yield from self._rows(
          about | {"kernel": kind.kernel, "tuned for": criterion, "chains": 1},
          points[number],
          inside[number],
          found[:, own],
          seconds,
        )

  def means(
    self, cell: Cell, program: Program
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mean of several chains, of what was tuned for PSNR."""
    settings = self._given.settings
    chains = settings.chains[cell.budget]
    (winner, inside), *_ = winners.kept(self._folder, cell)
    point = self._named(cell, winner)
    about = {
      "method": cell.method,
      "evaluations": settings.evaluations[cell.budget] * chains,
      "task": cell.task,
    }
    for kind in kinds(cell.task):
      pictures = self._report[kind]
      count = len(pictures.truth)
      slots = [Slot(point, i, c) for c in range(chains) for i in range(count)]
      started = time.monotonic()
      x = program(slots, pictures).reshape(chains, *pictures.truth.shape)
      found = self._scored(jnp.mean(x, axis=0), slots[:count], pictures)
      yield from self._rows(
        about
        | {"kernel": kind.kernel, "tuned for": CRITERIA[0], "chains": chains},
        point,
        inside,
        found,
        time.monotonic() - started,
      )

  def _searched(self, cell: Cell, program: Program) -> Rounds:
    settings = self._given.settings
    knobs = METHODS[cell.method].knobs(settings.evaluations[cell.budget])
    search = Rounds(knobs, self._starts(cell))
    pictures = self._tuning[cell.task]
    count = min(settings.tuned_on[cell.budget], len(pictures.truth))
    rounds = settings.rounds[cell.budget]
    for number in range(rounds):
      # In the end nothing new is begun, so that winners lie inside.
      closing = number >= rounds - max(rounds // 2, 1)
      points = search.propose(max(settings.slots // count, 1), closing=closing)
      named = {point: self._named(cell, point) for point in points}
      runs = [point for point in points if program.takes(named[point])]
      slots = [Slot(named[point], i) for point in runs for i in range(count)]
      for point in points:
        search.add(point, (math.nan, math.nan))
      if not slots:
        continue
      found = self._scored(program(slots, pictures), slots, pictures)
      means = found.reshape(2, len(runs), count).mean(axis=2)
      for point, psnr, lpips in zip(runs, *means.tolist()):
        search.add(point, (psnr, -lpips))
    return search

  def _scored(
    self, x: jax.Array, slots: list[Slot], pictures: Measured
  ) -> np.ndarray:
    """PSNR and LPIPS, [2, S]."""
    which = np.array([slot.picture for slot in slots])
    size = self._given.settings.slots
    parts = []
    for first in range(0, len(slots), size):
      own = np.resize(which[first : first + size], size)
      images = jnp.resize(x[first : first + size], (size, *x.shape[1:]))
      found = scores(images, pictures.truth[own], self._given.lpips)
      parts.append(np.asarray(found))
    return np.concatenate(parts, axis=1)[:, : len(slots)]

  def _starts(self, cell: Cell) -> list[Values]:
    if cell.budget > 0:
      kept = winners.kept(self._folder, before(cell))
      if not kept:
        raise RuntimeError("the budget before it has left no winners")
      return [point for point, _ in kept]
    calls = self._given.settings.evaluations[cell.budget]
    start = tuple(knob.start for knob in METHODS[cell.method].knobs(calls))
    return [start] * len(CRITERIA)

  def _has_form(self, cell: Cell) -> bool:
    """Whether a method has a form for the operator."""
    return (cell.method, cell.task) not in self._without

  def _named(self, cell: Cell, point: Values) -> Point:
    calls = self._given.settings.evaluations[cell.budget]
    knobs = METHODS[cell.method].knobs(calls)
    return {knob.name: value for knob, value in zip(knobs, point)}

  def _rows(
    self,
    about: dict[str, Any],
    point: Point,
    interior: bool,
    found: np.ndarray,
    seconds: float,
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, psnr, lpips in zip(self._given.names, *found.tolist()):
      yield (
        TABLE,
        about
        | {
          "picture": name,
          "psnr": psnr,
          "lpips": lpips,
          "point": _shown(point),
          "interior": interior,
          "seconds": seconds,
        },
      )


def _shown(point: Point) -> str:
  """A point in words."""
  return ", ".join(f"{name}={value:.6g}" for name, value in point.items())
