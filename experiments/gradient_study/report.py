"""The report of the gradient study: curves, and what each case ends with."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page


def write(
  run: record.Run, cases: Sequence[str], seeds: int, steps: int
) -> None:
  """Writes `report.html` and says where."""
  rows = run.frame("cases").set_index("case").loc[list(cases)]
  ends = rows[[f"seed_{i}" for i in range(seeds)]]
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
  page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    run=run,
    sentence=sentence(ends),
    first=cases[0],
    curves=_curves(run.frame("losses"), cases),
    seeds=seeds,
    steps=steps,
    gradients=page.Table(
      table,
      dict.fromkeys(table.columns[:-1], 4),
      {"mean": table["bad steps"] > 0},
    ),
  ).leave(run.folder)


def sentence(ends: pd.DataFrame) -> str:
  """What the table says, in words; others are compared with the first case."""
  first, *others = ends.index
  spread = _spread(ends.loc[first])
  near = f"ends within the spread of seeds ({spread:.3g} nats) of {first}"
  found: dict[str, list[str]] = {
    near: [],
    "ends further away": [],
    "did not stay finite": [],
  }
  for name in others:
    apart = (ends.loc[name] - ends.loc[first]).mean(skipna=False)
    place = int(not abs(apart) <= spread) if np.isfinite(apart) else 2
    found[list(found)[place]].append(name)
  said = "; ".join(
    f"{x}: {', '.join(names)}" for x, names in found.items() if names
  )
  return f"{said.capitalize()}." if said else f"Only {first}."


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
  words = "loss, nats", f"difference from {cases[0]}"
  for panel, label in zip((left, right), words):
    panel.set(xlabel="step", ylabel=label)
    panel.grid(alpha=0.3)
  left.legend(fontsize=7)
  return picture
