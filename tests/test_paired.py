"""Intervals, wins and ranks of methods that saw the same cases."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from experiments.harness import paired
from tests.oracles import refused


def test_the_interval_is_that_of_all_resamples():
  """Of 5 values all 3125 resamples are known; 100,000 of them are a sample."""
  values = np.array([0.3, -1.0, 2.0, 0.7, 0.1])
  means = np.mean([*itertools.product(values, repeat=5)], axis=1)
  for level in (0.5, 0.8):
    found = paired.interval(values, level=level)
    assert found.value == values.mean()
    student = scipy.stats.t.ppf((1 - level) / 2, 4)
    below = scipy.stats.norm.cdf(student * (5 / 4) ** 0.5)
    for end, share in ((found.low, below), (found.high, 1 - below)):
      # Quantiles of the exact law three standard errors of a share away.
      near = 3 * (share * (1 - share) / paired.RESAMPLES) ** 0.5
      low, high = np.quantile(means, (share - near, share + near))
      assert low - 1e-12 <= end <= high + 1e-12


def test_of_normal_values_the_interval_is_students():
  """Plain percentiles of 23 values are 8 % narrower, of 8 values 22 %."""
  for count, near in ((23, 0.03), (8, 0.06)):
    values = scipy.stats.norm.ppf((np.arange(count) + 0.5) / count)
    found = paired.interval(values)
    error = values.std(ddof=1) / count**0.5
    width = 2 * scipy.stats.t.ppf(0.975, count - 1) * error
    np.testing.assert_allclose(found.high - found.low, width, rtol=near)


def test_the_interval_covers_the_mean():
  """Of 23 skewed values, 300 times: plain percentiles cover 92 %."""
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(300):
    found = paired.interval(rng.gamma(4.0, 1.0, 23))
    inside += found.low <= 4.0 <= found.high
  assert 0.93 <= inside / 300 <= 0.97


def test_one_case_has_no_interval_and_none_no_mean():
  found = paired.interval(np.array([2.0]))
  assert found.value == 2 and np.isnan([found.low, found.high]).all()
  for values in ([], [1.0, np.nan], [[1.0]]):
    with refused(ValueError, "values must be at least one finite number"):
      paired.interval(np.array(values))


def test_the_chance_is_that_of_all_signs():
  """Of 9 values all 512 patterns of signs are known."""
  values = np.random.default_rng(0).normal(0.5, 1.0, 9)
  signs = np.array([*itertools.product((-1, 1), repeat=9)])
  means = np.abs(signs @ values)
  exact = np.mean(means >= abs(values.sum()) - 1e-12)
  assert 0.01 < exact < 0.5
  assert paired.chance(values) == paired.chance(-values) == exact
  # All of one sign: only that pattern and its opposite are as far.
  assert paired.chance(np.full(30, 0.1)) == 2 / 2**30
  assert paired.chance(np.array([3.0])) == paired.chance(np.zeros(5)) == 1
  with refused(ValueError, "values must be at least one finite number"):
    paired.chance(np.array([np.nan]))


def test_of_many_values_the_chance_is_that_of_draws():
  """Of 60 values the sum of random signs is as good as normal."""
  values = np.random.default_rng(1).normal(0.2, 1.0, 60)
  normal = abs(values.sum()) / np.sqrt(np.sum(values**2))
  expected = 2 * scipy.stats.norm.sf(normal)
  assert 0.01 < expected < 0.5
  np.testing.assert_allclose(paired.chance(values), expected, rtol=0.05)


def test_of_many_comparisons_those_hold_that_holm_holds():
  """Against bounds of 0.05 / 4, / 3, / 2, / 1, until one does not hold."""
  found = paired.hold(np.array([0.03, 0.012, 0.04, 0.016]))
  assert found.tolist() == [False, True, False, True]
  assert paired.hold(np.array([0.02, 0.02])).tolist() == [True, True]
  assert paired.hold(np.array([0.026, 0.026])).tolist() == [False, False]
  assert paired.hold(np.array([])).tolist() == []
  with refused(ValueError, "chances must lie in"):
    paired.hold(np.array([0.1, np.nan]))


def test_by_chance_alone_hardly_anything_holds():
  """Of 100 families of 20 comparisons without a difference, one in 20."""
  rng = np.random.default_rng(0)
  wrong = sum(
    paired.hold(
      np.array([paired.chance(rng.normal(size=12)) for _ in range(20)])
    ).any()
    for _ in range(100)
  )
  assert wrong / 100 <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


def test_wins_and_ranks_of_a_table():
  scores = pd.DataFrame(
    {"a": [3.0, 1.0, 5.0, 2.0], "b": [2.0, 2.0, 5.0, 2.0], "c": [1, 0, 4, 2]}
  )
  high = paired.wins(scores)
  np.testing.assert_allclose(
    high[["a", "b", "c"]],
    [(1 + 0.5 + 1 / 3) / 4, (1 + 0.5 + 1 / 3) / 4, 1 / 12],
  )
  low = paired.wins(scores, high_is_good=False)
  np.testing.assert_allclose(low.sum(), 1)
  np.testing.assert_allclose(low["c"], (3 + 1 / 3) / 4)
  assert dict(paired.median_ranks(scores)) == {"a": 1.75, "b": 1.75, "c": 3}
  assert paired.median_ranks(scores, high_is_good=False)["c"] == 1
  for call in (paired.wins, paired.median_ranks):
    with pytest.raises(ValueError, match="a number of every method"):
      call(scores.where(scores > 0))
