"""The report of equal tuning: the plane of both scores first, then tables."""

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.page.plane import CAPTION, plane
from experiments.equal_tuning.tables import OWN, SCORES
from experiments.harness import record
from experiments.harness.reporting.report import Report

ABOUT = (
  "Every method was tuned by as many points for every task and budget, on "
  "pictures that no report restores, once for PSNR and once for LPIPS (alex); "
  "each table is of what was tuned for its score, means of chains too. "
  "A budget is in evaluations of the network, a product with its Jacobian "
  "counted as one. Leads are paired by picture, with 95 % intervals by 100,000 "
  "resamples."
)


def write(
  run: record.Run,
  rows: pd.DataFrame,
  trials: pd.DataFrame,
  failed: pd.DataFrame,
  about: str,
) -> None:
  """Writes `report.html` and prints its path.

  Args:
    run: its folder takes the report.
    rows: of the pictures, by `tables.named`.
    trials: of the search.
    failed: cells that have no program, and why.
    about: the pictures and the noise.
  """
  report = Report("Restoration, every method tuned alike", run.origin())
  report.section("Perception and distortion")
  report.figure(plane(rows), CAPTION)
  report.text(ABOUT)
  for calls in sorted(set(rows["evaluations"])):
    _budget(report, rows, calls, about)
  report.section("Tuning")
  if len(trials):  # none where winners restored again
    report.table(
      "Points that were tried",
      tables.trial_counts(trials),
      measured_on=about,
      name="trials",
      digits=0,
    )
  report.table(
    "Winners with nothing tried on one side",
    tables.on_edges(rows),
    measured_on=about,
    name="edges",
  )
  if len(failed):
    report.table(
      "Cells that failed", failed, measured_on=about, name=tables.FAILED
    )
  report.leave(run.folder)


def _budget(report: Report, rows: pd.DataFrame, calls: int, about: str) -> None:
  """Single samples and means of chains, each by what was tuned for a score."""
  report.section(f"{calls} evaluations")
  for criterion, (_, digits, _) in SCORES.items():
    own = tables.chosen(rows, criterion, calls)
    _add(report, f"{criterion}, {calls}, one sample", own, criterion, about)
    standing = tables.standing(own, criterion)
    if len(standing):
      report.table(
        f"{criterion}, {calls}: the best of {OWN} and the best other method",
        standing,
        digits=digits + 1,
        measured_on=about,
        name=f"standing-{criterion}-{calls}",
      )
  for criterion in SCORES:
    means = tables.chosen(rows, criterion, calls, mean=True)
    caption = f"{criterion}, {calls}, mean of chains"
    _add(report, caption, means, criterion, about)


def _add(
  report: Report, caption: str, rows: pd.DataFrame, criterion: str, about: str
) -> None:
  column, digits, high = SCORES[criterion]
  if rows[column].isna().all():  # as LPIPS without its weights
    return
  table = tables.quality(rows, criterion)
  best = {name: "max" if high else "min" for name in table}
  best |= {"wins": "max", "median rank": "min"}
  report.table(
    caption,
    table,
    digits=dict.fromkeys(table, digits) | {"wins": 0, "median rank": 1},
    best=best,
    measured_on=about,
    name=caption.replace(", ", "-").replace(" ", "-"),
  )
