"""The Markdown of the section "Under another prior"."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from experiments.equal_tuning import other_prior, tables
from experiments.equal_tuning.page import words
from experiments.equal_tuning.tables import AHEAD, NAMES, OWN, SCORES
from experiments.harness.reporting import markdown

_NEEDED = "sigma", "psnr", "base psnr"


def block(
  first: pd.DataFrame,
  second: pd.DataFrame,
  about: Mapping[str, Mapping[str, Any]],
  gain: pd.DataFrame,
) -> str:
  """The section, of what both priors have rows of.

  Args:
    first: by `tables.read`.
    second: likewise, under the other prior.
    about: `prior_files.About` of both as mappings, by their names; "ships" is
      False of a shipped prior that has other weights now.
    gain: of `experiments.prior_gain --table`; lines of other priors are left
      out, so that it may be empty.
  """
  (one,), (two,) = other_prior.names(first), other_prior.names(second)
  own, others = other_prior.shared(first, second)
  budgets = sorted(set(others["evaluations"]))
  standings = _standings(own, others, budgets)
  parts = [
    "## Under another prior",
    f"The winners under the first prior, {_said(about[one])}, are used as they "
    f"are under a second one, {_said(about[two])}: nothing was tuned again. "
    f"{_retrained(about[two])}"
    f"{_replaced(first, others)}"
    f"{_denoised(gain, one, two)}{_not_run(first, others, budgets)}".rstrip(),
    f"On how many operators the best of {OWN} is ahead of / level with / "
    "behind the best other method under either prior, one sample; on how many "
    "that stays the same, and the best of all methods; and Spearman's "
    "correlation of the methods' mean scores under both, the median over "
    "operators and the least:",
    words.wide(_summary(own, others, standings)),
  ]
  for calls in budgets:
    parts += [
      f"**PSNR / LPIPS, {calls} evaluations**, of each method under the second "
      "prior less under the first, PSNR of its winner by PSNR and LPIPS of its "
      "winner by LPIPS; more PSNR and less LPIPS are better:",
      words.wide(_changes(own, others, calls)),
    ]
    for (criterion, at), found in standings.items():
      if at == calls:
        parts += [
          f"**{criterion}, {calls} evaluations**, under the first prior and "
          "under the second, leads paired by picture:",
          words.wide(_leads(found, criterion)),
        ]
  return "\n\n".join(parts)


def _said(about: Mapping[str, Any]) -> str:
  """A prior in words, as far as it is known."""
  found = [f"`{about['prior']}`"]
  if about["parameters"]:
    found.append(f"{about['parameters'] / 1e6:.1f} million parameters")
  if about["photographs"]:
    found.append(f"trained on {about['photographs']} photographs")
  if about["steps"] and about["seconds"] and about["device"]:
    device = about["device"].removeprefix("gpu: ")
    found.append(
      f"{about['steps']} steps in {about['seconds']} s on {about['devices']} "
      f"{device}"
    )
  if about.get("earlier"):
    found.append(f"after {about['earlier']} steps of a training before")
  first, *rest = found
  return f"{first} ({', '.join(rest)})" if rest else first


def _retrained(about: Mapping[str, Any]) -> str:
  """Where a shipped prior has other weights now."""
  if about.get("ships", True):
    return ""
  return (
    f'`photo_prior("{about["prior"]}")` has been trained further since: the '
    "rows, and how it denoises here, are of the weights that it had before. "
  )


def _denoised(gain: pd.DataFrame, one: str, two: str) -> str:
  """How the priors denoise; nothing where it was not measured."""
  if not len(gain):
    return ""
  own = gain[(gain["prior"] == two) & (gain["base"] == one)]
  levels = [
    f"at sigma {sigma:g} of 255 to {psnr:.2f} dB, the first to {base:.2f}"
    for sigma, psnr, base in own[[*_NEEDED]].itertuples(index=False)
  ]
  if not levels:
    return ""
  count, side = own[["pictures", "side"]].iloc[0]
  return (
    f"The second denoises {count} pictures of {side} x {side}, "
    f"{'; '.join(levels)} (`python -m experiments.prior_gain KODAK {two} "
    f"--side={side}`). "
  )


def _replaced(first: pd.DataFrame, others: pd.DataFrame) -> str:
  """How many winners are of a search that has gone on since."""
  search = [*tables.SEARCH, "tuned for"]
  single = first[first["chains"] == 1]
  points = single.groupby(search)["point"].nunique()
  there = others.groupby(search).size()
  count = int((points[points.index.isin(there.index)] > 1).sum())
  if not count:
    return ""
  return (
    f"{count} of the {len(there)} have been replaced since, by searches that "
    "went on; in this section both priors have those from before. "
  )


def _not_run(
  first: pd.DataFrame, others: pd.DataFrame, budgets: list[int]
) -> str:
  """What the second prior has no rows of, at the budgets that it has."""
  parts = []
  for calls in budgets:
    every = tables.chosen(first, "PSNR", calls)
    there = tables.chosen(others, "PSNR", calls)
    if lost := [*_absent(every, there)]:
      parts.append(f"{calls} evaluations: {'; '.join(lost)}")
  return f"Not run under it at {'. At '.join(parts)}." if parts else ""


def _absent(every: pd.DataFrame, there: pd.DataFrame) -> Iterator[str]:
  """Operators without any row, then methods that lack some or all others."""
  operators = set(there["operator"])
  if lacks := _in_order(set(every["operator"]) - operators):
    yield f"anything on {' and '.join(lacks)}"
  for method, own in every.groupby("method", sort=False):
    has = set(there.loc[there["method"] == method, "operator"])
    needed = operators & set(own["operator"])
    if not has and needed:
      yield words.code(str(method))
    elif needed - has:
      lacks = _in_order(needed - has)
      yield f"{words.code(str(method))} on {' and '.join(lacks)}"


def _in_order(operators: set[str]) -> list[str]:
  return [name for name in NAMES.values() if name in operators]


def _chosen(
  own: pd.DataFrame, others: pd.DataFrame, criterion: str, calls: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
  return (
    tables.chosen(own, criterion, calls),
    tables.chosen(others, criterion, calls),
  )


def _standings(
  own: pd.DataFrame, others: pd.DataFrame, budgets: list[int]
) -> dict[tuple[str, int], pd.DataFrame]:
  """By score and budget, of those that have any."""
  found = {
    (criterion, calls): other_prior.standing(
      *_chosen(own, others, criterion, calls), criterion
    )
    for calls in budgets
    for criterion in SCORES
  }
  return {key: standing for key, standing in found.items() if len(standing)}


def _summary(
  own: pd.DataFrame,
  others: pd.DataFrame,
  standings: Mapping[tuple[str, int], pd.DataFrame],
) -> str:
  lines = []
  for (criterion, calls), found in standings.items():
    both = _chosen(own, others, criterion, calls)
    same = (found["NFC is"] == found["NFC is 2"]).sum()
    lines.append(
      [
        f"{criterion}, {calls}",
        words.counted(found["NFC is"]),
        words.counted(found["NFC is 2"]),
        f"{same} of {len(found)}",
        *_ranks(other_prior.correlations(*both, criterion)),
      ]
    )
  head = ["score, evaluations", "first prior", "second prior", "same verdict"]
  head += ["same best", "correlation", "least"]
  return markdown.table(head, lines)


def _ranks(found: pd.DataFrame) -> list[str]:
  """How often the same method is best, the median and least correlation."""
  if not len(found):
    return ["-"] * 3
  ranks = found["correlation"].astype(float)
  least = ranks.idxmin()
  return [
    f"{found['same best'].sum()} of {len(found)}",
    f"{ranks.median():.2f}",
    f"{ranks[least]:.2f} ({least})",
  ]


def _changes(own: pd.DataFrame, others: pd.DataFrame, calls: int) -> str:
  """By method and operator, what the second prior gains and loses."""
  found, there = {}, {}
  for criterion, (column, digits, _) in SCORES.items():
    both = _chosen(own, others, criterion, calls)
    one, two = (
      rows.groupby(["method", "operator"])[column].agg(tables.mean)
      for rows in both
    )
    less = (two - one).dropna().round(digits) + 0.0  # nothing is -0
    found[criterion] = less.map(f"{{:+.{digits}f}}".format)
    there[criterion] = both[1]
  # As the other tables write a distance, which is below 1.
  found["LPIPS"] = found["LPIPS"].str.replace(r"^([+-])0", r"\1", regex=True)
  every = pd.concat(there.values())
  operators = _in_order(set(every["operator"]))
  lines = [
    [words.code(str(method))]
    + [_change(found, there, str(method), name) for name in operators]
    for method in dict.fromkeys(every["method"])
  ]
  return markdown.table(["method", *operators], lines)


def _change(
  found: Mapping[str, Mapping[Any, str]],
  rows: Mapping[str, pd.DataFrame],
  method: str,
  operator: str,
) -> str:
  """Of one method and operator; diverged where one prior's rows have."""
  each = [
    found[score].get((method, operator))
    or words.absent(rows[score], method, operator)
    for score in SCORES
  ]
  return words.both(*each)


def _leads(found: pd.DataFrame, criterion: str) -> str:
  """Two lines for each operator, one for each prior."""
  _, digits, _ = SCORES[criterion]
  lines = []
  for operator, row in found.iterrows():
    for name, which, end in ((operator, "first", ""), ("", "second", " 2")):
      own, other, lead, low, high = (
        row[f"{column}{end}"]
        for column in ("its mean", "other mean", "lead", "from", "to")
      )
      verdict = row[f"NFC is{end}"]
      lines.append(
        [
          str(name),
          which,
          words.scored(row[f"best of NFC{end}"], own, digits),
          words.scored(row[f"best other{end}"], other, digits),
          words.lead(lead, low, high, digits),
          words.bold(verdict, verdict == AHEAD),
        ]
      )
  head = ["operator", "prior", OWN, "best other", "lead", f"{OWN} is"]
  return markdown.table(head, lines)
