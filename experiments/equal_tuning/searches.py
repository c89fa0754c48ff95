"""The searches of the cells: what is known of them, and how they go on."""

import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.equal_tuning import winners
from experiments.equal_tuning.cells import Cell, before
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.rounds import Rounds, Scores, Values
from experiments.equal_tuning.settings import Given
from experiments.few_calls.search import Knob, Point

CRITERIA = ("PSNR", "LPIPS")
# Points -> PSNR and LPIPS of every picture that is tuned on, [2, P, M].
Score = Callable[[Sequence[Point]], np.ndarray]


class Searches:
  """Every cell's search, from what is known of it to its winners."""

  def __init__(self, given: Given, folder: pathlib.Path):
    """Nothing is tried yet.

    Args:
      given: settings and what is known.
      folder: for the winners, which later cells begin from.
    """
    self._given, self._folder = given, folder

  def tried(self, cell: Cell) -> dict[Values, Scores]:
    """What is known of a search."""
    return self._given.known.tried(self.about(cell), self.knobs(cell))

  def is_known(self, cell: Cell) -> bool:
    """Whether the whole search is, or nothing is left for it to try."""
    if not self.tried(cell):
      return False
    left = self._left(cell)
    closing = self._closes(cell, left - 1)
    return not (left and self.known(cell).propose(1, closing=closing))

  def known(self, cell: Cell) -> Rounds:
    """The search as far as it is known, or its beginning.

    Raises:
      RuntimeError: the budget before has left no winners to begin from.
    """
    tried = self.tried(cell)
    starts = [*tried][:1] * len(CRITERIA) if tried else self.starts(cell)
    search = Rounds(self.knobs(cell), starts)
    for point, found in tried.items():
      search.add(point, found)
    return search

  def run(
    self, cell: Cell, takes: Callable[[Point], bool], score: Score
  ) -> Rounds:
    """The rounds that are left.

    Args:
      cell: of the search.
      takes: whether a point is a setting.
      score: of those that are.
    """
    search = self.known(cell)
    for left in reversed(range(self._left(cell))):
      closing = self._closes(cell, left)
      points = search.propose(self._points(cell), closing=closing)
      named = {point: self.named(cell, point) for point in points}
      runs = [point for point in points if takes(named[point])]
      for point in points:
        search.add(point, (math.nan, math.nan))
      if not runs:
        continue
      means = score([named[point] for point in runs]).mean(axis=2)
      for point, psnr, lpips in zip(runs, *means.tolist()):
        search.add(point, (psnr, -lpips))
    return search

  def starts(self, cell: Cell) -> list[Values]:
    """Where a search begins: by the winners of the budget before.

    Raises:
      RuntimeError: there are none.
    """
    if cell.budget == 0:
      return [tuple(knob.start for knob in self.knobs(cell))] * len(CRITERIA)
    kept = winners.kept(self._folder, before(cell))
    if not kept:
      raise RuntimeError("the budget before it has left no winners")
    return [point for point, _ in kept]

  def knobs(self, cell: Cell) -> tuple[Knob, ...]:
    """What is tuned."""
    return METHODS[cell.method].knobs(self.calls(cell))

  def named(self, cell: Cell, point: Values) -> Point:
    """A point by the names of its knobs."""
    return {knob.name: v for knob, v in zip(self.knobs(cell), point)}

  def calls(self, cell: Cell) -> int:
    """Evaluations of a cell."""
    return self._given.settings.evaluations[cell.budget]

  def about(self, cell: Cell) -> dict[str, str | int]:
    """The first columns of a cell's rows."""
    return {
      "method": cell.method,
      "evaluations": self.calls(cell),
      "task": cell.task,
    }

  def tuned_on(self, cell: Cell) -> int:
    """Pictures that a point is tried on."""
    return self._given.settings.tuned_on[cell.budget]

  def _closes(self, cell: Cell, left: int) -> bool:
    """Whether a round with so many behind it begins nothing new.

    So that winners lie inside.
    """
    return left < max(self._given.settings.rounds[cell.budget] // 2, 1)

  def _points(self, cell: Cell) -> int:
    """Points of a round."""
    slots = self._given.settings.slots
    return max(slots // self.tuned_on(cell), 1)

  def _left(self, cell: Cell) -> int:
    """Rounds that are not known; one that is not full counts as whole."""
    done = -(-len(self.tried(cell)) // self._points(cell))
    return max(self._given.settings.rounds[cell.budget] - done, 0)
