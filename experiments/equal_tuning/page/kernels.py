"""The Markdown of the section "Ten motion kernels"."""

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.cells import MOTION
from experiments.equal_tuning.page import shipped, words
from experiments.equal_tuning.tables import AHEAD, OWN, SCORES
from experiments.harness.reporting import markdown
from posterior_jax.operators import frozen

_ORDER = [f"motion, {name}" for name in frozen.ALL_PATHS]
_ALL = "all"
# By score and evaluations.
KernelStandings = dict[tuple[str, int], pd.DataFrame]


def block(rows: pd.DataFrame, more: pd.DataFrame, trials: pd.DataFrame) -> str:
  """The section, of the budgets that the further kernels have.

  Args:
    rows: of the pictures, by `tables.read`.
    more: likewise, of further kernels of motion blur.
    trials: all points, by which `NFCConfig.tuned` chooses.
  """
  budgets = sorted(set(more["evaluations"]))
  own = rows[(rows["task"] == MOTION) & rows["evaluations"].isin(budgets)]
  every = pd.concat([own, more])
  standings = {
    (score, calls): _standing(tables.chosen(every, score, calls), score)
    for calls in budgets
    for score in SCORES
  }
  tuned = {
    (score, calls): _standing(
      shipped.beside_others(every, trials, score, calls), score
    )
    for score, calls in standings
  }
  parts = [
    "## Ten motion kernels",
    "Everything was tuned on the medium kernel alone, but for the discrepancy "
    "of `fast()`, which is the preset's, and runs here as it is. "
    "A kernel's name is the percentile of its path's length; short, medium and "
    "long are the 10th, 50th and 90th. Over all ten, leads are paired by "
    "picture, by the mean of its ten scores. On how many kernels the best of "
    f"{OWN} is ahead of / level with / behind the best other method, and over "
    "all of them; the same for the one that `NFCConfig.tuned` gives:",
    words.wide(_summary(standings, tuned)),
  ]
  for (score, calls), found in standings.items():
    parts += [
      f"**{score}, {calls} evaluations**, one sample:",
      words.wide(_leads(found, score)),
    ]
  return "\n\n".join(parts)


def _standing(rows: pd.DataFrame, score: str) -> pd.DataFrame:
  """By kernel, and over all of them, of the methods that have them all."""
  found = tables.standing(rows, score)
  column = SCORES[score][0]
  kernels = rows.groupby("method")["operator"].transform("nunique")
  whole = rows[kernels == kernels.max()].groupby(["method", "picture"])
  over = whole[column].agg(tables.mean).reset_index().assign(operator=_ALL)
  order = [name for name in _ORDER if name in found.index]
  return pd.concat([found.loc[order], tables.standing(over, score)])


def _summary(standings: KernelStandings, tuned: KernelStandings) -> str:
  lines = []
  for score, calls in standings:
    for which, own in (("best", standings), ("`tuned()`", tuned)):
      found, (_, digits, _) = own[score, calls], SCORES[score]
      over = found.loc[_ALL]
      lines.append(
        [
          f"{score}, {calls}",
          which,
          words.counted(found["NFC is"].drop(_ALL)),
          words.code(over["best of NFC"]),
          over["best other"],
          words.lead(over["lead"], over["from"], over["to"], digits),
        ]
      )
  head = ["score, evaluations", OWN, "kernels", "over all", "best other"]
  return markdown.table([*head, "lead over all"], lines)


def _leads(found: pd.DataFrame, score: str) -> str:
  _, digits, _ = SCORES[score]
  lines = [
    [
      str(operator).removeprefix("motion, "),
      words.scored(own["best of NFC"], own["its mean"], digits),
      words.scored(own["best other"], own["other mean"], digits),
      words.lead(own["lead"], own["from"], own["to"], digits),
      words.bold(own["NFC is"], own["NFC is"] == AHEAD),
    ]
    for operator, own in found.iterrows()
  ]
  head = ["kernel", OWN, "best other", "lead", f"{OWN} is"]
  return markdown.table(head, lines)
