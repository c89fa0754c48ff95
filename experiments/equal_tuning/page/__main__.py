"""Puts the tables of equal tuning into docs/benchmarks/tuned_alike.md.

    python -m experiments.equal_tuning.page [RUN ...]

Everything between its two `equal tuning` comments, and the picture of the
plane, is made anew from the committed rows, and so are the points that ship
with the package (`NFCConfig.tuned`). Given the folders of runs, finished
or cut short, it first takes their cells into `rows.csv` and `trials.csv`, in
the place of those that are there; those of further motion kernels, into
`kernel_rows.csv`, and of winners that restored again under another prior, into
`second_rows.csv`.
"""

import pathlib
from collections.abc import Sequence

from absl import app

from experiments.equal_tuning import merged, tables
from experiments.equal_tuning.page import shipped, written
from experiments.equal_tuning.page.plane import plane
from experiments.equal_tuning.tables import TABLE
from experiments.harness import writing
from experiments.harness.reporting import markdown
from experiments.harness.reporting.report import render
from posterior_jax.nfc_sampler import tuned


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
  rows, trials = tables.read(), tables.read_trials()
  picture = render(plane(rows), "png")
  writing.write(written.ROOT / written.PICTURE, picture)
  writing.write(tuned.ASSET, shipped.made(rows, trials).encode())
  text = written.made(rows, trials)
  markdown.put(written.PAGE, text, begin=written.BEGIN, end=written.END)
  print(f"wrote {written.PAGE}")


if __name__ == "__main__":
  app.run(main)
