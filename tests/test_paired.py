"""Intervals, wins and ranks of methods that saw the same cases."""

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments.harness import paired
from tests.oracles import refused


def test_the_interval_is_that_of_all_resamples():
  """Of 5 values all 3125 resamples are known; 10,000 of them are a sample."""
  values = np.array([0.3, -1.0, 2.0, 0.7, 0.1])
  means = np.mean([*itertools.product(values, repeat=5)], axis=1)
  for level in (0.5, 0.95):
    found = paired.interval(values, level=level)
    assert found.value == values.mean()
    for end, share in ((found.low, 1 - level), (found.high, 1 + level)):
      # Quantiles of the exact law two standard errors of a share away.
      near = 2 * (share / 2 * (1 - share / 2) / paired.RESAMPLES) ** 0.5
      low, high = np.quantile(means, (share / 2 - near, share / 2 + near))
      assert low <= end <= high


def test_the_interval_covers_the_mean():
  """Of skewed values, 100 times: near 95 %, and far from 80 % or 100 %."""
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(100):
    found = paired.interval(rng.gamma(4.0, 1.0, 30))
    inside += found.low <= 4.0 <= found.high
  assert 86 <= inside <= 99


def test_one_case_has_no_interval_and_none_no_mean():
  found = paired.interval(np.array([2.0]))
  assert found.value == 2 and np.isnan([found.low, found.high]).all()
  for values in ([], [1.0, np.nan], [[1.0]]):
    with refused(ValueError, "values must be at least one finite number"):
      paired.interval(np.array(values))


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
