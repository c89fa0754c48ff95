"""Puts a quickstart's picture and table into README.

    python -m experiments.readme RUN

RUN is the folder of a finished quickstart. Everything between the two
`quickstart` comments of README.md is replaced; the picture goes to
`notebooks/figures/restoration.jpg`.
"""

import json
import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.harness import writing
from experiments.harness.reporting import markdown, tables
from experiments.inverse_accuracy.accuracy_tables import MILD, worst

ROOT = pathlib.Path(__file__).resolve().parents[1]
PICTURE = "notebooks/figures/restoration.jpg"
BEGIN = (
  "<!-- quickstart: written by `python -m experiments.readme runs/quickstart` "
  "-->"
)
END = "<!-- end of quickstart -->"
METHODS = (
  "banded N3 S8 (paper, C=64)",
  "banded N3 S16",
  "doubling",
  "newton",
  "ladder",
  "ladder + refine",
)


def block(run: pathlib.Path) -> str:
  """The Markdown between the comments, from a quickstart's tables."""
  lines = (run / "families.jsonl").read_text(encoding="utf-8").splitlines()
  rows = tables.frame(map(json.loads, lines))
  config = json.loads((run / "environment.json").read_text())["config"]
  draws = config["inverse"]["draws"]
  caption = (run / "panel.txt").read_text().strip()
  return "\n".join(
    [
      "**Worst relative error of the chunk inverse** over 8 families of keys "
      f"and 3 decays ({draws} chunks of 64 tokens each, beta in [0.6, 1]; "
      "truth in float64). Independent random keys make every row look good; "
      "low-rank, repeated and periodic keys do not.",
      "",
      _table(worst(rows[rows.beta == MILD]).loc[list(METHODS)]),
      "",
      f"![{caption}]({PICTURE})",
      "",
      caption,
    ]
  )


def _table(frame: pd.DataFrame) -> str:
  found = tables.columns(frame)
  rows = [list(map(tables.words, row)) for row in zip(*found.values())]
  return markdown.table(list(found), rows)


def main(argv: Sequence[str]) -> None:
  """Rewrites README's block and copies the picture."""
  if len(argv) != 2:
    raise app.UsageError("give the folder of a finished quickstart")
  run = pathlib.Path(argv[1])
  for name in ("families.jsonl", "environment.json", "panel.txt", "panel.jpg"):
    if not (run / name).is_file():
      raise app.UsageError(f"{run} is no finished quickstart: no {name} in it")
  readme = ROOT / "README.md"
  (ROOT / PICTURE).parent.mkdir(exist_ok=True)
  writing.write(ROOT / PICTURE, (run / "panel.jpg").read_bytes())
  markdown.put(readme, block(run), begin=BEGIN, end=END)
  print(f"wrote {readme} and {ROOT / PICTURE}")


if __name__ == "__main__":
  app.run(main)
