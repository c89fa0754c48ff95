"""What the study of meshes shows: lines as it runs, a table, its report."""

from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import tables
from experiments.harness.reporting.report import Report
from experiments.harness.speed import timing
from experiments.mesh_speed.probe import ONE
from experiments.mesh_speed.profile import Waits

# Losses of one computation in another order of sums; more is another one.
AGREE = 1e-4
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
  """The whole report.

  Args:
    rows: of every mesh.
    losses: of every mesh and step.
    waits: the slowest mesh and where its time went, if that is known.
    settings: of the study.
    run: its folder and environment.
  """
  model = settings.model()
  page = Report("A training step on meshes of devices", run.origin())
  page.section("Time of a step")
  page.text(
    f"A model of {model.num_hidden_layers} layers, hidden "
    f"{model.hidden_size}, {settings.dtype} activations and float32 "
    "parameters, AdamW, layers computed again in the backward pass. A mesh "
    "named by one axis gives it all devices. A time is the median of "
    f"{settings.repeats} measurements of {settings.inner} steps back to back, "
    f"after {settings.steps} steps whose losses are compared; a loss "
    "difference is the largest relative distance from one device's, red above "
    f"{AGREE:g}."
  )
  table = _shown(rows)
  page.table(
    "Training step",
    table,
    measured_on=timing.machine(),
    name="meshes",
    digits=_DIGITS,
    bad={"loss difference": table["loss difference"] > AGREE},
  )
  page.section("Losses")
  by_step = losses.set_index(["rows", "tokens", "name", "step"]).loss
  page.table(
    "Loss by step",
    by_step.unstack("step").add_prefix("step "),
    measured_on=timing.machine(),
    name="losses",
    digits=6,
  )
  page.section("What the slowest mesh waits for")
  if waits is None:
    page.text(
      "Not known: no mesh of several devices was timed, or the profiler has "
      "no timeline of this platform's devices."
    )
    return page
  name, found = waits
  page.text(
    f"One step on the mesh `{name}`: {found.communication:.0%} of the "
    "devices' busy time moves data between them. The trace in `profile/` "
    "opens in Perfetto or TensorBoard."
  )
  page.table(
    "Kernels that take longest",
    pd.DataFrame(found.longest, columns=["kernel", "share of busy time"]),
    measured_on=timing.machine(),
    name="kernels",
    digits=3,
  )
  return page


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
  table = rows[_COLUMNS].rename(columns=_HEADINGS)
  # One device is what the others are compared with.
  alone = table.mesh == ONE
  return table.assign(
    **{x: table[x].mask(alone) for x in ("speed-up", "loss difference")}
  )
