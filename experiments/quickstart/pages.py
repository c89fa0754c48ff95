"""The report's pages on restoration; their words are in `pages.md`."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.harness import prior_files
from experiments.harness.reporting import page
from experiments.harness.reporting import pictures as side_by_side
from experiments.harness.reporting.report import Report
from experiments.quickstart.known import KnownSettings
from experiments.quickstart.restoration import (
  DEGRADED,
  DPIR_WEIGHT,
  FAST,
  MEAN,
  SAMPLE,
  Answers,
  RestorationSettings,
)

PHOTOGRAPH, RESTORED, SPREAD = "photograph", "restored", "spread of samples"
BASELINE = "best baseline"
# By what a config says: in words, and how many photographs it learned from.
SHIPPED = {
  prior_files.SHIPPED: ("the photo prior", 69),
  prior_files.LARGE: ("the large photo prior", 476),
}
WHITE = 0.3  # standard deviation that the spread shows as white
# What README shows.
BRIEF_OPERATORS = (
  "super-resolution x4",
  "random inpainting 70 %",
  "motion blur",
)


def add(
  report: Report,  # takes it
  rows: pd.DataFrame,  # of `restoration.study`
  answers: Mapping[str, Answers],  # likewise, by operator
  settings: RestorationSettings,  # what was done
  bands: pd.DataFrame | None = None,  # of `known.study`
  bands_settings: KnownSettings | None = None,  # what was done there
) -> None:
  """Adds what was restored and, where studied, how right the spread is."""
  page.add(
    report,
    pathlib.Path(__file__).with_suffix(".md"),
    settings=settings,
    known=bands_settings,
    prior=_prior(settings),
    weight=DPIR_WEIGHT,
    white=WHITE,
    panel=page.Photographs(panel(rows, answers)),
    restoration=_quality(rows),
    answers=_every(rows),
    spread=None if bands is None else _by_frequency(bands),
    bands=None if bands is None else _bands(bands),
  )


def _quality(rows: pd.DataFrame) -> page.Table:
  """PSNR of what gives one picture, by operator; each line's best in bold."""
  found = rows[~rows.method.isin((SAMPLE, MEAN))]
  own = found.method.isin((DEGRADED, FAST))
  table = found[own].pivot(index="operator", columns="method", values="psnr")
  baseline = found[~own].set_index("operator")
  table = pd.DataFrame(
    {DEGRADED: table[DEGRADED], FAST: table[FAST], BASELINE: baseline.psnr}
  ).loc[rows.operator.unique()]
  best = table.eq(table.max(axis=1), axis=0)
  table["lead"] = table[FAST] - table[BASELINE]
  table["the baseline"] = baseline.method
  return page.Table(table, 2, best=best)


def _every(rows: pd.DataFrame) -> page.Table:
  table = rows.drop(columns=["photograph", "psnr"]).set_index("operator")
  heads = {"method": "answer", "products": "VJPs", "ssim": "SSIM"}
  digits = {"SSIM": 3, "residual": 2, "spread": 3, "seconds": 1}
  # A measurement is no answer: nothing to measure again.
  measured = table.method == DEGRADED
  table["residual"] = table.residual.mask(measured)
  table["seconds"] = table.seconds.mask(measured)
  return page.Table(table.rename(columns=heads), digits)


def _bands(bands: pd.DataFrame) -> page.Table:
  columns: dict[str, pd.Series] = {}
  for method, own in bands.groupby("method", sort=False):
    own = own.set_index("upper")
    columns.setdefault("coefficients", own.coefficients)
    columns[method] = own.ratio
    columns[f"± ({method.split()[0]})"] = own.error
  table = pd.DataFrame(columns).rename_axis("up to [cycles per pixel]")
  digits = dict.fromkeys((table.index.name, *table.columns), 3)
  return page.Table(table, digits | {"coefficients": 0})


def _by_frequency(bands: pd.DataFrame) -> Any:
  """The ratio by band: a matplotlib figure."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
  axes.axhline(1, color="black", linewidth=1, label="exact")
  for method, own in bands.groupby("method", sort=False):
    errors = {"yerr": 2 * own.error, "capsize": 3, "marker": "o"}
    axes.errorbar(own.upper, own.ratio, label=method, markersize=4, **errors)
  axes.set(
    yscale="log",
    xlabel="frequency [cycles per pixel]",
    ylabel="sample variance / exact variance",
  )
  ticks = (0.5, 1, 2, 5, 10)
  axes.set_yticks(ticks, list(map(str, ticks)))
  axes.legend(fontsize=8)
  return figure


def brief(rows: pd.DataFrame, answers: Mapping[str, Answers]) -> Any:
  """A smaller `panel`, for README."""
  return panel(rows, {o: answers[o] for o in BRIEF_OPERATORS})


def caption(settings: RestorationSettings) -> str:
  """What `brief` shows."""
  return (
    f"The photograph {settings.photograph} ({settings.size} x {settings.size})"
    f"; its measurement with noise {settings.noise_std:g} by three operators, "
    "one per row; what `NFCConfig.fast()` restores from it in "
    f"{settings.calls} calls of {_prior(settings)}; and where "
    f"{settings.num_samples} calibrated samples differ (white: {WHITE:g}). In "
    "the corners: PSNR in dB."
  )


def _prior(settings: RestorationSettings) -> str:
  """In words."""
  if settings.prior in SHIPPED:
    name, seen = SHIPPED[settings.prior]
    return (
      f"{name} that ships with the package (a network that learned from {seen} "
      "other photographs; every call shows it the image mirrored or "
      "transposed in another way)"
    )
  if settings.prior == prior_files.GAUSSIAN:
    return "a Gaussian prior with the spectrum of other photographs"
  return f"the prior `{settings.prior}`"


def panel(rows: pd.DataFrame, answers: Mapping[str, Answers]) -> Any:
  """Operators in rows, answers in columns: a matplotlib figure.

  Args:
    rows: of `restoration.study`, for what stands in the corners.
    answers: what is shown, by operator.
  """
  shows = {DEGRADED: DEGRADED, RESTORED: FAST}
  psnr = rows.set_index(["operator", "method"]).psnr
  lines, notes = {}, {}
  for operator, found in answers.items():
    lines[operator] = {
      PHOTOGRAPH: found.photograph,
      **{title: found.images[name] for title, name in shows.items()},
      SPREAD: side_by_side.grey(found.spread, white=WHITE),
    }
    notes[operator] = {
      title: f"{psnr[operator, name]:.1f}" for title, name in shows.items()
    }
  return side_by_side.panel(lines, side=2.2, notes=notes)
