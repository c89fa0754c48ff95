"""The report's pages on restored photographs, from restoration_study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.report import Cell, Report
from experiments.quickstart.restoration import (
  CALIBRATED,
  DEGRADED,
  PAPER,
  WIENER,
  Pictures,
  RestorationSettings,
  Row,
)

COLUMNS = {
  "truth": "photograph",
  "degraded": "measured",
  "wiener": "exact posterior mean",
  "sample": "one sample",
  "mean": "mean of samples",
  "std": "spread of samples",
  "paper": "paper's, shrunk",
}
BRIEF = ("truth", "degraded", "wiener", "sample", "std")
BRIEF_OPERATORS = (
  "super-resolution x4",
  "random inpainting 70 %",
  "motion blur",
)
METHODS = (DEGRADED, WIENER, CALIBRATED, PAPER)


def add_restoration(
  report: Report,
  rows: Sequence[Row],
  pictures: Mapping[str, Pictures],
  settings: RestorationSettings,
) -> None:
  """Adds the pictures and the two tables.

  Args:
    report: takes them.
    rows: from `restoration_study.study`.
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
    panel(pictures, tuple(COLUMNS)),
    caption(settings) + " The last column is the paper's setting with "
    f"{settings.paper_levels} levels and {settings.paper_inner_steps} Langevin "
    "updates instead of 200 and 200: it shows that code path, not the method "
    "at its published cost.",
    photographic=True,
  )
  _add_quality(report, rows, measured, settings.workers)
  _add_agreement(
    report,
    rows,
    pictures,
    f"{settings.photographs[0]} only; otherwise as above.",
  )


def _add_quality(
  report: Report, rows: Sequence[Row], measured: str, workers: int
) -> None:
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
  report.table(
    "Restoration",
    ["operator", "answer", "PSNR [dB]", "SSIM", "residual", "seconds"],
    [
      _quality(rows, operator, method)
      for operator in dict.fromkeys(row.operator for row in rows)
      for method in METHODS
    ],
    measured_on=f"{measured} Seconds: all photographs and samples, compiled, "
    f"{workers} operators at a time.",
    name="restoration",
  )


def _add_agreement(
  report: Report,
  rows: Sequence[Row],
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
  report.table(
    "Mean of calibrated samples",
    [
      "operator",
      "m",
      "PSNR of exact mean",
      "PSNR expected of m",
      "PSNR found",
      "distance / expected",
    ],
    [_agreement(rows, o, shown) for o, shown in pictures.items()],
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


def panel(pictures: Mapping[str, Pictures], columns: Sequence[str]) -> Any:
  """Operators in rows, answers in columns: a matplotlib figure.

  Args:
    pictures: by operator.
    columns: fields of `Pictures`.

  Returns:
    The figure.
  """
  import matplotlib.pyplot as plt

  size = (1.75 * len(columns), 1.82 * len(pictures))
  figure, axes = plt.subplots(
    len(pictures),
    len(columns),
    figsize=size,
    squeeze=False,
    layout="constrained",
    gridspec_kw={"wspace": 0.02, "hspace": 0.02},
  )
  for row, (name, shown) in zip(axes, pictures.items()):
    for axis, column in zip(row, columns):
      image = getattr(shown, column)
      if column == "std":
        axis.imshow(image, cmap="gray", vmin=0, vmax=0.5)
      else:
        axis.imshow(np.clip(image / 2 + 0.5, 0, 1))
      axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=8)
  for axis, column in zip(axes[0], columns):
    axis.set_title(COLUMNS[column], fontsize=9)
  return figure


def _quality(rows: Sequence[Row], operator: str, method: str) -> list[Any]:
  chosen = [r for r in rows if (r.operator, r.method) == (operator, method)]
  means: list[Any] = [
    Cell(float(np.mean([getattr(r, field) for r in chosen])), digits)
    for field, digits in (("psnr", 2), ("ssim", 3), ("residual", 2))
  ]
  if method == DEGRADED:  # not an answer: nothing to measure again
    means[-1] = Cell(None)
  seconds = Cell(chosen[0].seconds, 1) if chosen[0].seconds else None
  return [operator, method, *means, seconds]


def _agreement(
  rows: Sequence[Row], operator: str, shown: Pictures
) -> list[Any]:
  def first(method: str) -> Row:
    return next(r for r in rows if (r.operator, r.method) == (operator, method))

  count = first(CALIBRATED).samples
  noise = float(np.mean(shown.std**2)) / count  # expected squared distance
  found = float(np.mean((shown.mean - shown.wiener) ** 2))
  exact = first(WIENER).psnr
  # PSNR is on [0, 1], where a squared distance is a quarter of that on [-1, 1].
  expected = -10 * np.log10(10 ** (-exact / 10) + noise / 4)
  return [
    operator,
    count,
    Cell(exact, 2),
    Cell(float(expected), 2),
    Cell(first(CALIBRATED).psnr_mean, 2),
    Cell(float(np.sqrt(found / noise)), 3),
  ]
