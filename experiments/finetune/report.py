"""The report of a tuning: its curve, and the held-out loss."""

import pathlib
from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page


def write(
  run: record.Run,
  *,
  words: str,  # what was learned from
  tuned: int,  # how many parameters
) -> None:
  """Writes `report.html` and says where."""
  found = run.environment
  held_out = run.frame("held_out")
  table = page.table(
    "Before and after",
    held_out,
    digits={"loss": 4, "perplexity": 3},
    measured_on=f"{found['devices'][0]}, jax {found['versions']['jax']}",
    name="held-out",
  )
  page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    run=run,
    words=words,
    tuned=f"{tuned / 1e6:.3g}",
    curve=_curve(run.frame("training")),
    held_out=table if len(held_out) else None,
  ).leave(run.folder)


def _curve(rows: pd.DataFrame) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(7, 3.6), layout="constrained")
  panel = picture.subplots()
  panel.plot(rows["step"], rows["token_loss"], linewidth=1.4)
  panel.set(xlabel="step", ylabel="nats per predicted token")
  panel.grid(alpha=0.3)
  return picture
