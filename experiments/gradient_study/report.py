"""The report of the gradient study: curves, and what each case ends with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness import record
from experiments.harness import report as reports
from experiments.harness.report import Cell


def write(
  run: record.Run, cases: Sequence[str], seeds: int, steps: int
) -> None:
  """Writes `report.html` and says where.

  Args:
    run: with the tables "losses" and "cases".
    cases: their names; the first is what the others are compared with.
    seeds: how many.
    steps: of every training.
  """
  found = run.environment
  ends = _ends(run, seeds)
  report = reports.Report(
    "Gradients of the chunk inverse",
    "Implicit: the derivative of the exact inverse at the computed one. "
    "Truncated: the derivative of what was computed, straight-through at every "
    f"rounding of an operand. Command: `{found['command']}`.",
  )
  report.section("Training under each")
  report.text(sentence(cases, ends))
  report.figure(
    _curves(run.rows("losses"), cases),
    "Loss of the seeds' mean, in nats, and its difference from that of "
    f"{cases[0]}; the band spans the seeds.",
  )
  rows = {row["case"]: row for row in run.rows("cases")}
  report.table(
    "Mean loss of the last tenth of the steps, in nats",
    ["case", "mean", "spread of seeds", "difference", "largest", "bad steps"],
    [_row(name, cases[0], ends, rows[name]["bad_steps"]) for name in cases],
    measured_on=(
      f"{seeds} seeds, {steps} steps, {found['devices'][0]}, jax "
      f"{found['versions']['jax']}; differences are of the same seed, so of "
      "the same start and the same batches"
    ),
    name="gradients",
  )
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


def sentence(cases: Sequence[str], ends: dict[str, np.ndarray]) -> str:
  """What the table says, in words."""
  first, *others = cases
  spread = _spread(ends[first])
  near, far, broken = [], [], []
  for name in others:
    if not np.isfinite(ends[name]).all():
      broken.append(name)
    elif abs((ends[name] - ends[first]).mean()) <= spread:
      near.append(name)
    else:
      far.append(name)
  parts = []
  for names, words in (
    (near, f"ends within the spread of seeds ({spread:.3g} nats) of {first}"),
    (far, "ends further away"),
    (broken, "did not stay finite"),
  ):
    if names:
      parts.append(f"{words}: {', '.join(names)}")
  return "; ".join(parts).capitalize() + "." if parts else f"Only {first}."


def _ends(run: record.Run, seeds: int) -> dict[str, np.ndarray]:
  """Losses that the seeds of each case end with."""
  return {
    row["case"]: np.array([float(row[f"seed_{i}"]) for i in range(seeds)])
    for row in run.rows("cases")
  }


def _row(
  name: str, first: str, ends: dict[str, np.ndarray], bad: int
) -> list[Any]:
  own = ends[name]
  apart = own - ends[first]
  return [
    name,
    Cell(float(own.mean()), 4, bad=bool(bad)),
    Cell(_spread(own), 4),
    Cell(float(apart.mean()), 4),
    Cell(float(np.abs(apart).max()), 4),
    bad,
  ]


def _spread(losses: np.ndarray) -> float:
  """Standard deviation over the seeds."""
  return float(losses.std(ddof=1)) if len(losses) > 1 else 0.0


def _curves(rows: Sequence[dict[str, Any]], cases: Sequence[str]) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(9.5, 3.8), layout="constrained")
  left, right = picture.subplots(1, 2)
  curves = {name: _curve(rows, name) for name in cases}
  steps = np.unique([row["step"] for row in rows])
  for i, (name, curve) in enumerate(curves.items()):
    style = {"color": f"C{i}", "label": name}
    dashes = "--" if name.endswith("truncated") else "-"
    left.plot(steps, curve.mean(0), dashes, **style)
    apart = curve - curves[cases[0]]
    right.plot(steps, apart.mean(0), dashes, **style)
    right.fill_between(
      steps, apart.min(0), apart.max(0), color=f"C{i}", alpha=0.12
    )
  left.set_ylabel("loss, nats")
  right.set_ylabel(f"difference from {cases[0]}")
  for panel in (left, right):
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
  left.legend(fontsize=7)
  return picture


def _curve(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
  """Losses [seeds, steps / block] of a case."""
  own = [row for row in rows if row["case"] == name]
  seeds = sorted({row["seed"] for row in own})
  return np.array(
    [[float(row["loss"]) for row in own if row["seed"] == s] for s in seeds]
  )
