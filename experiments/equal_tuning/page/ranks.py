"""The Markdown of the section "Wins and ranks"."""

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.page import words
from experiments.equal_tuning.tables import SCORES
from experiments.harness.reporting import markdown

_OF = ("wins", "median rank")


def block(rows: pd.DataFrame) -> str:
  """The section, of single samples.

  Args:
    rows: of the pictures, by `tables.read`.
  """
  parts = [
    "## Wins and ranks",
    "In how many of a hundred cases, a picture and an operator each, a method "
    "is the best, and its median rank, among those that have all operators at "
    "a budget; what has won half of them stands in bold:",
  ]
  for score in SCORES:
    parts += [f"{score}:", words.wide(_table(rows, score))]
  return "\n\n".join(parts)


def _table(rows: pd.DataFrame, score: str) -> str:
  """By method and budget, the best median rank of all budgets first."""
  found = {}
  for calls in sorted(set(rows["evaluations"])):
    own = tables.chosen(rows, score, calls)
    if len(own):
      found[calls] = tables.quality(own, score)[[*_OF]].dropna()
  both = pd.concat(found, axis=1)
  ranks = both.xs("median rank", axis=1, level=1)
  lines = [
    [words.code(str(method))]
    + [_cell(*both.loc[method, calls][[*_OF]]) for calls in found]
    for method in ranks.mean(axis=1).sort_values(kind="stable").index
  ]
  return markdown.table(
    ["method", *(f"{calls} evaluations" for calls in found)], lines
  )


def _cell(wins: float, rank: float) -> str:
  if wins != wins:
    return "-"
  return words.bold(f"{wins:.0f} / {rank:g}", wins >= 50)
