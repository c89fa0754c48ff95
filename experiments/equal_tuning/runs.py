"""The rows of the report: of which runs, and which of them are known."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data.degradations import Degradation
from experiments.equal_tuning.cells import Cell, reported, tuned_on
from experiments.equal_tuning.known import shown
from experiments.equal_tuning.rounds import Rounds, Values
from experiments.equal_tuning.searches import CRITERIA, Searches
from experiments.equal_tuning.settings import Given

Row = dict[str, Any]
# Columns of a row behind those that its run shares.
_OWN = ("picture", "psnr", "lpips", "point", "interior", "seconds")


class Runs:
  """Every cell's runs on the report's pictures."""

  def __init__(self, given: Given, searches: Searches):
    """Of some settings and searches."""
    self._given, self._searches = given, searches

  def kinds(self, cell: Cell) -> list[Degradation]:
    """What a cell is reported on."""
    return reported(cell.task, self._given.settings.kernels)

  def draws(self, cell: Cell) -> int:
    """Samples of every picture, whose scores are averaged."""
    return _of(self._given.settings.draws, cell)

  def singles(self, cell: Cell, kind: Degradation) -> list[Row]:
    """Samples by the winner of each criterion: the first columns."""
    about = self._searches.about(cell) | {"kernel": kind.kernel}
    beside = {"chains": 1, "draws": self.draws(cell)}
    return [about | {"tuned for": each} | beside for each in CRITERIA]

  def means(self, cell: Cell, kind: Degradation) -> list[Row]:
    """Means of chains by the winner of each criterion, or none."""
    chains = _of(self._given.settings.chains, cell)
    if chains == 1:
      return []
    calls = self._searches.calls(cell) * chains
    about = self._searches.about(cell) | {"kernel": kind.kernel}
    about |= {"evaluations": calls}
    beside = {"chains": chains, "draws": 1}
    return [about | {"tuned for": each} | beside for each in CRITERIA]

  def known(self, cell: Cell, about: Row, point: Values) -> list[Row]:
    """The rows of a run, where they are known."""
    words = shown(self._searches.named(cell, point))
    again = self._given.prior if self._given.settings.again else None
    rows = self._given.known.rows(about, words, self._given.names, again=again)
    return [about | {name: row[name] for name in _OWN} for row in rows]

  def best(self, cell: Cell, search: Rounds) -> list[Values]:
    """The winner by each criterion.

    Scores that are known are rounded: of equal ones that whose rows are known,
    under another prior too.
    """
    found = []
    for number, about in enumerate(self.singles(cell, tuned_on(cell.task))):
      best = search.best(number)
      highest = search.tried[best][number]
      equal = (p for p, s in search.tried.items() if s[number] == highest)
      known = (p for p in equal if self._restored(cell, about, p))
      found.append(next(known, best))
    return found

  def _restored(self, cell: Cell, about: Row, point: Values) -> bool:
    words = shown(self._searches.named(cell, point))
    return self._given.known.restored(about, words)

  def unknown(
    self, cell: Cell, search: Rounds, *, means: bool
  ) -> Iterator[Row]:
    """Runs without rows, those of means only or of single samples only."""
    best = self.best(cell, search)
    for kind in self.kinds(cell):
      listed = self.means(cell, kind) if means else self.singles(cell, kind)
      yield from (
        about
        for about, point in zip(listed, best)
        if not self.known(cell, about, point)
      )

  def rows(
    self,
    cell: Cell,
    about: Row,
    point: Values,
    found: np.ndarray,
    seconds: float,
  ) -> list[Row]:
    """A row for each picture of a run.

    Args:
      cell: of the run.
      about: its first columns.
      point: that it ran with.
      found: PSNR and LPIPS, [2, N].
      seconds: that it took, with those that ran at once with it.
    """
    beside = {
      "point": shown(self._searches.named(cell, point)),
      "interior": True,
      "seconds": seconds,
    }
    return [
      about | {"picture": name, "psnr": psnr, "lpips": lpips} | beside
      for name, psnr, lpips in zip(self._given.names, *found.tolist())
    ]

  @staticmethod
  def placed(
    rows: Sequence[Row], search: Rounds, point: Values
  ) -> Iterator[Row]:
    """Rows with whether their point lies inside of what was tried."""
    inside = search.interior(point)
    yield from (row | {"interior": inside} for row in rows)


def _of(numbers: Sequence[int], cell: Cell) -> int:
  """That of a cell's budget; 1 beyond the first ones."""
  return dict(enumerate(numbers)).get(cell.budget, 1)
