"""Puts the tables of equal tuning into docs/benchmarks/restoration.md.

    python -m experiments.equal_tuning.page [RUN ...]

Everything between its two `equal tuning` comments, and the picture of the
plane, is made anew from the committed rows. Given the folders of runs, finished
or cut short, it first takes their cells into `rows.csv` and `trials.csv`, in
the place of those that are there; those of winners that restored again under
another prior, into `second_rows.csv`.
"""

import json
import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.equal_tuning import (
  merged,
  other_prior,
  prior_section,
  tables,
)
from experiments.equal_tuning.plane import plane
from experiments.equal_tuning.sections import block
from experiments.equal_tuning.tables import TABLE, TRIALS
from experiments.harness import prior_files, writing
from experiments.harness.reporting import markdown
from experiments.harness.reporting.report import render

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURE = "notebooks/figures/plane.png"
PAGE = ROOT / "docs/benchmarks/restoration.md"
BEGIN = (
  "<!-- equal tuning: written by `python -m experiments.equal_tuning.page` -->"
)
END = "<!-- end of equal tuning -->"


def made() -> str:
  """The page's block, of the committed files."""
  rows = tables.read()
  parts = [block(rows, pd.read_csv(TRIALS))]
  if other_prior.ROWS.exists():
    second = json.loads(other_prior.ABOUT.read_text())
    first = prior_files.about("", prior_files.load(""))._asdict()
    gain = other_prior.GAIN
    parts.append(
      prior_section.block(
        rows,
        tables.read(other_prior.ROWS),
        {each["prior"]: each for each in (first, second)},
        pd.read_csv(gain) if gain.exists() else pd.DataFrame(),
      )
    )
  return "\n\n".join(parts)


def main(argv: Sequence[str]) -> None:
  """Takes the rows of runs in, then rewrites the page's block."""
  runs = [pathlib.Path(each) for each in argv[1:]]
  for run in runs:
    if not (run / f"{TABLE}.jsonl").is_file():
      raise app.UsageError(f"{run} is no run: no {TABLE}.jsonl in it")
    try:
      merged.take(run)
    except ValueError as error:
      raise app.UsageError(str(error)) from None
  writing.write(ROOT / PICTURE, render(plane(tables.read()), "png"))
  markdown.put(PAGE, made(), begin=BEGIN, end=END)
  print(f"wrote {PAGE}")


if __name__ == "__main__":
  app.run(main)
