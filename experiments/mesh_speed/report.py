"""What the study of meshes shows: lines as it runs, a table, its report."""

import pathlib
from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.harness.speed import timing
from experiments.mesh_speed.probe import ONE
from experiments.mesh_speed.profile import Waits

# Losses of one computation in another order of sums; more is another one.
AGREE = 1e-4
UNKNOWN = (
  "Not known: no mesh of several devices was timed, or the profiler has no "
  "timeline of this platform's devices."
)
_COLUMNS = [
  "name",
  "rows",
  "tokens",
  "devices",
  "median_ms",
  "lowest_ms",
  "highest_ms",
  "speed_up",
  "loss_difference",
  "note",
]
_HEADINGS = timing.HEADINGS | {
  "name": "mesh",
  "speed_up": "speed-up",
  "loss_difference": "loss difference",
}
_DIGITS = {"ms": 1, "lowest": 1, "highest": 1, "speed-up": 2}


def line(row: dict[str, Any]) -> str:
  """A row as it is printed while the study runs."""
  about = f"{row['name']}, {row['rows']} x {row['tokens']} tokens"
  if row["note"]:
    return f"{about}: {row['note']}"
  return f"{about}: {row['median_ms']:.1f} ms, {row['speed_up'] or 1:.2f} x"


def closing(rows: pd.DataFrame) -> str:
  """The table printed at the end."""
  where = f"\nA training step; {timing.machine()}"
  return f"{where}\n{tables.aligned(_shown(rows), _DIGITS)}"


def build(
  rows: pd.DataFrame,
  losses: pd.DataFrame,
  waits: tuple[str, Waits] | None,
  settings: Any,
  run: record.Run,
) -> Report:
  """The whole report, from `report.md`.

  Args:
    rows: of every mesh.
    losses: of every mesh and step.
    waits: the slowest mesh and where its time went, if that is known.
    settings: of the study.
    run: its folder and environment.
  """
  table = _shown(rows)
  by_step = losses.set_index(["rows", "tokens", "name", "step"]).loss
  words, longest = UNKNOWN, None
  if waits is not None:
    name, found = waits
    words = (
      f"One step on the mesh `{name}`: {found.communication:.0%} of the "
      "devices' busy time moves data between them. The trace in `profile/` "
      "opens in Perfetto or TensorBoard."
    )
    longest = pd.DataFrame(
      found.longest, columns=["kernel", "share of busy time"]
    )
  return page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    origin=run.origin(),
    model=settings.model(),
    settings=settings,
    agree=AGREE,
    machine=timing.machine(),
    meshes=page.Table(
      table,
      _DIGITS,
      bad={"loss difference": table["loss difference"] > AGREE},
    ),
    losses=page.Table(by_step.unstack("step").add_prefix("step "), 6),
    waits=words,
    kernels=None if longest is None else page.Table(longest, 3),
  )


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
  table = rows[_COLUMNS].rename(columns=_HEADINGS)
  # One device is what the others are compared with.
  alone = table.mesh == ONE
  return table.assign(
    **{x: table[x].mask(alone) for x in ("speed-up", "loss difference")}
  )
