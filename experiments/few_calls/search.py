"""The one procedure by which every method is tuned: a search on a grid.

A knob has a first value and a step, a factor or a summand. The search takes the
knobs in turn, goes both ways as long as the score rises, and ends where no
neighbour on the grid is better: the winner lies inside of what was tried, or at
a bound that the knob itself has. Then it does so again with half of the step.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Point = Mapping[str, float]


class Knob(NamedTuple):
  """A number that is tuned.

  Attributes:
    name: of the number.
    start: where the search begins.
    factor: between neighbours on the grid, > 1; None where `step` is given.
    step: difference of neighbours, > 0.
    low: least value, where the number has one.
    high: greatest.
    whole: whether it is a count, whose values lie whole steps apart.
  """

  name: str
  start: float
  factor: float | None = 2.0
  step: float = 0.0
  low: float = 0.0
  high: float = float("inf")
  whole: bool = False

  def at(self, place: float) -> float:
    """The value so many steps from the start, kept within the bounds."""
    if self.factor is None:
      value = self.start + place * self.step
    else:
      value = self.start * self.factor**place
    return min(max(value, self.low), self.high)


class Found(NamedTuple):
  """Where a search ended.

  Attributes:
    point: the best one.
    score: of it.
    interior: whether every neighbour was tried and none is better; False where
      `most` came first.
    trials: every point that was tried and its score, in order.
  """

  point: dict[str, float]
  score: float
  interior: bool
  trials: list[tuple[dict[str, float], float]]


def search(
  knobs: Sequence[Knob],
  score: Callable[[Point], float],
  *,
  steps: Sequence[float] = (1.0, 0.5),
  most: int = 60,
) -> Found:
  """Goes uphill on the grid of the knobs until no neighbour is better.

  Args:
    knobs: what is tuned; () tries the one point that there is.
    score: of a point, larger is better; NaN, as of a run that diverged, is
      worse than any number.
    steps: of the rounds, as shares of the knobs' own.
    most: points that are tried.
  """
  tried: dict[tuple[float, ...], float] = {}
  trials: list[tuple[dict[str, float], float]] = []

  def value(place: tuple[float, ...]) -> float:
    # Knobs at their bounds make one point of several places.
    numbers = tuple(knob.at(at) for knob, at in zip(knobs, place))
    if numbers not in tried:
      point = {knob.name: number for knob, number in zip(knobs, numbers)}
      found = score(point)
      tried[numbers] = found if found == found else -float("inf")
      trials.append((point, found))
    return tried[numbers]

  def open_to(place: tuple[float, ...]) -> bool:
    numbers = tuple(knob.at(at) for knob, at in zip(knobs, place))
    return numbers in tried or len(trials) < most

  here = (0.0,) * len(knobs)
  value(here)
  interior = True
  for step in steps:
    moved = True
    while moved:
      moved, interior = False, True
      for i, side in itertools.product(range(len(knobs)), (-step, step)):
        # As far as this knob leads that way, then on to the next.
        while True:
          beside = (*here[:i], here[i] + side, *here[i + 1 :])
          if not open_to(beside):
            interior = False
            break
          if value(beside) <= value(here):
            break
          here, moved = beside, True
  point = {knob.name: knob.at(at) for knob, at in zip(knobs, here)}
  return Found(point, value(here), interior, trials)
