"""Puts the cells of a run into the committed rows and points."""

import pathlib

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.cells import kinds
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.tables import (
  ROWS,
  SCORES,
  SEARCH,
  TABLE,
  TRIALS,
  TRIED,
)
from experiments.harness.rows import Table
from posterior_jax.baselines import TASKS

_NUMBERS = ["psnr", "lpips"]


def take(
  run: pathlib.Path,
  *,
  rows: pathlib.Path = ROWS,
  trials: pathlib.Path = TRIALS,
) -> None:
  """Takes what a run has done of its cells, in the place of what is there.

  Args:
    run: its folder; it may have been killed: a cell that it was writing is left
      out.
    rows: the file of rows, which is written anew.
    trials: that of points.
  """
  found = _table(run, TABLE)
  if not len(found):
    return
  found = _whole(found)
  parts = [*SEARCH, "chains"]
  tuned = found.loc[found["chains"] == 1, SEARCH].drop_duplicates()
  own = _table(run, TRIED).merge(tuned, on=SEARCH)
  kept = _without(tables.read(rows), found[parts])
  whole = tables.packed(ordered(pd.concat([kept, found])))
  whole.to_csv(rows, index=False)
  log = pd.concat([_without(pd.read_csv(trials), own[SEARCH]), own])
  ordered(log).to_csv(trials, index=False, float_format="%.4f")


def ordered(table: pd.DataFrame) -> pd.DataFrame:
  """Cell by cell, whatever run had them; rows of a cell as they are."""
  known: dict[str, list[str]] = {"method": [*METHODS], "task": [*TASKS]}

  def place(column: pd.Series) -> pd.Series:
    names = known.get(str(column.name))
    return column if names is None else column.map(names.index)

  return table.sort_values(SEARCH, key=place, kind="stable")


def _table(run: pathlib.Path, name: str) -> pd.DataFrame:
  found = pd.DataFrame(Table(run / name).rows())
  # Strict JSON has no numbers for what diverged.
  return found.astype(dict.fromkeys(_NUMBERS, float)) if len(found) else found


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
  """Cells and means that have all of their runs."""
  pictures = rows["picture"].nunique()
  parts = [*SEARCH, "chains"]

  def needed(row: pd.Series) -> int:
    criteria = len(SCORES) if row["chains"] == 1 else 1
    return len(kinds(row["task"])) * criteria * pictures

  sizes = rows.groupby(parts).size().rename("size").reset_index()
  sizes = sizes[sizes["size"] == sizes.apply(needed, axis=1)]
  return rows.merge(sizes[parts], on=parts)


def _without(rows: pd.DataFrame, gone: pd.DataFrame) -> pd.DataFrame:
  """Rows less those whose entries in the columns of others are among these."""
  names = list(gone)
  keys = set(map(tuple, gone.to_numpy(object)))
  known = [tuple(key) in keys for key in rows[names].to_numpy(object)]
  return rows[[not each for each in known]]
