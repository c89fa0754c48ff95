"""The report of a trained byte model: its curve, held-out text, the tasks."""

import pathlib
from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page
from experiments.train_lm.batches import KINDS


def write(run: record.Run, *, words: str, context: int) -> None:
  """Writes `report.html` and says where."""
  found = run.environment
  measured = f"{found['devices'][0]}, jax {found['versions']['jax']}"
  tasks = run.frame("tasks")
  tasks["right"] *= 100
  page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    run=run,
    words=words,
    context=context,
    curve=_curve(run.frame("training")),
    text=page.table(
      "Bits per byte",
      run.frame("text"),
      digits=dict.fromkeys(("model", "gzip", "xz"), 3),
      measured_on=measured,
      name="text",
    ),
    tasks=page.table(
      "Answers that are right",
      tasks.rename(columns={"right": "right [%]", "bits": "bits per answer"}),
      digits={"right [%]": 2, "bits per answer": 4},
      measured_on=f"{measured}; rows of {context} tokens, never trained on",
      name="tasks",
    ),
  ).leave(run.folder)


def _curve(rows: pd.DataFrame) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(7, 3.6), layout="constrained")
  panel = picture.subplots()
  for kind in KINDS:
    if rows[kind].notna().any():
      wide = 1.8 if kind == KINDS[0] else 1.0
      panel.plot(rows["step"], rows[kind], label=kind, linewidth=wide)
  panel.set(xlabel="step", ylabel="bits per predicted token")
  panel.set_ylim(bottom=0)
  panel.grid(alpha=0.3)
  panel.legend()
  return picture
