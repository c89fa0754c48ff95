"""How the best of NFC stands beside others, by whom it is compared with."""

from collections.abc import Mapping
from typing import Literal, get_args

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.tables import OWN, SCORES

# Others by as many evaluations, or by as many or fewer; and both by one sample
# or by a mean of chains, as many evaluations in all.
Beside = Literal["same budget", "same or smaller", "sample or mean"]
# By evaluations and score.
Standings = Mapping[tuple[int, str, Beside], pd.DataFrame]


def every(rows: pd.DataFrame) -> Standings:
  """All of them; intervals take a while, so that tables share these.

  Args:
    rows: of the pictures, by `tables.read`.

  Returns:
    What `tables.standing` returns, empty where there are no rows.
  """
  made = {
    "same budget": _same,
    "same or smaller": same_or_smaller,
    "sample or mean": sample_or_mean,
  }
  return {
    (calls, score, beside): made[beside](rows, score, calls)
    for calls in sorted(set(rows["evaluations"]))
    for score in SCORES
    for beside in get_args(Beside)
  }


def _same(rows: pd.DataFrame, criterion: str, evaluations: int) -> pd.DataFrame:
  return tables.standing(tables.chosen(rows, criterion, evaluations), criterion)


def same_or_smaller(
  rows: pd.DataFrame, criterion: str, evaluations: int
) -> pd.DataFrame:
  """NFC at a budget against others at any budget up to it.

  More evaluations may make a method worse, and whoever has a large budget may
  spend less.

  Args:
    rows: of the pictures, by `tables.read`.
    criterion: of SCORES.
    evaluations: the budget.

  Returns:
    As of `tables.standing`; the name of the best other method has its budget
    behind it, "X at 20".
  """
  own = tables.chosen(rows, criterion, evaluations)
  ours = own["method"].str.startswith(OWN)
  budgets = [n for n in set(rows["evaluations"]) if n <= evaluations]
  each = pd.concat(tables.chosen(rows, criterion, n) for n in budgets)
  others = each[~each["method"].str.startswith(OWN)]
  at = others["method"] + " at " + others["evaluations"].astype(str)
  both = pd.concat([own[ours], others.assign(method=at)])
  return tables.standing(both, criterion, tables.comparable(own))


def sample_or_mean(
  rows: pd.DataFrame, criterion: str, evaluations: int
) -> pd.DataFrame:
  """The best sample or mean of chains of NFC against the best of others.

  Args:
    rows: of the pictures, by `tables.read`.
    criterion: of SCORES.
    evaluations: of a sample, or of all chains of a mean.

  Returns:
    As of `tables.standing`, on operators that are `tables.comparable` by
    samples and by means; the name of a mean has its chains behind it, "X, mean
    of 5". Empty where there are no means.
  """
  one, means = (
    tables.chosen(rows, criterion, evaluations, mean=mean)
    for mean in (False, True)
  )
  names = means["method"] + ", mean of " + means["chains"].astype(str)
  both = pd.concat([one, means.assign(method=names)])
  among = tables.comparable(one) & tables.comparable(means)
  return tables.standing(both, criterion, among)
