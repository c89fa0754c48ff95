"""The report's pages on restored photographs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import pictures as side_by_side
from experiments.harness.report import Report
from experiments.quickstart.restoration import (
  CALIBRATED,
  DEGRADED,
  WIENER,
  Pictures,
  RestorationSettings,
)

SPREAD = "spread of samples"
BRIEF = (
  "photograph",
  "measured",
  "exact posterior mean",
  "one sample",
  SPREAD,
)
BRIEF_OPERATORS = (
  "super-resolution x4",
  "random inpainting 70 %",
  "motion blur",
)


def add_restoration(
  report: Report,
  rows: pd.DataFrame,
  pictures: Mapping[str, Pictures],
  settings: RestorationSettings,
) -> None:
  """Adds the pictures and the two tables.

  Args:
    report: takes them.
    rows: of `restoration.study`.
    pictures: likewise, by operator.
    settings: what was done.
  """
  measured = (
    f"{', '.join(settings.photographs)} at {settings.size} x {settings.size}, "
    f"noise {settings.noise_std:g} on pixels in [-1, 1], seed {settings.seed}."
  )
  report.text(
    "Each photograph is measured in five ways and restored under a Gaussian "
    "prior that knows only a power spectrum and a mean colour, both taken from "
    "other photographs. So simple a prior paints no missing face, but its "
    "posterior mean is known exactly (the Wiener answer), which makes it a "
    "yardstick for the sampler: the mean of samples must approach it, and "
    "their spread must be the spread of the posterior."
  )
  report.figure(
    panel(pictures),
    caption(settings) + " The last column is the paper's setting with "
    f"{settings.paper_levels} levels and {settings.paper_inner_steps} Langevin "
    "updates instead of 200 and 200: it shows that code path, not the method "
    "at its published cost.",
    photographic=True,
  )
  _add_quality(report, rows, measured)
  _add_agreement(
    report,
    rows,
    pictures,
    f"{settings.photographs[0]} only; otherwise as above.",
  )


def _add_quality(report: Report, rows: pd.DataFrame, measured: str) -> None:
  report.heading("Quality, mean over the photographs")
  report.text(
    "For images drawn from the prior the posterior mean would have the highest "
    "PSNR of all answers, and a sample, which carries the posterior's variance "
    "on top, would lie 3 dB below. Photographs are no such draws: this prior "
    "expects more detail than some of them hold, so plain enlargement can beat "
    "its posterior mean. The residual is |y - A x|^2 over its expected value "
    "for the true image: near 1 for a sample, below 1 for the mean, far above "
    "1 where a sampler has not reached the measurement."
  )
  groups = rows.groupby(["operator", "method"], sort=False)
  table = groups[["psnr", "ssim", "residual", "seconds"]].mean()
  # What is measured is no answer: nothing to measure again.
  degraded = table.index.get_level_values("method") == DEGRADED
  table.loc[degraded, ["residual", "seconds"]] = np.nan
  report.table(
    "Restoration",
    table.rename_axis(["operator", "answer"]).rename(
      columns={"psnr": "PSNR [dB]", "ssim": "SSIM"}
    ),
    digits={"PSNR [dB]": 2, "SSIM": 3, "residual": 2, "seconds": 1},
    measured_on=f"{measured} Seconds: all photographs and samples, compiled.",
    name="restoration",
  )


def _add_agreement(
  report: Report,
  rows: pd.DataFrame,
  pictures: Mapping[str, Pictures],
  measured: str,
) -> None:
  report.heading("Samples against the exact posterior mean")
  report.text(
    "For m exact samples the squared distance of their mean from the posterior "
    "mean is the posterior variance over m: the ratio below is 1 within the "
    "scatter that m samples leave (largest for the box, whose free pixels move "
    "together). The expected PSNR adds that distance to the error of the exact "
    "mean; the one found is a little higher, because PSNR clips pixels to "
    "their range."
  )
  first = rows[rows.photograph == rows.photograph[0]]
  drawn = first[first.method == CALIBRATED].set_index("operator")
  exact = first[first.method == WIENER].set_index("operator").psnr
  spread, mean, truth = (
    pd.Series({operator: x[column] for operator, x in pictures.items()})
    for column in (SPREAD, "mean of samples", "exact posterior mean")
  )
  variance = (spread**2).map(np.mean)
  distance = ((mean - truth) ** 2).map(np.mean)
  noise = variance / drawn.samples  # expected squared distance
  # PSNR is on [0, 1], where a squared distance is a quarter of that on [-1, 1].
  expected = -10 * np.log10(10 ** (-exact / 10) + noise / 4)
  report.table(
    "Mean of calibrated samples",
    pd.DataFrame(
      {
        "m": drawn.samples,
        "PSNR of exact mean": exact,
        "PSNR expected of m": expected,
        "PSNR found": drawn.psnr_mean,
        "distance / expected": np.sqrt(distance / noise),
      }
    )
    .loc[list(pictures)]
    .rename_axis("operator"),
    digits={
      "PSNR of exact mean": 2,
      "PSNR expected of m": 2,
      "PSNR found": 2,
      "distance / expected": 3,
    },
    measured_on=measured,
    name="agreement",
  )


def brief(pictures: Mapping[str, Pictures]) -> Any:
  """A smaller `panel`, for README."""
  return panel({o: pictures[o] for o in BRIEF_OPERATORS}, BRIEF)


def caption(settings: RestorationSettings) -> str:
  """What the panels show."""
  return (
    f"The photograph {settings.photographs[0]} under each operator, noise "
    f"{settings.noise_std:g}; the exact posterior mean under a Gaussian prior "
    "with the spectrum of other photographs; a sample of calibrated NFC "
    f"({settings.levels} levels); and the spread of {settings.num_samples} "
    "samples (white: 0.5)."
  )


def panel(shown: Mapping[str, Pictures], columns: Sequence[str] = ()) -> Any:
  """Operators in rows, answers in columns: a matplotlib figure.

  Args:
    shown: pictures by operator.
    columns: of the pictures, all where none is named.
  """
  lines = {
    operator: {
      column: side_by_side.grey(found[column], white=0.5)
      if column == SPREAD
      else found[column]
      for column in columns or found
    }
    for operator, found in shown.items()
  }
  return side_by_side.panel(lines)
