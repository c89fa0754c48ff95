"""Puts the tables of equal tuning into docs/benchmarks/restoration.md.

    python -m experiments.equal_tuning.page [RUN ...]

Everything between its two `equal tuning` comments, and the picture of the
plane, is made anew from the committed rows. Given the folders of runs, finished
or cut short, it first takes their cells into `rows.csv` and `trials.csv`, in
the place of those that are there.
"""

import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.equal_tuning import merged, tables
from experiments.equal_tuning.plane import plane
from experiments.equal_tuning.sections import block
from experiments.equal_tuning.tables import TABLE, TRIALS
from experiments.harness import writing
from experiments.harness.reporting import markdown
from experiments.harness.reporting.report import render

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURE = "notebooks/figures/plane.png"
PAGE = ROOT / "docs/benchmarks/restoration.md"
BEGIN = (
  "<!-- equal tuning: written by `python -m experiments.equal_tuning.page` -->"
)
END = "<!-- end of equal tuning -->"


def main(argv: Sequence[str]) -> None:
  """Takes the rows of runs in, then rewrites the page's block."""
  runs = [pathlib.Path(each) for each in argv[1:]]
  for run in runs:
    if not (run / f"{TABLE}.jsonl").is_file():
      raise app.UsageError(f"{run} is no run: no {TABLE}.jsonl in it")
    merged.take(run)
  rows = tables.read()
  writing.write(ROOT / PICTURE, render(plane(rows), "png"))
  made = block(rows, pd.read_csv(TRIALS))
  markdown.put(PAGE, made, begin=BEGIN, end=END)
  print(f"wrote {PAGE}")


if __name__ == "__main__":
  app.run(main)
