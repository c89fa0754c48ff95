"""Puts the cells of a run into the committed rows and points.

Rows are of one prior in each file: those under the prior that everything was
tuned under in `rows.csv`, and of further kernels of motion blur in
`kernel_rows.csv`; those of winners that restored again under another prior in
`second_rows.csv`.
"""

import json
import pathlib
from typing import Any

import pandas as pd

from experiments.equal_tuning import other_prior, tables
from experiments.equal_tuning.cells import MOTION
from experiments.equal_tuning.methods import METHODS
from experiments.equal_tuning.tables import (
  KERNELS,
  PRIOR,
  ROWS,
  SCORES,
  SEARCH,
  TABLE,
  TRIALS,
  TRIED,
)
from experiments.harness import writing
from experiments.harness.rows import Table
from posterior_jax.baselines import TASKS
from posterior_jax.operators import frozen

_NUMBERS = ["psnr", "lpips"]


def take(
  run: pathlib.Path,
  *,
  rows: pathlib.Path = ROWS,
  kernels: pathlib.Path = KERNELS,
  trials: pathlib.Path = TRIALS,
  second: pathlib.Path = other_prior.ROWS,
  about: pathlib.Path = other_prior.ABOUT,
) -> None:
  """Takes what a run has done of its cells, in the place of what is there.

  Args:
    run: its folder; it may have been killed: a cell that it was writing is left
      out.
    rows: the file of rows, which is written anew.
    kernels: that of rows of further kernels.
    trials: that of points.
    second: that of rows under another prior, of winners that restored again.
    about: that of what is known of it.

  Raises:
    ValueError: a file's rows are of another prior than the run's, or of other
      weights under the same name.
  """
  every, log = _table(run, TABLE), _table(run, TRIED)
  found, more = _parts(every)
  if lost := len(every) - len(found) - len(more):
    print(f"{run}: {lost} rows of cells that lack others are left out")
  again = not len(log)  # nothing was tried: winners restored again
  same = other_prior.names(found) == other_prior.names(tables.read(rows))
  file = second if again and not same else rows
  if len(found):
    _check_weights(run, about if file == second else None)
  # All is checked before anything is written.
  parts = ((more, kernels), (found, file))
  texts = {to: _merged(run, own, to) for own, to in parts if len(own)}
  for to, text in texts.items():
    writing.write(to, text)
  if file == second and len(found):
    (known,) = Table(run / PRIOR).rows()
    writing.write_json(about, known)
  if again or not len(found):
    return
  tuned = found.loc[found["chains"] == 1, SEARCH].drop_duplicates()
  own = log.merge(tuned, on=SEARCH)
  log = pd.concat([_without(tables.read_trials(trials), own[SEARCH]), own])
  points = tables.packed_trials(ordered(log))
  writing.write(trials, points.to_csv(index=False).encode())


def _check_weights(run: pathlib.Path, about: pathlib.Path | None) -> None:
  """ValueError where rows are there of other weights under the same name.

  Args:
    run: its folder.
    about: of the rows that it is to be among; None: of those under FIRST.
  """
  there: dict[str, Any] = {
    "prior": other_prior.FIRST,
    "sha256": other_prior.FIRST_WEIGHTS,
  }
  if about is not None:
    there = json.loads(about.read_text("utf-8")) if about.exists() else {}
  for mine in Table(run / PRIOR).rows():
    # Another name is refused with the rows, where it is wrong.
    alike = mine["prior"] == there.get("prior")
    if alike and mine.get("sha256") != there.get("sha256"):
      raise ValueError(
        f"{mine['prior']} must be of sha256 {there.get('sha256')}, as the rows "
        f"that are there; {run} is of {mine.get('sha256')}: take it where "
        "there are none"
      )


def _merged(
  run: pathlib.Path, found: pd.DataFrame, file: pathlib.Path
) -> bytes:
  """A file, which may not be there yet, with rows of a run."""
  old = tables.read(file) if file.exists() else found.iloc[:0]
  mine, there = other_prior.names(found), other_prior.names(old)
  if there and mine and mine != there:
    raise ValueError(
      f"{file.name} must be of one prior, {there[0]!r}; {run} is of {mine[0]!r}"
    )
  if mine == [other_prior.FIRST]:
    # As the rows that are committed, which name none.
    found = found.drop(columns="prior", errors="ignore")
  kept = _without(old, found[[*SEARCH, "kernel", "chains"]])
  whole = tables.packed(ordered(pd.concat([kept, found])))
  return whole.to_csv(index=False).encode()


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


def _parts(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
  """What is whole: of the kernels of `rows.csv`, and of further ones."""
  if not len(rows):
    return rows, rows
  further = ~rows["kernel"].isin(["", *frozen.PATHS])
  more = rows[further]
  kernels = more["kernel"].nunique()
  return _whole(rows[~further], len(frozen.PATHS)), _whole(more, kernels)


def _whole(rows: pd.DataFrame, kernels: int) -> pd.DataFrame:
  """Cells and means that have all of their runs, of so many kernels."""
  pictures = rows["picture"].nunique()
  parts = [*SEARCH, "chains"]

  sizes = rows.groupby(parts).size().rename("size").reset_index()
  each = sizes["task"].map(lambda task: kernels if task == MOTION else 1)
  sizes = sizes[sizes["size"] == each * len(SCORES) * pictures]
  return rows.merge(sizes[parts], on=parts)


def _without(rows: pd.DataFrame, gone: pd.DataFrame) -> pd.DataFrame:
  """Rows less those whose entries in the columns of others are among these."""
  names = list(gone)
  keys = set(map(tuple, gone.to_numpy(object)))
  known = [tuple(key) in keys for key in rows[names].to_numpy(object)]
  return rows[[not each for each in known]]
