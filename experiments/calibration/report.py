"""The calibration study's rows as tables and one HTML page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.calibration.problems import NOISE_STD
from experiments.calibration.rows import Who
from experiments.harness import record
from experiments.harness.report import Cell, Report
from experiments.harness.samplers import CALIBRATED

Rows = Sequence[Mapping[str, Any]]
# What calibrated samples must keep within, by column.
LIMITS = {
  "mean_error": (0.0, 0.08),
  "ratio": (0.95, 1.05),
  "worst_band": (0.90, 1.10),
  "coverage_50": (-3.0, 3.0),
  "coverage_90": (-3.0, 3.0),
}
GAUSSIAN_COLUMNS = (
  "",
  "calls",
  "Jacobian products",
  "error of the mean",
  "variance ratio",
  "worst band",
  "coverage 50 %, points off",
  "coverage 90 %, points off",
  "Wasserstein / floor",
  "seconds",
)
MIXTURE_COLUMNS = (
  "",
  "calls",
  "Jacobian products",
  "Wasserstein / floor, mean",
  "± 1.96 standard errors",
  "median",
  "mode weights' error, median",
  "that of exact samples",
  "failed",
)


def write(run: record.Run, settings: Any) -> pathlib.Path:
  """Writes `report.html` from the tables and returns its path.

  Args:
    run: its folder takes the report, its tables hold the rows.
    settings: `calibration.Settings` of the run.
  """
  found = run.environment
  report = Report(
    "Calibration against exact posteriors",
    f"Measured on {', '.join(found['devices'])} with jax "
    f"{found['versions']['jax']}; command: `{found['command']}`. All rows are "
    "in `gaussian.jsonl` and `mixture.jsonl` beside this file. Methods that "
    "clip images to [-1, 1] do not here, where no prior ends there.",
  )
  if settings.tasks:
    _add_gaussian(report, run.rows("gaussian"), settings)
  if settings.dimensions:
    _add_mixture(report, run.rows("mixture"), settings)
  return report.write(run.folder / "report.html")


def _add_gaussian(report: Report, rows: Rows, settings: Any) -> None:
  report.section("Gaussian prior, exact denoiser")
  report.text(
    "Posterior samples of one image under a stationary Gaussian prior with a "
    "natural-image spectrum, whose denoiser is exact. Error of the mean in "
    "posterior standard deviations; ratio of variances in total and in the "
    "radial band where it is farthest from 1; share of exact draws in the "
    "samples' central intervals, less what exact samples have, in points; "
    "sliced 2-Wasserstein distance over that between exact samples. A number "
    "of `calibrated` in bold red is outside its limits: "
    "0.08, 0.95 to 1.05, 0.90 to 1.10, 3 points."
  )
  for task in settings.tasks:
    lines = [
      gaussian_line(row) for row in sorted_rows(rows) if row["task"] == task
    ]
    report.table(
      task,
      GAUSSIAN_COLUMNS,
      lines,
      measured_on=f"{settings.samples} samples of {settings.size} x "
      f"{settings.size} pixels, noise {NOISE_STD:g}, seed {settings.seed}",
      name=task.replace(" ", "-"),
    )


def _add_mixture(report: Report, rows: Rows, settings: Any) -> None:
  report.section("Mixtures of 25 modes")
  report.text(
    "Random problems as in MCGDiff: D dimensions seen through m random "
    "measurements. Where the measurement leaves several modes, a sampler must "
    "find their weights: half the sum of absolute differences is their error."
  )
  for size, measured in settings.dimensions:
    chosen = [
      row for row in rows if (row["size"], row["measured"]) == (size, measured)
    ]
    lines = mixture_lines(chosen)
    report.table(
      f"D = {size}, m = {measured}",
      MIXTURE_COLUMNS,
      lines,
      measured_on=f"{settings.problems} problems, {settings.samples} samples, "
      f"{settings.directions} directions, seed {settings.seed}",
      name=f"mixture-{size}-{measured}",
    )


def sorted_rows(rows: Rows) -> list[Mapping[str, Any]]:
  """By method, setting, factor and budget."""
  return sorted(rows, key=_who)


def gaussian_line(row: Mapping[str, Any]) -> list[Any]:
  """One row of a Gaussian table."""
  who = _who(row)
  if row["calls"] is None:
    return [f"{who}: {row['note']}", *[None] * (len(GAUSSIAN_COLUMNS) - 1)]

  def cell(name: str, digits: int) -> Cell:
    value = row[name]
    low, high = LIMITS[name]
    bad = who.setting == CALIBRATED and not (
      _number(value) is not None and low <= value <= high
    )
    return Cell(value, digits, bad)

  distance, floor = _number(row["distance"]), row["distance_floor"]
  return [
    str(who),
    row["calls"],
    row["products"],
    cell("mean_error", 3),
    cell("ratio", 3),
    cell("worst_band", 3),
    cell("coverage_50", 1),
    cell("coverage_90", 1),
    Cell(None if distance is None else distance / floor, 2),
    Cell(row["seconds"], 2),
  ]


def mixture_lines(rows: Rows) -> list[list[Any]]:
  """Lines of a mixture table, best median first."""
  lines: list[list[Any]] = []
  for who in sorted(dict.fromkeys(map(_who, rows))):
    mine = [row for row in rows if _who(row) == who]
    done = [row for row in mine if _number(row["distance"]) is not None]
    if not done:
      lines.append([str(who), *[None] * (len(MIXTURE_COLUMNS) - 2), len(mine)])
      continue
    ratios = np.array([r["distance"] / r["distance_floor"] for r in done])
    error = 1.96 * ratios.std() / np.sqrt(max(len(ratios) - 1, 1))
    lines.append(
      [
        str(who),
        round(np.mean([r["calls"] for r in done])),
        round(np.mean([r["products"] for r in done])),
        Cell(float(ratios.mean()), 2),
        Cell(float(error), 2),
        Cell(float(np.median(ratios)), 2),
        Cell(float(np.median([r["weight_error"] for r in done])), 3),
        Cell(float(np.median([r["weight_floor"] for r in done])), 3),
        len(mine) - len(done),
      ]
    )
  return sorted(lines, key=_median)


def _median(line: list[Any]) -> float:
  cell = line[MIXTURE_COLUMNS.index("median")]
  return np.inf if cell is None else cell.value


def _who(row: Mapping[str, Any]) -> Who:
  return Who(*(row[field] for field in Who._fields))


def _number(value: Any) -> float | None:
  """A finite number, else None; tables hold the others as words."""
  if isinstance(value, int | float) and np.isfinite(value):
    return float(value)
  return None
