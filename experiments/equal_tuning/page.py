"""Puts the tables of equal tuning into docs/benchmarks/restoration.md.

    python -m experiments.equal_tuning.page [RUN ...]

Everything between its two `equal tuning` comments, and the picture of the
plane, is made anew from the committed rows. Given the folders of finished runs,
of one or of several that shared their cells, it first takes their rows into
`rows.csv` and `trials.csv`.
"""

import math
import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.equal_tuning import tables
from experiments.equal_tuning.plane import CAPTION, plane
from experiments.equal_tuning.tables import (
  NAMES,
  OWN,
  ROWS,
  TABLE,
  TRIALS,
  TRIED,
)
from experiments.harness import writing
from experiments.harness.reporting import markdown
from experiments.harness.reporting.report import render

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURE = "notebooks/figures/plane.png"
PAGE = ROOT / "docs/benchmarks/restoration.md"
BEGIN = (
  "<!-- equal tuning: written by `python -m experiments.equal_tuning.page` -->"
)
MARK = r"\*"  # beside verdicts of a search that did not begin as others did
END = "<!-- end of equal tuning -->"


def block(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
  """The Markdown between the comments, from the committed rows and points.

  Args:
    rows: of the pictures, by `tables.read`.
    trials: all points, in their order.
  """
  unlinked = tables.unlinked(trials)
  parts = [f"![{CAPTION}](../figures/plane.png)", CAPTION]
  for calls in sorted(set(rows["evaluations"])):
    parts += [
      f"**{calls} evaluations**, PSNR / LPIPS of one sample:",
      _wide(_both(rows, calls)),
      f"The best of {OWN} less the best other method, paired by picture:",
      _wide(_leads(rows, calls, unlinked)),
    ]
    if any(calls == own for _, own, _ in unlinked):
      parts.append(_began_anew(calls, unlinked))
    means = tables.chosen(rows, "PSNR", calls, mean=True)
    if len(means):
      chains = means["chains"].iloc[0]
      parts += [
        f"PSNR of the mean of {chains} chains of {calls // chains} "
        "evaluations each:",
        _wide(_means(means)),
      ]
  inside = rows[rows["chains"] == 1].drop_duplicates(
    ["method", "evaluations", "task", "tuned for"]
  )
  count = inside["interior"].astype(bool).sum()
  parts.append(
    f"Of the {len(inside)} winners {count} lie inside of what was tried; "
    f"beside the others a knob has an open side. {_lost(trials)}"
  )
  return "\n\n".join(parts)


def _wide(table: str) -> str:
  return f'<div class="numbers" markdown>\n\n{table}\n\n</div>'


def _both(rows: pd.DataFrame, calls: int) -> str:
  own = {each: tables.chosen(rows, each, calls) for each in tables.SCORES}
  found = {
    criterion: _pivot(own[criterion], column)
    for criterion, (column, _, _) in tables.SCORES.items()
  }
  psnr, lpips = found["PSNR"], found["LPIPS"]
  known = tables.comparable(own["PSNR"])
  order = psnr.mean(axis=1, skipna=False).sort_values(ascending=False).index
  lines = []
  for method in order:
    cells = []
    for name in psnr:
      value, distance = psnr.loc[method, name], lpips.loc[method, name]
      if value != value or distance != distance:
        cells.append(_absent(own["PSNR"], method, name))
        continue
      most = name in known and value == psnr[name].max()
      least = name in known and distance == lpips[name].min()
      cells.append(
        f"{_bold(f'{value:.2f}', most)} / {_bold(f'{distance:.3f}'[1:], least)}"
      )
    lines.append([_code(method), *cells])
  return markdown.table(["method", *psnr], lines)


def _means(rows: pd.DataFrame) -> str:
  psnr = _pivot(rows, "psnr")
  order = psnr.mean(axis=1, skipna=False).sort_values(ascending=False).index
  lines = [
    [
      _code(method),
      *(
        _absent(rows, method, name)
        if value != value
        else _bold(f"{value:.2f}", value == psnr[name].max())
        for name, value in psnr.loc[method].items()
      ),
    ]
    for method in order
  ]
  return markdown.table(["method", *psnr], lines)


def _began_anew(calls: int, unlinked: Sequence[tuple[str, int, str]]) -> str:
  """What the mark beside a verdict says."""
  cells = [
    f"{_code(method)} on {task.replace('_', ' ')}"
    for method, own, task in unlinked
    if own == calls
  ]
  return (
    f"{MARK} A search that this rests on began at the first settings instead "
    "of the winners of the budget before, which another process had not found "
    f"yet: {'; '.join(cells)}."
  )


def _leads(
  rows: pd.DataFrame, calls: int, unlinked: Sequence[tuple[str, int, str]]
) -> str:
  lines = []
  for criterion, (_, digits, _) in tables.SCORES.items():
    own_rows = tables.chosen(rows, criterion, calls)
    tasks = dict(zip(own_rows["operator"], own_rows["task"]))
    standing = tables.standing(own_rows, criterion)
    for operator, own in standing.iterrows():
      lead, low, high = (
        f"{own[name]:+.{digits}f}" for name in ("lead", "from", "to")
      )
      task = tasks[operator]
      pair = own["best of NFC"], own["best other"]
      mark = any((name, calls, task) in unlinked for name in pair)
      verdict = _bold(own["NFC is"], own["NFC is"] == tables.AHEAD)
      lines.append(
        [
          criterion,
          operator,
          f"{_code(own['best of NFC'])} {own['its mean']:.{digits}f}",
          f"{own['best other']} {own['other mean']:.{digits}f}",
          f"{lead} ({low}, {high})",
          f"{verdict} {MARK}" if mark else verdict,
        ]
      )
  head = ["score", "operator", OWN, "best other", "lead", f"{OWN} is"]
  return markdown.table(head, lines)


def _lost(trials: pd.DataFrame) -> str:
  """Whose points have no score, and how many."""
  known = trials[["psnr", "lpips"]].abs().max(axis=1) < math.inf
  counts = [
    f"{_code(str(method))} {(~own).sum()} of {len(own)}"
    for method, own in known.groupby(trials["method"])
    if not own.all()
  ]
  return (
    "Points without a score, which were refused or diverged: "
    f"{', '.join(counts) or 'none'}."
  )


def _pivot(rows: pd.DataFrame, column: str) -> pd.DataFrame:
  # Of what diverged there is no mean.
  found = rows.groupby(["method", "operator"])[column].agg(tables.mean)
  found = found.unstack()
  return found.reindex(columns=[n for n in NAMES.values() if n in found])


def _absent(rows: pd.DataFrame, method: str, operator: str) -> str:
  """Why there is no number."""
  if ((rows["method"] == method) & (rows["operator"] == operator)).any():
    return "diverged"
  # DDRM has no form for the one, others were not run.
  none = method == "DDRM" and operator.startswith("motion")
  return "refused" if none else "-"


def _bold(words: str, best: bool) -> str:
  return f"**{words}**" if best else words


def _code(method: str) -> str:
  name, called, form = method.removeprefix(f"{OWN}, ").partition("()")
  return f"`{name}()`{form}" if called else method


def main(argv: Sequence[str]) -> None:
  """Takes the rows of runs in, then rewrites the page's block."""
  runs = [pathlib.Path(each) for each in argv[1:]]
  for run in runs:
    if not (run / f"{TABLE}.csv").is_file():
      raise app.UsageError(f"{run} is no finished run: no {TABLE}.csv in it")
  if runs:
    _take(runs)
    trials = pd.concat(pd.read_csv(run / f"{TRIED}.csv") for run in runs)
    trials.to_csv(TRIALS, index=False, float_format="%.4f")
  rows = tables.read()
  writing.write(ROOT / PICTURE, render(plane(rows), "png"))
  made = block(rows, pd.read_csv(TRIALS))
  markdown.put(PAGE, made, begin=BEGIN, end=END)
  print(f"wrote {PAGE}")


def _take(runs: Sequence[pathlib.Path]) -> None:
  """The rows of runs into the committed file."""
  # "01" is a name.
  text = {"picture": str}
  rows = pd.concat(
    pd.read_csv(
      run / f"{TABLE}.csv",
      dtype=text,
      keep_default_na=False,
      # A run that diverged has no score; a task without kernels has "".
      na_values={name: ["", "nan"] for name in ("psnr", "lpips")},
    )
    for run in runs
  )
  tables.packed(rows).to_csv(ROWS, index=False)


if __name__ == "__main__":
  app.run(main)
