"""One search for two scores, in rounds of as many points for every method.

Points lie on lines, one for each knob. A side of a point is open while nothing
beyond it was tried on its line, unless the knob ends there. Every round goes on
from the best points by either score: first it tries a value on their open
sides, twice as far as the nearest one on the other side, then the middle of the
gaps beside them. A winner without an open side lies inside of what was tried; a
winner with one lies on an edge. A knob that is no number has no edge.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from experiments.few_calls.search import Knob

Values = tuple[float, ...]  # of the knobs
# Of every score, larger is better.
Scores = tuple[float, ...]
# Gaps are halved down to this share of a knob's step.
_FINEST = 0.25
# Nor does an open side lead further than this at once, in steps.
_FURTHEST = 4.0


class Rounds:
  """The points that were tried and those that are next."""

  def __init__(self, knobs: Sequence[Knob], starts: Sequence[Values]):
    """A search over some knobs.

    Args:
      knobs: what is tuned.
      starts: points to begin with, one for each score; they may be equal.
    """
    self._knobs = tuple(knobs)
    self._starts = [*dict.fromkeys(starts)]
    self._count = len(starts)
    self.tried: dict[Values, Scores] = {}

  def propose(self, count: int, *, closing: bool = False) -> list[Values]:
    """The next points, at most `count`, none of them tried before.

    Args:
      count: how many.
      closing: whether open sides alone are tried: the middle of a gap lies on
        lines of its own, whose sides are open.
    """
    found: list[Values] = []
    if not self.tried:
      found += self._starts[:count]
    # Each proposal may be gone on from, so that few knobs fill a round too.
    for places in itertools.chain(self._ranked(), _growing(found)):
      for point in self._around(places, found, closing):
        if len(found) == count:
          return found
        if point not in self.tried and point not in found:
          found.append(point)
    return found

  def add(self, point: Values, scores: Scores) -> None:
    """Takes what a point scored; what is no number is worse than any."""
    self.tried[point] = tuple(s if s == s else -math.inf for s in scores)

  def best(self, number: int) -> Values:
    """The best point by score `number`."""
    return max(self.tried, key=lambda point: self.tried[point][number])

  def interior(self, point: Values) -> bool:
    """Whether no side of a point is open."""
    return not any(
      self._open(point, i, side, self.tried)
      for i in range(len(self._knobs))
      for side in (-1, 1)
    )

  def _ranked(self) -> Iterator[tuple[Values, ...]]:
    """The best points by every score, then the next ones."""
    orders = []
    for number in range(self._count):
      scores = {point: found[number] for point, found in self.tried.items()}
      orders.append(sorted(scores, key=scores.__getitem__, reverse=True))
    return zip(*orders)

  def _around(
    self, places: tuple[Values, ...], more: list[Values], closing: bool
  ) -> Iterator[Values]:
    known = [*self.tried, *more]
    sides = [*itertools.product(range(len(self._knobs)), (-1, 1))]
    for point, (i, side) in itertools.product(places, sides):
      if self._open(point, i, side, known):
        steps = side * self._reach(point, i, side, known)
        yield _with(point, i, _stepped(self._knobs[i], point[i], steps))
    for point, (i, side) in itertools.product(places, sides):
      line = self._line(point, i, side, known)
      if line and not closing:
        nearest = min(line, key=lambda value: abs(value - point[i]))
        middle = _middle(self._knobs[i], point[i], nearest)
        if middle is not None:
          yield _with(point, i, middle)

  def _open(
    self, point: Values, i: int, side: int, known: Sequence[Values] | dict
  ) -> bool:
    ends = _stepped(self._knobs[i], point[i], side) == point[i]
    return not ends and not self._line(point, i, side, known)

  def _reach(
    self, point: Values, i: int, side: int, known: Sequence[Values] | dict
  ) -> float:
    """Steps to the next value of knob i on an open side.

    Longer from one to the next, since a score that still rises after two of
    them may do so for many.
    """
    behind = self._line(point, i, -side, known)
    if not behind:
      return 1.0
    nearest = min(behind, key=lambda value: abs(value - point[i]))
    gap = _gap(self._knobs[i], point[i], nearest)
    return min(max(2 * gap, 1.0), _FURTHEST)

  def _line(
    self, point: Values, i: int, side: int, known: Sequence[Values] | dict
  ) -> list[float]:
    """Values of knob i that are known beyond a point, all else equal."""
    return [
      other[i]
      for other in known
      if side * (other[i] - point[i]) > 0 and _with(other, i, point[i]) == point
    ]


def _growing(points: list[Values]) -> Iterator[tuple[Values, ...]]:
  """The points of a list that grows meanwhile, one at a time."""
  number = 0
  while number < len(points):
    yield (points[number],)
    number += 1


def _with(point: Values, i: int, value: float) -> Values:
  return (*point[:i], value, *point[i + 1 :])


def _rounded(knob: Knob, value: float) -> float:
  """Six digits of a value, or of its number of steps where those are sums.

  Equal values by different ways must be equal keys.
  """
  if knob.factor is None:
    # Digits of the value itself would keep 1e-16, as of 0.4 - 0.2 - 0.2, apart
    # from 0.
    value = round(value / knob.step, 6) * knob.step
  return float(f"{value:.6g}")


def _stepped(knob: Knob, value: float, steps: float) -> float:
  return _rounded(knob, knob._replace(start=value).at(steps))


def _middle(knob: Knob, a: float, b: float) -> float | None:
  """Half way between two values, None where the gap is fine enough.

  A count has nothing between neighbours.
  """
  gap = _gap(knob, a, b)
  if knob.whole:
    half = round(gap) // 2
    return _stepped(knob, min(a, b), half) if half else None
  if not gap > 2 * _FINEST * 0.999:
    return None
  middle = (a + b) / 2 if knob.factor is None else math.sqrt(a * b)
  return _rounded(knob, middle)


def _gap(knob: Knob, a: float, b: float) -> float:
  """Steps between two values; none where a factor does not lead from 0."""
  if knob.factor is None:
    return abs(b - a) / knob.step
  if min(a, b) <= 0:
    return 0.0
  return abs(math.log(b / a)) / math.log(knob.factor)
