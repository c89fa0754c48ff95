"""The calibration study's rows as tables and one HTML page."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from experiments.calibration.problems import NOISE_STD
from experiments.calibration.trials import Settings
from experiments.harness import record
from experiments.harness.reporting import page
from experiments.harness.subjects.samplers import CALIBRATED

# Who sampled, a line of a table; a budget of 0 is a setting's own.
WHO = ["method", "setting", "factor", "budget"]
RATIO = "Wasserstein / floor"
# Columns of the Gaussian tables, their headings and digits.
GAUSSIAN = {
  "calls": ("calls", 0),
  "products": ("Jacobian products", 0),
  "mean_error": ("error of the mean", 3),
  "ratio": ("variance ratio", 3),
  "worst_band": ("worst band", 3),
  "coverage_50": ("coverage 50 %, points off", 1),
  "coverage_90": ("coverage 90 %, points off", 1),
  "over_floor": (RATIO, 2),
  "seconds": ("seconds", 2),
}
# What calibrated samples must keep within, by column.
LIMITS = {
  "mean_error": (0.0, 0.08),
  "ratio": (0.95, 1.05),
  "worst_band": (0.90, 1.10),
  "coverage_50": (-3.0, 3.0),
  "coverage_90": (-3.0, 3.0),
}
# Columns of the mixtures' tables: what they are of, how, and digits.
MIXTURE: dict[str, tuple[str, Any, int]] = {
  "calls": ("calls", "mean", 0),
  "Jacobian products": ("products", "mean", 0),
  f"{RATIO}, mean": ("over_floor", "mean", 2),
  "± 1.96 standard errors": ("over_floor", lambda x: 1.96 * _error(x), 2),
  "median": ("over_floor", "median", 2),
  "mode weights' error, median": ("weight_error", "median", 3),
  "that of exact samples": ("weight_floor", "median", 3),
  "failed": ("over_floor", lambda x: x.isna().sum(), 0),
}


def write(run: record.Run, settings: Settings) -> None:
  """Writes `report.html` from the tables, prints its path."""
  page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    origin=run.origin(),
    gaussian=[*_gaussian(run, settings)] or None,
    mixture=[*_mixture(run, settings)] or None,
  ).leave(run.folder)


def _gaussian(run: record.Run, settings: Settings) -> Iterator[page.Part]:
  for task in settings.tasks:
    rows = run.frame("gaussian")
    table, bad = gaussian(rows[rows["task"] == task])
    yield page.table(
      task,
      table,
      digits=dict(GAUSSIAN.values()),
      bad=bad,
      measured_on=f"{settings.samples} samples of {settings.size} x "
      f"{settings.size} pixels, noise {NOISE_STD:g}, seed {settings.seed}",
      name=task.replace(" ", "-"),
    )


def _mixture(run: record.Run, settings: Settings) -> Iterator[page.Part]:
  for size, measured in settings.dimensions:
    rows = run.frame("mixture")
    rows = rows[(rows["size"] == size) & (rows["measured"] == measured)]
    yield page.table(
      f"D = {size}, m = {measured}",
      mixture(rows),
      digits={name: digits for name, (_, _, digits) in MIXTURE.items()},
      measured_on=f"{settings.problems} problems, {settings.samples} samples, "
      f"{settings.directions} directions, seed {settings.seed}",
      name=f"mixture-{size}-{measured}",
    )


def gaussian(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
  """A task's table by method, and which numbers are outside their limits."""
  rows = rows.sort_values(WHO, ignore_index=True)
  rows["over_floor"] = rows["distance"] / rows["distance_floor"]
  notes = ": " + rows["note"]
  names = _words(rows) + notes.where(rows["note"] != "", "")
  table = rows[list(GAUSSIAN)]
  checked = (rows["setting"] == CALIBRATED) & rows["calls"].notna()
  bad = pd.DataFrame(
    {
      GAUSSIAN[name][0]: checked & ~rows[name].between(*limits)
      for name, limits in LIMITS.items()
    }
  )
  headings = {name: heading for name, (heading, _) in GAUSSIAN.items()}
  table = table.rename(columns=headings)
  table.insert(0, "method", names)
  return table, bad


def mixture(rows: pd.DataFrame) -> pd.DataFrame:
  """A table of mixtures by method, the best median first, failures last."""
  ratio = rows["distance"] / rows["distance_floor"]
  fields = ["calls", "products", "weight_error", "weight_floor"]
  done = rows[fields].where(ratio.notna()).assign(over_floor=ratio)
  groups = done.groupby([rows[name] for name in WHO])
  found = pd.DataFrame(
    {name: groups[field].agg(how) for name, (field, how, _) in MIXTURE.items()}
  )
  found.insert(0, "method", list(_words(found.reset_index())))
  return found.sort_values("median", kind="stable").reset_index(drop=True)


def _error(ratios: pd.Series) -> float:
  """Standard error of the mean of those that are there."""
  return ratios.std(ddof=0) / np.sqrt(max(ratios.count() - 1, 1))


def _words(rows: pd.DataFrame) -> pd.Series:
  """Who sampled: method, setting and a spectrum that is off by a factor."""
  factors = ", spectrum x " + rows["factor"].map("{:g}".format)
  names = rows["method"] + " " + rows["setting"]
  return names + factors.where(rows["factor"] != 1, "")
