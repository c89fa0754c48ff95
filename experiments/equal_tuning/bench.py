"""One cell after the other: tuned, reported, and averaged over chains."""

import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.equal_tuning import winners
from experiments.equal_tuning.cells import Cell, before, cells
from experiments.equal_tuning.known import shown
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.pictures import Pictures
from experiments.equal_tuning.programs.slots import (
  Measured,
  Program,
  Slot,
  scores,
)
from experiments.equal_tuning.rounds import Rounds
from experiments.equal_tuning.runs import Row, Runs
from experiments.equal_tuning.searches import CRITERIA, Searches
from experiments.equal_tuning.settings import Given
from experiments.equal_tuning.tables import TABLE, TRIED
from experiments.few_calls.contenders import has_form
from experiments.few_calls.search import Point
from posterior_jax.baselines import TASKS


class Bench:
  """Programs, measurements and results of the cells."""

  def __init__(self, given: Given, folder: pathlib.Path):
    """Leaves the winners of searches that are known to the end.

    Args:
      given: settings and data.
      folder: for the winners, which later cells begin from.
    """
    self._given, self._folder = given, folder
    self._pictures = Pictures(given)
    self._searches = Searches(given, folder)
    self._runs = Runs(given, self._searches)
    self._without = {
      (method, task)
      for method, task in itertools.product(METHODS, TASKS)
      if not has_form(method, self._pictures.plain(task))
    }
    for cell in cells(given.settings):
      if self._has_form(cell) and self._searches.is_known(cell):
        self._keep(cell, self._searches.known(cell))

  def lacks_means_alone(self, cell: Cell) -> bool:
    """Whether all but the means of chains are known: what is done last."""
    return self._is_known(cell, means=False) and not self.is_done(cell)

  def is_done(self, cell: Cell) -> bool:
    """Whether nothing is left of a cell, or it has no form."""
    if not self._has_form(cell):
      return True
    if self._given.settings.again and not self._searches.tried(cell):
      return True  # there are no winners to restore by
    return self._is_known(cell, means=False) and self._is_known(
      cell, means=True
    )

  def program(self, cell: Cell) -> Program | None:
    """Compiled; None where `is_done`."""
    settings = self._given.settings
    if self.is_done(cell):
      return None
    self._searches.known(cell)  # refused here, before anything is compiled
    contender, calls = METHODS[cell.method], self._searches.calls(cell)
    program = Program(
      contender,
      calls,
      settings.slots,
      self._given.denoise,
      self._given.spectrum,
      settings.seed,
    )
    start = {knob.name: knob.start for knob in contender.knobs(calls)}
    program.compile(start, self._pictures.tuning(cell.task))
    return program

  def waits(self, cell: Cell) -> bool:
    """Whether the winners that a cell begins from are still to come."""
    if cell.budget == 0 or not self._has_form(cell):
      return False
    if self._given.settings.again or self._searches.tried(cell):
      return False  # it goes on from its own points, or tries none
    return not winners.path(self._folder, before(cell)).exists()

  def give_up(self, cell: Cell) -> None:
    """Leaves no winners, so that nobody waits for a cell that failed."""
    winners.keep(self._folder, cell, [], [])

  def done(
    self, cell: Cell, program: Program | None
  ) -> Iterator[tuple[str, Row]]:
    """What a cell has come to: points, pictures, means of chains.

    All in the end, so that a run that is cut has a cell whole or not at all.
    """
    if program is None and not self._searches.tried(cell):
      return
    began = time.monotonic()
    search = self._searched(cell, program)
    self._keep(cell, search)
    tuned = time.monotonic() - began
    rows = [*self._reported(cell, program, search, means=False)]
    rows += self._reported(cell, program, search, means=True)
    if not self._given.settings.again:
      yield from ((TRIED, row) for row in self._log(cell, search))
    prior = {"prior": self._given.prior.prior}
    yield from ((TABLE, row | prior) for row in rows)
    if program is not None:
      whole = time.monotonic() - began
      print(
        f"{self._said(cell, search, rows)}; {tuned:.1f} of {whole:.1f} s",
        flush=True,
      )

  def _searched(self, cell: Cell, program: Program | None) -> Rounds:
    if program is None:
      return self._searches.known(cell)
    pictures = self._pictures.tuning(cell.task)
    count = self._searches.tuned_on(cell)

    def score(points: Sequence[Point]) -> np.ndarray:
      slots = [Slot(point, i) for point in points for i in range(count)]
      found = self._scored(program(slots, pictures), slots, pictures)
      return found.reshape(2, len(points), count)

    return self._searches.run(cell, program.takes, score)

  def _reported(
    self, cell: Cell, program: Program | None, search: Rounds, *, means: bool
  ) -> Iterator[Row]:
    """The report's pictures by the winner of each criterion."""
    best = self._runs.best(cell, search)
    listed = self._runs.means if means else self._runs.singles
    for kind in self._runs.kinds(cell):
      new = []
      for about, point in zip(listed(cell, kind), best):
        rows = self._runs.known(cell, about, point)
        yield from self._runs.placed(rows, search, point)
        new += [] if rows else [(about, point)]
      if not new or program is None:
        continue
      pictures = self._pictures.report(kind)
      # One point may be the best by either score.
      points = [*dict.fromkeys(point for _, point in new)]
      named = [self._searches.named(cell, point) for point in points]
      started = time.monotonic()
      found = self._restored(program, named, new[0][0], pictures)
      seconds = time.monotonic() - started
      for about, point in new:
        number = points.index(point)
        rows = self._runs.rows(cell, about, point, found[:, number], seconds)
        yield from self._runs.placed(rows, search, point)

  def _restored(
    self,
    program: Program,
    points: Sequence[Point],
    about: Row,
    pictures: Measured,
  ) -> np.ndarray:
    """PSNR and LPIPS of every point and picture, [2, P, N].

    Of the mean of a point's chains, or the mean of its samples' scores.
    """
    count, chains = len(pictures.truth), about["chains"]
    slots = [
      Slot(point, i, sample)
      for point in points
      for sample in range(chains * about["draws"])
      for i in range(count)
    ]
    x = program(slots, pictures)
    if chains > 1:
      parts = x.reshape(len(points), chains, count, *x.shape[1:])
      x = jnp.mean(parts, axis=1).reshape(-1, *x.shape[1:])
      slots = [slot for slot in slots if slot.chain == 0]
    found = self._scored(x, slots, pictures)
    return found.reshape(2, len(points), -1, count).mean(axis=2)

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

  def _is_known(self, cell: Cell, *, means: bool) -> bool:
    if not self._searches.is_known(cell):
      return False
    search = self._searches.known(cell)
    return not any(self._runs.unknown(cell, search, means=means))

  def _has_form(self, cell: Cell) -> bool:
    """Whether a method has a form for the operator."""
    return (cell.method, cell.task) not in self._without

  def _keep(self, cell: Cell, search: Rounds) -> None:
    best = self._runs.best(cell, search)
    inside = [search.interior(point) for point in best]
    winners.keep(self._folder, cell, best, inside)

  def _log(self, cell: Cell, search: Rounds) -> Iterator[Row]:
    """Every point and its scores."""
    for point, (psnr, lpips) in search.tried.items():
      words = shown(self._searches.named(cell, point))
      found: dict[str, Any] = {"point": words, "psnr": psnr, "lpips": -lpips}
      yield self._searches.about(cell) | found

  def _said(self, cell: Cell, search: Rounds, rows: list[Row]) -> str:
    """A cell's winners and their scores in words.

    Of winners that restored again the mean scores of that: those of the search
    are of another prior.
    """
    if self._given.settings.again:
      single = [row for row in rows if row["chains"] == 1]
      means = (
        f"{name} {np.mean([r[name.lower()] for r in own]):.3f}"
        for name in CRITERIA
        if (own := [row for row in single if row["tuned for"] == name])
      )
      return f"{cell}: {', '.join(means)}"
    words = (
      f"{shown(self._searches.named(cell, point))} {search.tried[point]}"
      f"{'' if search.interior(point) else ' EDGE'}"
      for point in self._runs.best(cell, search)
    )
    return f"{cell}: {'; '.join(words)}; {len(search.tried)} points"
