"""Levy processes: the rows that are committed, and the tables made of them."""

import pandas as pd

from experiments.harness.subjects import samplers
from experiments.levy import page
from experiments.levy.laws import LAWS
from experiments.levy.problems import OPERATORS
from experiments.levy.study import EXACT

ROW = {
  "law": "Laplace",
  "operator": "denoising",
  "method": "DPS",
  "setting": "tuned",
  "budget": 20,
  "note": "",
  "calls": 20,
  "products": 20,
  "seconds": 0.5,
  "gap": 0.25,
  "gap_low": 0.1,
  "gap_high": 0.4,
  "hpd": -0.4,
  "central": -1.25,
  "crps": 1.5,
  "spread": 1.0,
}
EMPTY = dict.fromkeys(
  ("calls", "products", "gap", "hpd", "central", "crps"), None
)


def test_the_tables_are_made_of_the_committed_rows():
  text = page.PAGE.read_text().split(page.BEGIN)[1].split(page.END)[0]
  assert text.strip() == page.block(page.read())


def test_every_method_is_in_it_on_every_operator():
  rows = page.read()
  for operator in OPERATORS:
    own = rows[rows["operator"] == operator]
    for law in LAWS:
      there = own.loc[own["law"] == law, "method"]
      assert {*there} == {EXACT, *samplers.METHODS}, (operator, law)


def test_rows_of_a_run_take_the_place_of_those_of_the_same_key(tmp_path):
  file = tmp_path / "rows.csv"
  first = [ROW | {"operator": "imputation"}, ROW, ROW | {"law": "Gaussian"}]
  pd.DataFrame(first).to_csv(tmp_path / "levy.csv", index=False)
  page.take(tmp_path, file)
  second = ROW | {"gap": 9.0}
  pd.DataFrame([second]).to_csv(tmp_path / "levy.csv", index=False)
  page.take(tmp_path, file)
  rows = page.read(file)
  assert [*zip(rows["operator"], rows["law"], rows["gap"])] == [
    ("denoising", "Gaussian", 0.25),
    ("denoising", "Laplace", 9.0),
    ("imputation", "Laplace", 0.25),
  ]


def test_a_cell_says_what_there_is():
  """No density of a law with an atom; why there is no number."""
  exact = ROW | EMPTY | {"method": EXACT, "setting": "", "gap": 0.2}
  rows = [
    ROW,
    ROW | {"method": "FGPS", "note": "failed, operator must be"} | EMPTY,
    ROW | {"method": "DAPS", "note": "samples are not finite"} | EMPTY,
    exact | {"hpd": -2.0, "central": 0.5, "crps": 1.0},
  ]
  rows += [row | {"law": "spike and slab", "hpd": None} for row in rows]
  lines = page.block(pd.DataFrame(rows)).splitlines()
  first = lines.index(
    "| exact draws |  | 0.20, +0.5, -2, 1.00 | 0.20, +0.5, 1.00 |"
  )
  assert lines[first + 1 : first + 4] == [
    "| DPS | 20, 20 | 0.25, -1.2, +0, 1.50 | 0.25, -1.2, 1.50 |",
    "| FGPS |  | refused | refused |",
    "| DAPS |  | diverged | diverged |",
  ]
