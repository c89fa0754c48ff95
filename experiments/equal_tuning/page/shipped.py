"""The points that ship with the package, for `NFCConfig.tuned`.

Both a preset and its numbers are what scored best on the pictures that are
tuned on, not on those of the report.
"""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.known import parsed
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.tables import OWN, SCORES, SEARCH
from posterior_jax.baselines import TASKS
from posterior_jax.nfc_sampler import tuned

# In passes too, whose number is one of the point's.
_PRESETS = {
  method: name
  for name in tuned.FORMS
  for method in METHODS
  if method.startswith(f"{OWN}, {name}()")
}


def made(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
  """The JSON of `tuned.ASSET`, by score, budget and task.

  Args:
    rows: by `tables.read`, whose points are the winners.
    trials: all points, with their scores.
  """
  found: dict[str, dict[str, Any]] = {}
  for score in SCORES:
    found[score] = {}
    for calls in sorted(set(trials["evaluations"])):
      best = _best(rows, trials, score, calls)
      found[score][str(calls)] = {
        task: {"preset": _PRESETS[method]} | parsed(point)
        for task in TASKS
        if task in best
        for method, point in [best[task]]
      }
  return json.dumps(found, indent=1) + "\n"


def beside_others(
  rows: pd.DataFrame, trials: pd.DataFrame, score: str, calls: int
) -> pd.DataFrame:
  """`tables.chosen`, of NFC only what `NFCConfig.tuned` gives.

  Args:
    rows: by `tables.read`.
    trials: all points, with their scores.
    score: of SCORES.
    calls: evaluations.
  """
  chosen = tables.chosen(rows, score, calls)
  best = _best(rows, trials, score, calls)
  names = chosen["task"].map(
    {task: method for task, (method, _) in best.items()}
  )
  ours = chosen["method"].str.startswith(OWN)
  return chosen[~ours | (chosen["method"] == names)]


def _best(
  rows: pd.DataFrame, trials: pd.DataFrame, score: str, calls: int
) -> Mapping[str, tuple[str, str]]:
  """The best preset at a budget and its point, by task."""
  column, _, high = SCORES[score]
  chosen = tables.chosen(rows, score, calls)
  chosen = chosen[chosen["method"].isin(_PRESETS)]
  own = trials.merge(chosen[[*SEARCH, "point"]].drop_duplicates())
  # Stable, so that of equals the first method's stands.
  own = own.sort_values(column, ascending=not high, kind="stable")
  first = own.drop_duplicates("task")
  return {
    task: (method, point)
    for task, method, point in first[["task", "method", "point"]].itertuples(
      index=False
    )
  }
