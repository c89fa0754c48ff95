"""The report of a trained byte model: its curve, held-out text, the tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness import record
from experiments.harness import report as reports
from experiments.harness.report import Cell
from experiments.train_lm.batches import KINDS
from experiments.train_lm.evaluation import TaskScore, TextScore


def write(
  run: record.Run,
  text: Sequence[TextScore],
  tasks: Sequence[TaskScore],
  *,
  words: str,
  context: int,
) -> None:
  """Writes `report.html` and says where.

  Args:
    run: with the table "training".
    text: scores of held-out modules, all of them last.
    tasks: scores of the tasks.
    words: a sentence about the model and its training.
    context: tokens of a window.
  """
  found = run.environment
  measured = f"{found['devices'][0]}, jax {found['versions']['jax']}"
  report = reports.Report(
    "A language model of bytes", f"{words} Command: `{found['command']}`."
  )
  report.section("Training")
  report.figure(
    _curve(run.rows("training")),
    "Bits of a predicted token during training: of bytes of the training text, "
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
    ["module", "bytes", "model", "gzip", "xz"],
    [
      [row.module, row.bytes, *(Cell(value, 3) for value in row[2:])]
      for row in text
    ],
    measured_on=measured,
    name="text",
  )
  report.section("Tasks")
  report.table(
    "Answers that are right",
    ["task", "answers", "right [%]", "bits an answer"],
    [
      [row.task, row.answers, Cell(100 * row.right, 2), Cell(row.bits, 4)]
      for row in tasks
    ],
    measured_on=f"{measured}; rows of {context} tokens, never trained on",
    name="tasks",
  )
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


def _curve(rows: Sequence[dict[str, Any]]) -> Any:
  from matplotlib.figure import Figure

  picture = Figure(figsize=(7, 3.6), layout="constrained")
  panel = picture.subplots()
  steps = [row["step"] for row in rows]
  for kind in KINDS:
    bits = np.array([float(row[kind]) for row in rows])
    if np.isfinite(bits).any():
      wide = 1.8 if kind == KINDS[0] else 1.0
      panel.plot(steps, bits, label=kind, linewidth=wide)
  panel.set_xlabel("step")
  panel.set_ylabel("bits a predicted token")
  panel.set_ylim(bottom=0)
  panel.grid(alpha=0.3)
  panel.legend()
  return picture
