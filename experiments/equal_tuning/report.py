"""The report of equal tuning: the plane of both scores first, then tables."""

from typing import Any

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.tables import OWN, SCORES
from experiments.harness import record
from experiments.harness.reporting.report import Report

ABOUT = (
  "Every method was tuned by as many points for every task and budget, on "
  "pictures that no report restores, once for PSNR and once for LPIPS (alex). "
  "A budget is in evaluations of the network, a product with its Jacobian "
  "counted as one. Leads are paired by picture, with 95 % intervals by 10,000 "
  "resamples."
)


def write(
  run: record.Run, rows: pd.DataFrame, trials: pd.DataFrame, about: str
) -> None:
  """Writes `report.html` and prints its path.

  Args:
    run: its folder takes the report.
    rows: of the pictures, by `tables.named`.
    trials: of the search.
    about: the pictures and the noise.
  """
  report = Report("Restoration, every method tuned alike", run.origin())
  report.section("Perception and distortion")
  report.figure(
    plane(rows),
    "Mean PSNR and LPIPS over all operators, a curve for each method over its "
    "budgets, larger marks for larger ones; tuned for PSNR and for LPIPS. "
    "Better is up and to the right.",
  )
  report.text(ABOUT)
  for calls in sorted(set(rows["evaluations"])):
    report.section(f"{calls} evaluations")
    for criterion, (column, digits, _) in SCORES.items():
      own = tables.chosen(rows, criterion, calls).dropna(subset=column)
      _add(report, f"{criterion}, {calls}, one sample", own, criterion, about)
      if len(own):
        report.table(
          f"{criterion}, {calls}: the best of {OWN} and the best other method",
          tables.standing(own, criterion),
          digits=digits + 1,
          measured_on=about,
          name=f"standing-{criterion}-{calls}",
        )
    mean = tables.chosen(rows, "PSNR", calls, mean=True)
    _add(report, f"PSNR, {calls}, mean of chains", mean, "PSNR", about)
  report.section("Tuning")
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
  report.leave(run.folder)


def _add(
  report: Report, caption: str, rows: pd.DataFrame, criterion: str, about: str
) -> None:
  if not len(rows):
    return
  _, digits, high = SCORES[criterion]
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


def plane(rows: pd.DataFrame) -> Any:
  """PSNR against LPIPS, a panel for each of what is tuned for."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(
    1, len(SCORES), figsize=(11, 4.6), sharey=True, layout="constrained"
  )
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  names = list(dict.fromkeys(rows["method"]))
  for axis, criterion in zip(axes, SCORES):
    found = tables.plane(rows, criterion)
    for method, own in found.groupby("method", sort=False):
      number = names.index(method)
      ours = str(method).startswith(OWN)
      axis.plot(
        own["psnr"],
        own["lpips"],
        color=colours[number % len(colours)],
        linewidth=2.2 if ours else 1,
        linestyle="-" if ours else "--",
        label=method,
      )
      sizes = [12 + 18 * i for i in range(len(own))]
      axis.scatter(
        own["psnr"], own["lpips"], sizes, [colours[number % len(colours)]]
      )
    axis.set(title=f"tuned for {criterion}", xlabel="PSNR [dB]")
    axis.grid(alpha=0.3)
  axes[0].set_ylabel("LPIPS (alex)")
  axes[0].invert_yaxis()
  handles, labels = axes[-1].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right center", fontsize=8)
  return figure
