"""The HTML report of the speed study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.report import Cell, Report
from experiments.inverse_speed.inverse_part import (
  BETAS,
  COPY,
  FLA,
  TORCH_COPY,
  InverseRow,
  device_name,
)
from experiments.inverse_speed.overflow_part import (
  SWEEP_DIM,
  SWEPT_BETAS,
  SweepRow,
)
from experiments.inverse_speed.tables import machine, mark
from experiments.inverse_speed.wy_part import JUDGED, StageRow

FAILS = 0.1  # a relative error above this is shown as a failure


def build(
  found: Mapping[str, list], settings: Any, environment: Mapping[str, Any]
) -> Report:
  """The whole report.

  Args:
    found: rows of each part that ran, by name.
    settings: of `experiments.inverse_speed`.
    environment: of the run.
  """
  report = Report(
    f"Speed of the chunk inverse{mark(settings)}",
    f"{machine()}, Python {environment['python']}; command: "
    f"`{environment['command']}`. A time is the median of {settings.repeats} "
    f"measurements of up to {settings.inner} back-to-back calls, waited for "
    "once, after a warm-up; inputs rotate among three sets, so that no cache "
    "holds them, and are drawn from every key family. Every number stands in "
    "the `.jsonl` and `.csv` tables beside this file.",
  )
  adders: dict[str, Any] = {
    "inverse": _inverse,
    "stage": _stage,
    "sweep": _sweep,
  }
  for name, rows in found.items():
    adders[name](report, rows, settings)
  return report


def _inverse(report: Report, rows: Sequence[InverseRow], settings: Any) -> None:
  report.section(f"The inverse alone{mark(settings)}")
  report.text(
    f"{settings.count} matrices of {settings.chunk_size} x "
    f"{settings.chunk_size}, float32 in and out. An error is the relative "
    "Frobenius error of the strictly lower part against float64, the worst of "
    f"{settings.draws} draws of each family and decay, beta uniform in "
    f"{_range(BETAS[0])} and in {_range(BETAS[1])}. Red: above {FAILS:g}."
  )
  heads = "name,runs in,ms,lowest,highest,x copy,x fla,error beta up to 1"
  report.table(
    f"Time and error{mark(settings)}",
    [*heads.split(","), "up to 2", "not finite", "first call, s", "note"],
    [
      [
        r.name,
        r.implementation,
        *(Cell(x, 3) for x in (r.median_ms, r.lowest_ms, r.highest_ms)),
        Cell(r.to_copy, 2),
        Cell(r.to_fla, 2),
        *(
          Cell(x, bad=x is not None and x > FAILS)
          for x in (r.error_beta_1, r.error_beta_2)
        ),
        r.nonfinite,
        Cell(r.first_s, 1),
        r.note,
      ]
      for r in rows
    ],
    measured_on=machine(),
    name="inverse",
  )
  report.figure(
    plot(rows, f"{settings.count} inverses, {device_name()}{mark(settings)}"),
    "Time of a batch against worst error, beta up to 1, both logarithmic. The "
    "line is a copy of the same bytes. Lower and further left is better; what "
    "overflowed is left out.",
  )


def plot(rows: Sequence[InverseRow], title: str) -> Any:
  """Time against error, each inverse a point; copies are lines."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(8, 5.2))
  markers = {"gpu": "o", "xla": "s", "fla": "*"}
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  for i, row in enumerate(rows):
    time, error = row.median_ms, row.error_beta_1
    if time is not None and row.name in (COPY, TORCH_COPY):
      style = "-" if row.name == COPY else ":"
      axes.axhline(time, color="black", lw=1, ls=style, label=row.name)
    elif time is not None and error and np.isfinite(error):
      fla = row.name == FLA
      axes.loglog(
        error,
        time,
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


def _stage(report: Report, rows: Sequence[StageRow], settings: Any) -> None:
  report.section(f"The stage around it{mark(settings)}")
  report.text(
    "Keys, values and gates in, u = T (beta v) and w = T (beta exp(G) k) out: "
    f"{settings.tokens} tokens, {settings.heads} heads of {settings.dim}, "
    "bfloat16, gates float32, beta in 0.6 to 1. The byte limit reads every "
    "input and writes u and w once, at the rate of the copy. fla's time has "
    "its cumulative sum of the gates and the T that it stores. Errors are "
    f"relative Frobenius errors of a chunk and head, the worst of {JUDGED} "
    "chunks spread over the sequence, against float64."
  )
  heads = ["name", "runs in", "ms", "lowest", "highest", "x limit", "x fla"]
  report.table(
    f"Time and error of the stage{mark(settings)}",
    [*heads, "error of u", "error of w", "not finite", "first call, s", "note"],
    [
      [
        r.name,
        r.implementation,
        *(Cell(x, 3) for x in (r.median_ms, r.lowest_ms, r.highest_ms)),
        Cell(r.to_limit, 2),
        Cell(r.to_fla, 2),
        *(
          Cell(x, bad=x is not None and x > FAILS)
          for x in (r.error_u, r.error_w)
        ),
        Cell(r.nonfinite, bad=bool(r.nonfinite)),
        Cell(r.first_s, 1),
        r.note,
      ]
      for r in rows
    ],
    measured_on=machine(),
    name="stage",
  )


def _sweep(report: Report, rows: Sequence[SweepRow], settings: Any) -> None:
  report.section(f"Overflow{mark(settings)}")
  report.text(
    "Entries of T that are not finite, over matrices of every family and "
    f"decay, keys of width {SWEEP_DIM} drawn on the device, beta in "
    f"{' and in '.join(map(_range, SWEPT_BETAS))}. Nothing but the paper's "
    "own banded form may have any. Red: it has."
  )
  report.table(
    f"Entries that are not finite{mark(settings)}",
    ["name", "runs in", "beta", "matrices", "not finite", "must be 0", "note"],
    [
      [
        r.name,
        r.implementation,
        r.beta,
        r.matrices,
        Cell(r.nonfinite, bad=r.must_be_zero and r.nonfinite != 0),
        "yes" if r.must_be_zero else "no: the paper's own",
        r.note,
      ]
      for r in rows
    ],
    measured_on=f"{machine()}, blocks of {settings.count} matrices",
    name="sweep",
  )


def _range(beta: tuple[float, float]) -> str:
  return f"{beta[0]:g} to {beta[1]:g}"
