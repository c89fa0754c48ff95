"""The report of the gradient study: curves, and what each case ends with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import record
from experiments.harness.report import Report, shown


def write(
  run: record.Run,  # with the tables "losses" and "cases"
  # their names; the first is what the others are compared with
  cases: Sequence[str],
  seeds: int,  # how many
  steps: int,  # of every training
) -> None:
  """Writes `report.html` and says where."""
  found = run.environment
  rows = run.frame("cases").set_index("case").loc[list(cases)]
  ends = rows[[f"seed_{i}" for i in range(seeds)]]
  report = Report(
    "Gradients of the chunk inverse",
    "Implicit: the derivative of the exact inverse at the computed one. "
    "Truncated: the derivative of what was computed, straight-through at every "
    f"rounding of an operand. Command: `{found['command']}`.",
  )
  report.section("Training under each")
  report.text(sentence(ends))
  report.figure(
    _curves(run.frame("losses"), cases),
    "Loss of the seeds' mean, in nats, and its difference from that of "
    f"{cases[0]}; the band spans the seeds.",
  )
  apart = ends - ends.loc[cases[0]]
  table = pd.DataFrame(
    {
      "mean": ends.mean(axis=1, skipna=False),
      "spread of seeds": ends.apply(_spread, axis=1),
      "difference": apart.mean(axis=1, skipna=False),
      "largest": apart.abs().max(axis=1, skipna=False),
      "bad steps": rows["bad_steps"],
    }
  )
  report.table(
    "Mean loss of the last tenth of the steps, in nats",
    table,
    digits=dict.fromkeys(table.columns[:-1], 4),
    bad={"mean": table["bad steps"] > 0},
    measured_on=(
      f"{seeds} seeds, {steps} steps, {found['devices'][0]}, jax "
      f"{found['versions']['jax']}; differences are of the same seed, so of "
      "the same start and the same batches"
    ),
    name="gradients",
  )
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def sentence(
  # what the seeds of each case end with, the first is what the others are
  # compared with
  ends: pd.DataFrame,
) -> str:
  """What the table says, in words."""
  first, *others = ends.index
  spread = _spread(ends.loc[first])
  near: list[str] = []
  far: list[str] = []
  broken: list[str] = []
  for name in others:
    apart = (ends.loc[name] - ends.loc[first]).mean(skipna=False)
    if not np.isfinite(apart):
      broken.append(name)
    else:
      (near if abs(apart) <= spread else far).append(name)
  parts = [
    f"{words}: {', '.join(names)}"
    for names, words in (
      (near, f"ends within the spread of seeds ({spread:.3g} nats) of {first}"),
      (far, "ends further away"),
      (broken, "did not stay finite"),
    )
    if names
  ]
  return "; ".join(parts).capitalize() + "." if parts else f"Only {first}."


def _spread(losses: pd.Series) -> float:
  """Standard deviation over the seeds, 0 for a single one."""
  return losses.to_numpy().std(ddof=1) if len(losses) > 1 else 0.0


def _curves(rows: pd.DataFrame, cases: Sequence[str]) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(9.5, 3.8), layout="constrained")
  left, right = picture.subplots(1, 2)
  curves = rows.pivot(index="step", columns=["case", "seed"], values="loss")
  for i, name in enumerate(cases):
    style: Any = {"color": f"C{i}", "label": name}
    dashes = "--" if name.endswith("truncated") else "-"
    apart = curves[name] - curves[cases[0]]
    left.plot(curves[name].mean(axis=1, skipna=False), dashes, **style)
    right.plot(apart.mean(axis=1, skipna=False), dashes, **style)
    low, high = apart.min(axis=1), apart.max(axis=1)
    right.fill_between(apart.index, low, high, color=f"C{i}", alpha=0.12)
  left.set_ylabel("loss, nats")
  right.set_ylabel(f"difference from {cases[0]}")
  for panel in (left, right):
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
  left.legend(fontsize=7)
  return picture
