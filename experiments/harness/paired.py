"""Methods compared case by case: paired intervals, tests, wins and ranks.

Tables of scores have a row for each case (a picture, a signal, a task), which
every method has seen, and a column for each method.
"""

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

RESAMPLES = 100_000
_ALL = 40  # cases of which all patterns of signs are tried, half and half


class Interval(NamedTuple):
  """A mean over cases, and the ends of its interval."""

  value: float
  low: float  # NaN of a single case, which says nothing of others
  high: float


def interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
  """Mean of values and its interval by resampled cases.

  The expanded percentile bootstrap (Hesterberg 2015, arXiv 1411.5279, section
  3.3): plain percentiles are narrower than Student's t by sqrt((n - 1) / n) and
  by a normal quantile in the place of t's, 8 % of 23 cases.

  Args:
    values: [n], one per case; of two methods, their differences.
    level: probability of the interval, in (0, 1).

  Returns:
    The mean with the quantiles q and 1 - q of the means of 100,000 resamples,
    the same ones whenever n is the same, where q is the normal distribution's
    at sqrt(n / (n - 1)) times Student's quantile (1 - level) / 2.

  Raises:
    ValueError: if there are no values, or one is not finite.
  """
  values = _finite(values)
  if values.size == 1:
    return Interval(float(values[0]), np.nan, np.nan)
  tail = _tail(values.size, level)
  means = _shares(values.size) @ values
  low, high = np.quantile(means, (tail, 1 - tail))
  return Interval(float(values.mean()), float(low), float(high))


@functools.lru_cache(maxsize=4)  # 18 MB for 23 cases, which come by hundreds
def _shares(count: int) -> np.ndarray:
  """How often each case is in each resample, over their number: [B, n]."""
  draws = np.random.default_rng(0).multinomial(
    count, np.full(count, 1 / count), RESAMPLES
  )
  return draws / count


def _tail(count: int, level: float) -> float:
  """Share of the resamples beyond either end of an interval."""
  student = scipy.stats.t.ppf((1 - level) / 2, count - 1)
  return float(scipy.stats.norm.cdf(student * (count / (count - 1)) ** 0.5))


def chance(values: np.ndarray) -> float:
  """How likely a mean is as far from 0 where either sign is as likely.

  The two-sided test by random signs, which is exact for values distributed
  symmetrically about 0.

  Args:
    values: [n], one per case; of two methods, their differences.

  Returns:
    The share of all 2^n patterns of signs that take the mean at least as far;
    above 40 cases that of 100,000 draws, the same ones whenever n is the same,
    and the values' own signs.

  Raises:
    ValueError: if there are no values, or one is not finite.
  """
  values = _finite(values)
  # Those that differ by the order of summation are as far.
  far = abs(values.sum()) * (1 - 1e-9)
  if values.size > _ALL:
    as_far = np.abs(_signs(values.size) @ values) >= far
    return float((1 + as_far.sum()) / (1 + RESAMPLES))
  one, other = map(_sums, np.array_split(values, 2))
  above = other.size - np.searchsorted(np.sort(other), far - one)
  return min(1.0, 2 * float(above.sum()) / 2**values.size)


def _sums(values: np.ndarray) -> np.ndarray:
  """Of values with all patterns of signs, [2^n]."""
  found = np.zeros(1)
  for value in values:
    found = np.concatenate([found + value, found - value])
  return found


@functools.lru_cache(maxsize=4)
def _signs(count: int) -> np.ndarray:
  """Random signs of the cases, [B, n]."""
  drawn = np.random.default_rng(0).integers(0, 2, (RESAMPLES, count), np.int8)
  return 2.0 * drawn - 1


def hold(chances: np.ndarray, *, level: float = 0.05) -> np.ndarray:
  """Which of many comparisons hold together, by Holm's method (1979).

  Args:
    chances: [k], each as of `chance`.
    level: greatest probability that any of those that hold is one of chance.

  Returns:
    [k] bool: the k-th smallest holds if it and all before it are at most level
    over the number of those not before them.

  Raises:
    ValueError: if one is not in [0, 1].
  """
  chances = np.asarray(chances, float)
  if chances.ndim != 1 or not ((chances >= 0) & (chances <= 1)).all():
    raise ValueError(f"chances must lie in [0, 1], got {chances.tolist()}")
  order = np.argsort(chances, kind="stable")
  bounds = level / np.arange(len(chances), 0, -1)
  held = np.empty(len(chances), bool)
  held[order] = np.logical_and.accumulate(chances[order] <= bounds)
  return held


def wins(scores: pd.DataFrame, *, high_is_good: bool = True) -> pd.Series:
  """Share of the cases in which each method is best; ties are shared.

  Args:
    scores: cases x methods, without gaps.
    high_is_good: as PSNR, not as a distance.

  Returns:
    By method, together 1.
  """
  _check_whole(scores)
  best = scores.max(axis=1) if high_is_good else scores.min(axis=1)
  first = scores.eq(best, axis=0)
  return first.div(first.sum(axis=1), axis=0).mean()


def median_ranks(
  scores: pd.DataFrame, *, high_is_good: bool = True
) -> pd.Series:
  """Median over the cases of each method's rank, 1 for the best.

  Args:
    scores: cases x methods, without gaps; equal ones share their mean rank.
    high_is_good: as PSNR, not as a distance.

  Returns:
    By method.
  """
  _check_whole(scores)
  return scores.rank(axis=1, ascending=not high_is_good).median()


def _check_whole(scores: pd.DataFrame) -> None:
  if not len(scores) or scores.isna().to_numpy().any():
    raise ValueError("scores must have a number of every method in every case")


def _finite(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, float)
  if values.ndim != 1 or not values.size or not np.isfinite(values).all():
    raise ValueError(
      f"values must be at least one finite number, got {values.tolist()}"
    )
  return values
