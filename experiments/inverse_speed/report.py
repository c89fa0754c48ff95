"""What the speed study shows: its HTML report and the tables printed last."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.harness.speed import timing
from experiments.harness.speed.timing import DIGITS, HEADINGS, machine
from experiments.inverse_speed.inverse_part import (
  BETAS,
  COPY,
  ERRORS,
  FLA,
  TORCH_COPY,
)
from experiments.inverse_speed.overflow_part import SWEEP_DIM, SWEPT_BETAS
from experiments.inverse_speed.wy_part import EVALUATED

FAILS = 0.1  # a relative error above this is shown as a failure
Frames = Mapping[str, pd.DataFrame]  # rows of each part that ran, by name

# Columns of a table, and those of them that are not printed.
TIMES = ("name", "implementation", "median_ms", "lowest_ms", "highest_ms")
LAST = ("nonfinite", "first_s", "note")
SHOWN = {
  "inverse": [*TIMES, "to_copy", "to_fla", *ERRORS, *LAST],
  "stage": [*TIMES, "to_limit", "to_fla", "error_u", "error_w", *LAST],
  "sweep": [
    *TIMES[:2],
    "beta",
    "matrices",
    "nonfinite",
    "must_be_zero",
    "note",
  ],
}
UNPRINTED = {"implementation", "first_s", "must_be_zero", *TIMES[3:]}
NAMES = HEADINGS | {
  "error_beta_1": "error beta up to 1",
  "error_beta_2": "up to 2",
  "error_u": "error of u",
  "error_w": "error of w",
  "must_be_zero": "must be 0",
}


def build(
  found: Frames, settings: Any, environment: Mapping[str, Any]
) -> Report:
  """The whole report, from `report.md`; a part that did not run is left out."""
  mark = timing.mark(settings.implementation)
  parts: dict[str, Any] = dict.fromkeys((*SHOWN, "plot"))
  for name, rows in found.items():
    parts[name] = _table(name, rows)
  if "inverse" in found:
    title = f"{settings.count} inverses, {timing.device_name()}{mark}"
    parts["plot"] = plot(found["inverse"], title)
  return page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    mark=mark,
    machine=machine(),
    environment=environment,
    settings=settings,
    fails=FAILS,
    betas=_ranges(BETAS),
    swept=_ranges(SWEPT_BETAS),
    evaluated=EVALUATED,
    width=SWEEP_DIM,
    **parts,
  )


def closing(found: Frames, settings: Any) -> str:
  """The tables printed at the end."""
  size = settings.chunk_size
  titles = {
    "inverse": f"inverse of {settings.count} matrices, C={size}, float32 in "
    "and out",
    "stage": f"stage k, v, gates -> u, w: {settings.tokens} tokens, "
    f"{settings.heads} heads of {settings.dim}",
    "sweep": f"sweep: entries of T not finite, C={size}",
  }
  lines = []
  for name, rows in found.items():
    mark = timing.mark(settings.implementation)
    columns = [column for column in SHOWN[name] if column not in UNPRINTED]
    lines.append(f"\n{titles[name]}; {machine()}{mark}")
    lines.append(tables.aligned(rows[columns].rename(columns=NAMES), DIGITS))
  if "sweep" in found:
    bad = _overflowed(found["sweep"])
    names = ", ".join(found["sweep"].name[bad].unique())
    lines.append(
      f"sweep: {f'FAILED for {names}' if names else '0 wherever it must be'}"
    )
  return "\n".join(lines)


def _table(name: str, rows: pd.DataFrame) -> page.Table:
  """The table of a part, its failures in red."""
  bad = rows.filter(like="error") > FAILS
  if name == "stage":
    bad["nonfinite"] = rows.nonfinite > 0
  if name == "sweep":
    bad = _overflowed(rows).to_frame("nonfinite")
    words = rows.must_be_zero.map({True: "yes", False: "no: the paper's own"})
    rows = rows.assign(must_be_zero=words)
  shown = rows[SHOWN[name]].rename(columns=NAMES)
  return page.Table(shown, DIGITS, bad.rename(columns=NAMES))


def _overflowed(rows: pd.DataFrame) -> pd.Series:
  """Where entries are not finite, or nobody knows, that must be."""
  return rows.must_be_zero & (rows.nonfinite != 0)


def _ranges(betas: Sequence[tuple[float, float]]) -> str:
  return " and in ".join(f"{low:g} to {high:g}" for low, high in betas)


def plot(rows: pd.DataFrame, title: str) -> Any:
  """Time against error, each inverse a point; copies are lines."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(8, 5.2))
  markers = {"gpu": "o", "xla": "s", "fla": "*"}
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  found: Any = rows[rows.median_ms.notna()].itertuples()
  for i, row in enumerate(found):
    if row.name in (COPY, TORCH_COPY):
      style = "-" if row.name == COPY else ":"
      axes.axhline(row.median_ms, color="black", lw=1, ls=style, label=row.name)
    elif row.error_beta_1 and np.isfinite(row.error_beta_1):
      fla = row.name == FLA
      axes.plot(
        row.error_beta_1,
        row.median_ms,
        markers[row.implementation],
        markersize=14 if fla else 7,
        color="crimson" if fla else colours[i % len(colours)],
        label=row.name,
      )
  axes.set(xscale="log", yscale="log", title=title)
  axes.set(xlabel="worst relative error, beta up to 1")
  axes.set(ylabel="milliseconds a batch")
  axes.grid(which="both", alpha=0.2)
  axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
  return figure
