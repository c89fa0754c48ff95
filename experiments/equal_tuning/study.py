"""Every method tuned alike, for PSNR and for LPIPS, at several budgets.

  python -m experiments.equal_tuning --config.folder=PICTURES
    --config.photographs=OTHERS --config.lpips=FILE

Settings: `configs/equal_tuning.py`. A cell is a method, a task and a budget in
evaluations of the network: it is tuned by `rounds`, as many points for every
method, on pictures that no report restores, and what scored best by PSNR and by
LPIPS restores the pictures of the report. Cells are files of a folder: several
processes, a card each, share them.
"""

import concurrent.futures
import json
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.degradations import FROZEN, Degradation
from experiments.equal_tuning import report, tables
from experiments.equal_tuning.methods import LATE, METHODS
from experiments.equal_tuning.rounds import Rounds, Values
from experiments.equal_tuning.settings import Given, Settings
from experiments.equal_tuning.slots import (
  Measured,
  Program,
  Slot,
  measured,
  scores,
)
from experiments.equal_tuning.tables import TABLE, TRIED
from experiments.few_calls.search import Point
from experiments.harness import record
from experiments.harness.progress import Progress
from posterior_jax.baselines import TASKS

CRITERIA = ("PSNR", "LPIPS")
_AHEAD = 3  # of the longest cells, that one process may have begun
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


def kinds(task: str) -> list[Degradation]:
  """Degradations of a task, the one that is tuned on first."""
  found = [each for each in FROZEN if each.task == task]
  return sorted(found, key=lambda each: each.kernel != _MEDIUM)


def compare(given: Given, run: record.Run) -> None:
  """Tunes and reports all cells, writes their rows as they come."""
  with Progress(len(cells(given.settings)), label=TABLE) as tick:
    for name, row in work(given, run.folder / "cells", tick):
      run.write(name, row)
  settings = given.settings
  about = (
    f"{len(given.names)} pictures at {settings.size} x {settings.size}, noise "
    f"{settings.noise_std:g}, tuned on {len(given.tuning)} others."
  )
  rows = tables.named(run.frame(TABLE))
  report.write(run, rows, run.frame(TRIED), about)


def work(
  given: Given, folder: pathlib.Path, tick: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Does the cells that nobody has begun, the first ones first.

  Args:
    given: settings and data.
    folder: with a file for every cell that was begun.
    tick: called with the words of every cell.

  Returns:
    (table, row) pairs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  settings = given.settings
  bench = Bench(given, folder)
  waiting: queue.PriorityQueue = queue.PriorityQueue()
  listed = iter(enumerate(cells(settings)))
  lock, over = threading.Lock(), threading.Event()
  ahead = 0  # evaluations of what was begun here and is not done

  def compiling() -> None:
    nonlocal ahead
    while not over.is_set():
      with lock:
        number, cell = next(listed, (None, None))
      if cell is None or number is None:
        return
      calls = settings.evaluations[cell.budget]
      # Long cells are not taken before they can be run soon: another process
      # may be there sooner.
      while ahead > _AHEAD * settings.evaluations[-1] - calls:
        if over.wait(0.05):
          return
      if not _begun(folder / str(number)):
        continue
      with lock:
        ahead += calls
      try:
        waiting.put((number, cell, bench.program(cell)))
      except Exception as error:  # one method must not end the others
        print(f"{cell}: {type(error).__name__}: {error}", flush=True)
        with lock:
          ahead -= calls

  left: list[tuple[Cell, Program]] = []
  with concurrent.futures.ThreadPoolExecutor(settings.workers) as pool:
    jobs = [pool.submit(compiling) for _ in range(settings.workers)]
    try:
      while not (all(job.done() for job in jobs) and waiting.empty()):
        try:
          _, cell, program = waiting.get(timeout=0.1)
        except queue.Empty:
          continue
        tick(str(cell))
        if program is not None:
          yield from bench.done(cell, program)
          if cell.budget + 1 < len(settings.chains):
            yield from bench.means(cell, program)
          elif cell.budget < len(settings.chains):
            left.append((cell, program))
        with lock:
          ahead -= settings.evaluations[cell.budget]
    finally:
      over.set()
  # The long means last: what a cut run lacks is what matters least.
  for cell, program in left:
    tick(f"{cell}, mean of {settings.chains[cell.budget]} chains")
    yield from bench.means(cell, program)


def _begun(path: pathlib.Path) -> bool:
  """Whether this call was the first to begin a cell."""
  try:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
  except FileExistsError:
    return False
  return True


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
    for task in settings.tasks or TASKS:
      own = kinds(task)
      self._tuning[task] = measured(own[0], given.tuning, noise, seed)
      for kind in own:
        self._report[kind] = measured(kind, given.truth, noise, seed + 1)

  def program(self, cell: Cell) -> Program | None:
    """Compiled; None where a method has no form for the operator."""
    settings = self._given.settings
    pictures = self._tuning[cell.task]
    if not _has_form(cell.method, pictures):
      return None
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
    winners = [search.best(number) for number in range(len(CRITERIA))]
    inside = [search.interior(winner) for winner in winners]
    self._keep(cell, winners, inside)
    points = [self._named(cell, point) for point in winners]
    tuned = time.monotonic() - began
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
    print(
      f"{cell.method}, {calls}, {cell.task}: "
      + "; ".join(
        f"{_shown(p)} {search.tried[w]}{'' if within else ' EDGE'}"
        for p, w, within in zip(points, winners, inside)
      )
      + f"; tuned in {tuned:.1f} s, run in {seconds:.2f} s",
      flush=True,
    )

  def means(
    self, cell: Cell, program: Program
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mean of several chains, of what was tuned for PSNR."""
    settings = self._given.settings
    chains = settings.chains[cell.budget]
    (winner, inside), *_ = self._kept(cell)
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
      closing = number >= rounds - max(rounds // 3, 1)
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
    before = cell._replace(budget=cell.budget - 1)
    calls = self._given.settings.evaluations[cell.budget]
    start = tuple(knob.start for knob in METHODS[cell.method].knobs(calls))
    return [point for point, _ in self._kept(before)] or [start] * len(CRITERIA)

  def _named(self, cell: Cell, point: Values) -> Point:
    calls = self._given.settings.evaluations[cell.budget]
    knobs = METHODS[cell.method].knobs(calls)
    return {knob.name: value for knob, value in zip(knobs, point)}

  def _winners(self, cell: Cell) -> pathlib.Path:
    return self._folder / f"{cell}.json".replace("/", "-")

  def _keep(
    self, cell: Cell, winners: list[Values], inside: list[bool]
  ) -> None:
    self._winners(cell).write_text(json.dumps([*zip(winners, inside)]))

  def _kept(self, cell: Cell) -> list[tuple[Values, bool]]:
    try:
      found = json.loads(self._winners(cell).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # none, or half of one
      return []
    return [(tuple(point), within) for point, within in found]

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


def _has_form(method: str, pictures: Measured) -> bool:
  """Whether a method has a form for the operator: DDRM needs an SVD."""
  try:
    if method == "DDRM":
      pictures.operator.svd()  # type: ignore[attr-defined]
  except ValueError:
    return False
  return True


def _shown(point: Point) -> str:
  """A point in words."""
  return ", ".join(f"{name}={value:.6g}" for name, value in point.items())
