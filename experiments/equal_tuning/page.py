"""Puts the tables of equal tuning into docs/benchmarks/restoration.md.

    python -m experiments.equal_tuning.page [RUN ...]

Everything between its two `equal tuning` comments, and the picture of the
plane, is made anew from the committed rows. Given the folders of finished runs,
of one or of several that shared their cells, it first takes their rows into
`rows.csv` and `trials.csv`.
"""

import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.equal_tuning import tables
from experiments.equal_tuning.plane import plane
from experiments.equal_tuning.sections import block
from experiments.equal_tuning.tables import ROWS, TABLE, TRIALS, TRIED
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
    if not (run / f"{TABLE}.csv").is_file():
      raise app.UsageError(f"{run} is no finished run: no {TABLE}.csv in it")
  if runs:
    _take(runs)
    trials = pd.concat(pd.read_csv(run / f"{TRIED}.csv") for run in runs)
    trials.to_csv(TRIALS, index=False, float_format="%.4f")
  rows = tables.read()
  writing.write(ROOT / PICTURE, render(plane(rows), "png"))
  made = block(rows, pd.read_csv(TRIALS))
  markdown.put(PAGE, made, begin=BEGIN, end=END)
  print(f"wrote {PAGE}")


def _take(runs: Sequence[pathlib.Path]) -> None:
  """The rows of runs into the committed file."""
  # "01" is a name.
  text = {"picture": str}
  rows = pd.concat(
    pd.read_csv(
      run / f"{TABLE}.csv",
      dtype=text,
      keep_default_na=False,
      # A run that diverged has no score; a task without kernels has "".
      na_values={name: ["", "nan"] for name in ("psnr", "lpips")},
    )
    for run in runs
  )
  tables.packed(rows).to_csv(ROWS, index=False)


if __name__ == "__main__":
  app.run(main)
