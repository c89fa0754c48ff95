"""The report of a trained byte model: its curve, held-out text, the tasks."""

from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.report import Report, shown
from experiments.train_lm.batches import KINDS


def write(
  run: record.Run,  # with the tables "training", "text" and "tasks"
  *,
  words: str,  # a sentence about the model and its training
  context: int,  # tokens of a window
) -> None:
  """Writes `report.html` and says where."""
  found = run.environment
  measured = f"{found['devices'][0]}, jax {found['versions']['jax']}"
  report = Report(
    "A language model of bytes", f"{words} Command: `{found['command']}`."
  )
  report.section("Training")
  report.figure(
    _curve(run.frame("training")),
    "Bits per predicted token during training: of bytes of the training text, "
    "and of answers to the tasks.",
  )
  report.section("Held-out modules")
  report.text(
    "Modules whose name's hash says so, none of which was trained on. The "
    f"model reads windows of {context} tokens; every byte is predicted from at "
    "least half of one. gzip -9 and xz -9e get a module's documents as one "
    "file; they learn from it alone, the model from other modules too."
  )
  report.table(
    "Bits per byte",
    run.frame("text"),
    digits=dict.fromkeys(("model", "gzip", "xz"), 3),
    measured_on=measured,
    name="text",
  )
  tasks = run.frame("tasks")
  tasks["right"] *= 100
  report.section("Tasks")
  report.table(
    "Answers that are right",
    tasks.rename(columns={"right": "right [%]", "bits": "bits per answer"}),
    digits={"right [%]": 2, "bits per answer": 4},
    measured_on=f"{measured}; rows of {context} tokens, never trained on",
    name="tasks",
  )
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def _curve(rows: pd.DataFrame) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(7, 3.6), layout="constrained")
  panel = picture.subplots()
  for kind in KINDS:
    if rows[kind].notna().any():
      wide = 1.8 if kind == KINDS[0] else 1.0
      panel.plot(rows["step"], rows[kind], label=kind, linewidth=wide)
  panel.set_xlabel("step")
  panel.set_ylabel("bits per predicted token")
  panel.set_ylim(bottom=0)
  panel.grid(alpha=0.3)
  panel.legend()
  return picture
