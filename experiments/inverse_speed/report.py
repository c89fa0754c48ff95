"""What the speed study shows: its HTML report and the tables printed last."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import tables, timing
from experiments.harness.report import Report
from experiments.harness.timing import DIGITS, HEADINGS, machine
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
Frames = Mapping[str, pd.DataFrame]

# Columns of a table, and those of them that are printed.
TIMES = ["name", "implementation", "median_ms", "lowest_ms", "highest_ms"]
SHOWN = {
  "inverse": [
    *TIMES,
    "to_copy",
    "to_fla",
    *ERRORS,
    "nonfinite",
    "first_s",
    "note",
  ],
  "stage": [
    *TIMES,
    "to_limit",
    "to_fla",
    "error_u",
    "error_w",
    "nonfinite",
    "first_s",
    "note",
  ],
  "sweep": [
    "name",
    "implementation",
    "beta",
    "matrices",
    "nonfinite",
    "must_be_zero",
    "note",
  ],
}
UNPRINTED = {
  "implementation",
  "lowest_ms",
  "highest_ms",
  "first_s",
  "must_be_zero",
}
NAMES = HEADINGS | {
  "error_beta_1": "error beta up to 1",
  "error_beta_2": "up to 2",
  "error_u": "error of u",
  "error_w": "error of w",
  "must_be_zero": "must be 0",
}


def build(
  found: Frames,  # rows of each part that ran, by name
  settings: Any,  # of `experiments.inverse_speed`
  environment: Mapping[str, Any],  # of the run
) -> Report:
  """The whole report."""
  mark = timing.mark(settings.implementation)
  report = Report(
    f"Speed of the chunk inverse{mark}",
    f"{machine()}, Python {environment['python']}; command: "
    f"`{environment['command']}`. A time is the median of {settings.repeats} "
    f"measurements of up to {settings.inner} back-to-back calls, waited for "
    "once, after a warm-up; inputs rotate among three sets, so that no cache "
    "holds them, and are drawn from every key family. Every number stands in "
    "the `.jsonl` and `.csv` tables beside this file.",
  )
  adders = {"inverse": _inverse, "stage": _stage, "sweep": _sweep}
  for name, rows in found.items():
    adders[name](report, rows, settings, mark)
  return report


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


def _overflowed(rows: pd.DataFrame) -> pd.Series:
  """Where entries are not finite, or nobody knows, that must be."""
  return rows.must_be_zero & (rows.nonfinite != 0)


def _inverse(
  report: Report, rows: pd.DataFrame, settings: Any, mark: str
) -> None:
  report.section(f"The inverse alone{mark}")
  report.text(
    f"{settings.count} matrices of {settings.chunk_size} x "
    f"{settings.chunk_size}, float32 in and out. An error is the relative "
    "Frobenius error of the strictly lower part against float64, the worst of "
    f"{settings.draws} draws of each family and decay, beta uniform in "
    f"{_range(BETAS[0])} and in {_range(BETAS[1])}. Red: above {FAILS:g}."
  )
  _add(
    report,
    rows,
    "inverse",
    f"Time and error{mark}",
    bad=rows[list(ERRORS)] > FAILS,
  )
  report.figure(
    plot(rows, f"{settings.count} inverses, {timing.device_name()}{mark}"),
    "Time of a batch against worst error, beta up to 1, both logarithmic. The "
    "line is a copy of the same bytes. Lower and further left is better; what "
    "overflowed is left out.",
  )


def plot(rows: pd.DataFrame, title: str) -> Any:
  """Time against error, each inverse a point; copies are lines."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(8, 5.2))
  markers = {"gpu": "o", "xla": "s", "fla": "*"}
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  known = rows[rows.median_ms.notna()]
  found: Any = known.itertuples()
  for i, row in enumerate(found):
    if row.name in (COPY, TORCH_COPY):
      style = "-" if row.name == COPY else ":"
      axes.axhline(row.median_ms, color="black", lw=1, ls=style, label=row.name)
    elif row.error_beta_1 and np.isfinite(row.error_beta_1):
      fla = row.name == FLA
      axes.loglog(
        row.error_beta_1,
        row.median_ms,
        markers[row.implementation],
        markersize=14 if fla else 7,
        color="crimson" if fla else colours[i % len(colours)],
        label=row.name,
      )
  axes.set(xscale="log", yscale="log", title=title)
  axes.set_xlabel("worst relative error, beta up to 1")
  axes.set_ylabel("milliseconds a batch")
  axes.grid(which="both", alpha=0.2)
  axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
  return figure


def _stage(
  report: Report, rows: pd.DataFrame, settings: Any, mark: str
) -> None:
  report.section(f"The stage around it{mark}")
  report.text(
    "Keys, values and gates in, u = T (beta v) and w = T (beta exp(G) k) out: "
    f"{settings.tokens} tokens, {settings.heads} heads of {settings.dim}, "
    "bfloat16, gates float32, beta in 0.6 to 1. The byte limit reads every "
    "input and writes u and w once, at the rate of the copy. fla's time has "
    "its cumulative sum of the gates and the T that it stores. Errors are "
    f"relative Frobenius errors of a chunk and head, the worst of {EVALUATED} "
    "chunks spread over the sequence, against float64."
  )
  bad = rows[["error_u", "error_w"]] > FAILS
  bad["nonfinite"] = rows.nonfinite > 0
  _add(report, rows, "stage", f"Time and error of the stage{mark}", bad=bad)


def _sweep(
  report: Report, rows: pd.DataFrame, settings: Any, mark: str
) -> None:
  report.section(f"Overflow{mark}")
  report.text(
    "Entries of T that are not finite, over matrices of every family and "
    f"decay, keys of width {SWEEP_DIM} drawn on the device, beta in "
    f"{' and in '.join(map(_range, SWEPT_BETAS))}. Nothing but the paper's "
    "own banded form may have any. Red: it has."
  )
  words = rows.must_be_zero.map({True: "yes", False: "no: the paper's own"})
  _add(
    report,
    rows.assign(must_be_zero=words),
    "sweep",
    f"Entries that are not finite{mark}",
    bad=_overflowed(rows).to_frame("nonfinite"),
    about=f", blocks of {settings.count} matrices",
  )


def _add(
  report: Report,
  rows: pd.DataFrame,
  name: str,
  caption: str,
  *,
  bad: pd.DataFrame,
  about: str = "",
) -> None:
  report.table(
    caption,
    rows[SHOWN[name]].rename(columns=NAMES),
    measured_on=f"{machine()}{about}",
    name=name,
    digits=DIGITS,
    bad=bad.rename(columns=NAMES),
  )


def _range(beta: tuple[float, float]) -> str:
  return f"{beta[0]:g} to {beta[1]:g}"
