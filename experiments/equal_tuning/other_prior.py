"""Whether methods keep their ranks under another prior, from rows of both.

`rows.csv` is of the prior under which every method was tuned. The winners of
that search, as they are, restored the same pictures under a second prior:
`second_rows.csv`, whose rows name it, `second_prior.json`, which says what it
is, and `second_gain.csv`, how it denoises (`experiments.prior_gain`). Of
winners that the search has replaced since, `second_base.csv` keeps what they
restored under the first prior.
"""

import math
import pathlib

import pandas as pd
import scipy.stats

from experiments.equal_tuning import tables
from experiments.equal_tuning.tables import NAMES, SCORES, SEARCH

ROWS = pathlib.Path(__file__).with_name("second_rows.csv")
ABOUT = pathlib.Path(__file__).with_name("second_prior.json")
GAIN = pathlib.Path(__file__).with_name("second_gain.csv")
BASE = pathlib.Path(__file__).with_name("second_base.csv")
FIRST = "small"  # the prior of rows that name none, as of those committed
# `prior_files.sha256` of the weights that those are of.
FIRST_WEIGHTS = (
  "9b6fe1ca50c4d6e351d88c752c0be7e24882171b970c967d22b2b1cac3adfe30"
)
# Of two methods ranks are equal or opposite, which says little.
_FEWEST = 3
_RUN = [*SEARCH, "kernel", "tuned for", "chains", "point", "picture"]


def names(rows: pd.DataFrame) -> list[str]:
  """The priors of rows; none of no rows."""
  if "prior" in rows:
    return [*rows["prior"].unique()]
  return [FIRST] * bool(len(rows))


def with_base(first: pd.DataFrame) -> pd.DataFrame:
  """Rows of the first prior, those of BASE among them where there are any."""
  return pd.concat([first, tables.read(BASE)]) if BASE.exists() else first


def shared(
  first: pd.DataFrame, second: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Rows of single samples that both have: of one point and picture each.

  Args:
    first: by `tables.read`.
    second: likewise, under another prior.

  Returns:
    What is left of either.
  """
  keys = second.loc[second["chains"] == 1, _RUN].merge(first[_RUN])
  return first.merge(keys), second.merge(keys)


def standing(
  first: pd.DataFrame, second: pd.DataFrame, criterion: str
) -> pd.DataFrame:
  """`tables.standing` under both priors.

  Args:
    first: of one budget and criterion, by `shared`.
    second: likewise.
    criterion: of SCORES.

  Returns:
    By operator the columns of `tables.standing`, those of the second prior with
    " 2" behind their names. Empty where one of both is.
  """
  both = [tables.standing(rows, criterion) for rows in (first, second)]
  if not all(map(len, both)):
    return pd.DataFrame()
  return both[0].join(both[1].add_suffix(" 2"), how="inner")


def correlations(
  first: pd.DataFrame, second: pd.DataFrame, criterion: str
) -> pd.DataFrame:
  """How alike the ranks of the methods are, by operator.

  Args:
    first: of one budget and criterion, by `shared`.
    second: likewise.
    criterion: of SCORES.

  Returns:
    Spearman's "correlation" of the methods' mean scores under both priors, of
    how many "methods", and whether the best of them is the "same best"; of
    operators that at least three methods restored.
  """
  found = {}
  for operator in (n for n in NAMES.values() if n in set(first["operator"])):
    own = [
      _means(rows[rows["operator"] == operator], criterion)
      for rows in (first, second)
    ]
    both = pd.concat(own, axis=1, keys=[1, 2]).dropna()
    if len(both) < _FEWEST or (both.nunique() == 1).any():
      continue
    found[operator] = {
      "correlation": float(scipy.stats.spearmanr(both[1], both[2]).statistic),
      "methods": len(both),
      "same best": both[1].idxmax() == both[2].idxmax(),
    }
  return pd.DataFrame.from_dict(found, orient="index")


def _means(rows: pd.DataFrame, criterion: str) -> pd.Series:
  """By method, larger is better; what diverged is the worst, not absent."""
  column, _, high = SCORES[criterion]
  means = rows.groupby("method")[column].agg(tables.mean)
  return (means if high else -means).fillna(-math.inf)
