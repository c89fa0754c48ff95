"""The Markdown of equal tuning: its tables, by budget, and its searches."""

import math
from typing import get_args

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.known import parsed
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.page import ranks, shipped, words
from experiments.equal_tuning.page.plane import CAPTION
from experiments.equal_tuning.page.standings import Beside, Standings, every
from experiments.equal_tuning.tables import NAMES, OWN, SCORES
from experiments.harness import paired
from experiments.harness.reporting import markdown


def block(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
  """The Markdown between the comments, from the committed rows and points.

  Args:
    rows: of the pictures, by `tables.read`.
    trials: all points, in their order.
  """
  standings = every(rows)
  parts = [
    f"![{CAPTION}](../figures/plane.png)",
    CAPTION,
    f"On how many operators the best of {OWN} is ahead of / level with / "
    "behind the best other method: one sample beside others at the same "
    "budget; beside the best that they have at it or at a smaller one; and the "
    "best sample or mean of chains of either, by as many evaluations in all. "
    "`tuned()` is one sample by the preset that was best on the pictures that "
    "are tuned on, as `NFCConfig.tuned` gives it. By Holm's method, with "
    "tests of random signs, the verdicts of a column would all hold with 95 % "
    "if the methods compared had been named beforehand, which NFC's best form "
    "was not; what does not hold is level there:",
    words.wide(_verdicts(rows, trials, standings)),
    "PSNR / LPIPS of what `NFCConfig.tuned` gives for either score:",
    words.wide(_tuned(rows, trials)),
  ]
  for calls in sorted(set(rows["evaluations"])):
    parts.append(f"## {calls} evaluations")
    if len(tables.chosen(rows, "PSNR", calls)):
      parts += _singles(rows, calls, standings)
    parts += _means(rows, calls, standings)
  return "\n\n".join([*parts, ranks.block(rows), *_searches(rows, trials)])


def _singles(rows: pd.DataFrame, calls: int, standings: Standings) -> list[str]:
  """One sample of every method at a budget, and how NFC stands there."""
  parts = [
    f"PSNR / LPIPS of one sample{_drawn(tables.chosen(rows, 'PSNR', calls))}:",
    words.wide(_both(*(tables.chosen(rows, s, calls) for s in SCORES))),
    f"The best of {OWN} less the best other method, paired by picture:",
    words.wide(_leads(calls, standings, "same budget")),
  ]
  if calls > rows["evaluations"].min():
    parts += [
      f"The best of {OWN} at {calls} evaluations less the best result that "
      f"another method has at {calls} or at a smaller budget:",
      words.wide(_leads(calls, standings, "same or smaller")),
    ]
  return parts


def _means(rows: pd.DataFrame, calls: int, standings: Standings) -> list[str]:
  """Means of chains by as many evaluations in all, and how NFC stands then."""
  both = [tables.chosen(rows, score, calls, mean=True) for score in SCORES]
  if not len(both[0]):
    return []
  chains = both[0]["chains"].iloc[0]
  parts = [
    f"PSNR / LPIPS of the mean of {chains} chains of {calls // chains} "
    "evaluations each:",
    words.wide(_both(*both)),
  ]
  if any(len(standings[calls, score, "sample or mean"]) for score in SCORES):
    parts += [
      f"The best of {OWN} less the best other method by {calls} evaluations in "
      "all, each by one sample or by a mean of chains, whichever is better:",
      words.wide(_leads(calls, standings, "sample or mean")),
    ]
  return parts


def _searches(rows: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
  """What the searches came to."""
  inside = tables.interior(rows)
  total = inside.sum()
  by_budget = ", ".join(
    f"{own['inside']} of {own['winners']} at {calls}"
    for calls, own in inside.iterrows()
  )
  return [
    "## What the searches came to",
    f"Of the {total['winners']} winners {total['inside']} lie inside of what "
    f"was tried, {by_budget} evaluations; beside the others a knob has an open "
    f"side. Of {_ended(rows)} winners a knob stands at an end of its range, "
    f"the setting's own or one given to the search. {_lost(trials)}",
    "Different results among the points of a search, the fewest and the most "
    "over its tasks:",
    words.wide(_distinct(trials)),
  ]


def _ended(rows: pd.DataFrame) -> int:
  """How many winners have a knob at an end of its range."""
  about = [*tables.SEARCH, "tuned for", "point"]
  single = rows.loc[rows["chains"] == 1, about].drop_duplicates()
  columns = zip(single["method"], single["evaluations"], single["point"])
  return sum(
    any(
      parsed(point).get(knob.name) in (knob.low, knob.high)
      for knob in METHODS[method].knobs(calls)
    )
    for method, calls, point in columns
    if method in METHODS
  )


def _distinct(trials: pd.DataFrame) -> str:
  found = tables.distinct(trials).groupby(["method", "evaluations"])
  spans = found.agg(["min", "max"])
  budgets = sorted(set(trials["evaluations"]))
  lines = [
    [
      words.code(str(method)),
      *(_of(spans, method, calls) for calls in budgets),
    ]
    for method in dict.fromkeys(trials["method"])
  ]
  return markdown.table(
    ["method", *(f"{n} evaluations" for n in budgets)], lines
  )


def _of(spans: pd.DataFrame, method: str, calls: int) -> str:
  """Results of points, each from its least to its most."""
  if (method, calls) not in spans.index:
    return "-"
  own = spans.loc[(method, calls)]
  results, points = (_span(*own[name]) for name in ("results", "points"))
  return f"{'all' if results == points else results} of {points}"


def _span(least: int, most: int) -> str:
  return f"{least}" if least == most else f"{least} to {most}"


def _drawn(rows: pd.DataFrame) -> str:
  """How many samples the scores are means of, where there are several."""
  draws = sorted(set(rows["draws"]))
  if draws == [1]:
    return ""
  numbers = " or ".join(map(str, draws))
  return f", the mean of its score over {numbers} of each picture"


def _both(by_psnr: pd.DataFrame, by_lpips: pd.DataFrame) -> str:
  """PSNR of what was tuned for PSNR, LPIPS of what was for LPIPS."""
  psnr = _pivot(by_psnr, "psnr")
  # What was not tuned for LPIPS has none.
  lpips = _pivot(by_lpips, "lpips").reindex_like(psnr)
  known = tables.comparable(by_psnr)
  order = psnr.mean(axis=1, skipna=False).sort_values(ascending=False).index
  lines = []
  for method in order:
    cells = []
    for name in psnr:
      value, distance = psnr.loc[method, name], lpips.loc[method, name]
      most = name in known and value == psnr[name].max()
      least = name in known and distance == lpips[name].min()
      left = (
        words.absent(by_psnr, method, name)
        if value != value
        else words.bold(f"{value:.2f}", most)
      )
      right = (
        words.absent(by_lpips, method, name)
        if distance != distance
        else words.bold(words.distance(distance), least)
      )
      cells.append(words.both(left, right))
    lines.append([words.code(method), *cells])
  return markdown.table(["method", *psnr], lines)


def _verdicts(
  rows: pd.DataFrame, trials: pd.DataFrame, standings: Standings
) -> str:
  """The verdicts of `_leads`, counted, and those of `NFCConfig.tuned`.

  Of each column also those that hold together.
  """
  compared = get_args(Beside)
  lines, columns = [], []
  for criterion in SCORES:
    for calls in sorted(set(rows["evaluations"])):
      each = [standings[calls, criterion, beside] for beside in compared]
      one = shipped.beside_others(rows, trials, criterion, calls)
      each.append(tables.standing(one, criterion))
      lines.append([f"{criterion}, {calls}", *map(_counted, each)])
      columns.append(each)
  whole = [pd.concat(column) for column in zip(*columns)]
  lines.append(["all of these", *map(_counted, whole)])
  lines.append(["all, by Holm's method", *map(_counted, map(_held, whole))])
  head = ["score, evaluations", *compared, "`tuned()`, same budget"]
  return markdown.table(head, lines)


def _held(standing: pd.DataFrame) -> pd.DataFrame:
  """Counts as level what does not hold by Holm's method."""
  if not len(standing):
    return standing
  chance = ~paired.hold(standing["chance"].to_numpy())
  return standing.assign(
    **{"NFC is": standing["NFC is"].mask(chance, tables.LEVEL)}
  )


def _tuned(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
  """What `NFCConfig.tuned` restores with, for each score by that score."""
  operators = [name for name in NAMES.values() if name in set(rows["operator"])]
  lines = []
  for calls in sorted(set(trials["evaluations"])):
    means = []
    for criterion, (column, _, _) in SCORES.items():
      own = shipped.beside_others(rows, trials, criterion, calls)
      own = own[own["method"].str.startswith(OWN)]
      means.append(own.groupby("operator")[column].agg(tables.mean))
    pairs = zip(*(each.reindex(operators) for each in means))
    lines.append(
      [str(calls)]
      + [
        "-"
        if value != value
        else words.both(f"{value:.2f}", words.distance(distance))
        for value, distance in pairs
      ]
    )
  return markdown.table(["evaluations", *operators], lines)


def _counted(standing: pd.DataFrame) -> str:
  return words.counted(standing["NFC is"]) if len(standing) else "-"


def _leads(calls: int, standings: Standings, beside: Beside) -> str:
  """Verdicts at a budget."""
  lines = []
  for criterion, (_, digits, _) in SCORES.items():
    for operator, own in standings[calls, criterion, beside].iterrows():
      lines.append(
        [
          criterion,
          operator,
          words.scored(own["best of NFC"], own["its mean"], digits),
          words.scored(own["best other"], own["other mean"], digits),
          words.lead(own["lead"], own["from"], own["to"], digits),
          words.bold(own["NFC is"], own["NFC is"] == tables.AHEAD),
        ]
      )
  head = ["score", "operator", OWN, "best other", "lead", f"{OWN} is"]
  return markdown.table(head, lines)


def _lost(trials: pd.DataFrame) -> str:
  """Whose points have no score, and how many."""
  known = trials[["psnr", "lpips"]].abs().max(axis=1) < math.inf
  counts = [
    f"{words.code(str(method))} {(~own).sum()} of {len(own)}"
    for method, own in known.groupby(trials["method"])
    if not own.all()
  ]
  return (
    "Points without a score, which were refused or diverged: "
    f"{'; '.join(counts) or 'none'}."
  )


def _pivot(rows: pd.DataFrame, column: str) -> pd.DataFrame:
  # Of what diverged there is no mean.
  found = rows.groupby(["method", "operator"])[column].agg(tables.mean)
  found = found.unstack()
  return found.reindex(columns=[n for n in NAMES.values() if n in found])
