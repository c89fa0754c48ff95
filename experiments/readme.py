"""Puts a quickstart's picture and table into README.

    python -m experiments.readme RUN

RUN is the folder of a finished quickstart. Everything between the two
`quickstart` comments of README.md is replaced; the picture goes to
`notebooks/figures/restoration.jpg`.
"""

import json
import pathlib
import shutil
from collections.abc import Sequence

from absl import app

from experiments.harness import report

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
FORMATS = ("float32", "bfloat16", "float16", "INT16", "INT8")


def block(run: pathlib.Path) -> str:
  """The Markdown between the comments, from a run's tables.

  Args:
    run: folder of a finished quickstart.

  Returns:
    Markdown without the comments.
  """
  rows = [
    json.loads(line) for line in (run / "families.jsonl").open(encoding="utf-8")
  ]
  config = json.loads((run / "environment.json").read_text())["config"]
  draws = config["inverse"]["draws"]
  lines = [
    "**Worst relative error of the chunk inverse** over 8 families of keys and "
    f"3 decays ({draws} chunks of 64 tokens each, beta in [0.6, 1]; truth in "
    "float64). Independent random keys make every row look good; low-rank, "
    "repeated and periodic keys do not.",
    "",
    f"| method | products | {' | '.join(FORMATS)} |",
    f"|---|---|{'---|' * len(FORMATS)}",
  ]
  for method in METHODS:
    chosen = [
      r for r in rows if r["method"] == method and r["beta"] != "0 to 2"
    ]
    errors = [
      report.short(
        max(float(r["worst"]) for r in chosen if r["format"] == form)
      )
      for form in FORMATS
    ]
    products = chosen[0]["products"]
    lines.append(f"| {method} | {products} | {' | '.join(errors)} |")
  caption = (run / "panel.txt").read_text().strip()
  lines += ["", f"![{caption}]({PICTURE})", "", caption]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
  """Rewrites README's block and copies the picture."""
  if len(argv) != 2:
    raise app.UsageError("give the folder of a finished quickstart")
  run = pathlib.Path(argv[1])
  readme = ROOT / "README.md"
  text = readme.read_text()
  before, rest = text.split(BEGIN)
  _, after = rest.split(END)
  readme.write_text(f"{before}{BEGIN}\n\n{block(run)}\n\n{END}{after}")
  (ROOT / PICTURE).parent.mkdir(exist_ok=True)
  shutil.copyfile(run / "panel.jpg", ROOT / PICTURE)
  print(f"wrote {readme} and {ROOT / PICTURE}")


if __name__ == "__main__":
  app.run(main)
