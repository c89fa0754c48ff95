"""Puts the tables of Levy processes into docs/benchmarks/calibration.md.

    python -m experiments.levy.page [RUN ...]

Everything between the page's two `levy` comments is made anew from `rows.csv`
beside the code. Given the folders of runs, it first takes their rows into that
file, in the place of those that are there.
"""

import math
import pathlib
from collections.abc import Sequence

import pandas as pd
from absl import app

from experiments.harness import writing
from experiments.harness.reporting import markdown
from experiments.levy.laws import LAWS
from experiments.levy.problems import OPERATORS
from experiments.levy.study import EXACT, KEY, TABLE

ROWS = pathlib.Path(__file__).with_name("rows.csv")
PAGE = pathlib.Path(__file__).parents[2] / "docs/benchmarks/calibration.md"
BEGIN = "<!-- levy: written by `python -m experiments.levy.page` -->"
END = "<!-- end of levy -->"
_ORDER = {"operator": [*OPERATORS], "law": [*LAWS]}
_NAMES = {
  (EXACT, ""): "exact draws",
  ("NFC", "calibrated"): "NFC, `calibrated()`",
  ("NFC", "tuned"): "NFC, `restoration()`",
}


def read(path: pathlib.Path = ROWS) -> pd.DataFrame:
  """Rows of `experiments.levy`; of a word that is missing "", not NaN."""
  words = dict.fromkeys(("setting", "note"), str)
  found = pd.read_csv(path, dtype=words)
  return found.fillna(dict.fromkeys(words, ""))


def take(run: pathlib.Path, path: pathlib.Path = ROWS) -> None:
  """Takes a run's rows into the file, in the place of those of the same key.

  Args:
    run: its folder, with `levy.csv`.
    path: the file, which is written anew.
  """
  own = read(run / f"{TABLE}.csv")
  rows = pd.concat([read(path), own]) if path.exists() else own
  rows = rows.drop_duplicates([*KEY], keep="last")
  rows = rows.sort_values(
    [*_ORDER],
    key=lambda own: own.map(_ORDER[str(own.name)].index),
    kind="stable",
  )
  text = rows.to_csv(index=False, float_format="%.4g")
  writing.write(path, text.encode())


def block(rows: pd.DataFrame) -> str:
  """The tables, one for each operator.

  Args:
    rows: by `read`.
  """
  parts = []
  for operator in OPERATORS:
    own = rows[rows["operator"] == operator]
    if len(own):
      parts += [
        f"**{operator[0].upper()}{operator[1:]}**",
        f'<div class="numbers" markdown>\n\n{_table(own)}\n\n</div>',
      ]
  return "\n\n".join(parts)


def _table(rows: pd.DataFrame) -> str:
  """By method and law, exact draws first, then by the median CRPS."""
  laws = [law for law in LAWS if law in set(rows["law"])]
  by = rows.groupby(["method", "setting"], sort=False)
  median = by["crps"].median().sort_values(na_position="last", kind="stable")
  order = sorted(median.index, key=lambda key: key[0] != EXACT)
  lines = []
  for key in order:
    own = by.get_group(key).set_index("law")
    label = _NAMES.get(key, key[0])
    cells = [_cell(own.loc[law]) for law in laws]
    lines.append([label, _counted(own), *cells])
  return markdown.table(["method", "calls, VJPs", *laws], lines)


def _counted(rows: pd.DataFrame) -> str:
  known = rows[["calls", "products"]].dropna()
  return ", ".join(f"{x:.0f}" for x in known.iloc[0]) if len(known) else ""


def _cell(row: pd.Series) -> str:
  """Gap, central coverage, that of densest regions, CRPS."""
  if row["note"]:
    return "refused" if "must" in row["note"] else "diverged"
  density = [] if math.isnan(row["hpd"]) else [f"{round(row['hpd']):+d}"]
  parts = [f"{row['gap']:.2f}", f"{row['central']:+.1f}", *density]
  return ", ".join([*parts, f"{row['crps']:.2f}"])


def main(argv: Sequence[str]) -> None:
  """Takes the rows of runs in, then rewrites the page's block."""
  for run in map(pathlib.Path, argv[1:]):
    if not (run / f"{TABLE}.csv").is_file():
      raise app.UsageError(f"{run} is no run: no {TABLE}.csv in it")
    take(run)
  markdown.put(PAGE, block(read()), begin=BEGIN, end=END)
  print(f"wrote {PAGE}")


if __name__ == "__main__":
  app.run(main)
