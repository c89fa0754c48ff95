"""Equal tuning gone on with: known points and rows, runs that were cut."""

import dataclasses
import json

import pandas as pd
import pytest

from experiments.equal_tuning import (
  cells,
  known,
  merged,
  methods,
  runs,
  searches,
  study,
  tables,
)
from experiments.harness import record
from tests import oracles
from tests.test_equal_tuning_cells import given as given  # a fixture


def written(folder, rows):
  """A run's folder with rows as a run leaves them."""
  with record.Run(folder, command=["here"], config={}) as run:
    for name, row in rows:
      run.write(name, row)


def merged_into(folder, rows):
  """A folder with the files of a run's rows."""
  folder.mkdir(exist_ok=True)
  columns = {
    name: list(next(row for n, row in rows if n == name)) for name, _ in rows
  }
  for file, name in zip(known.files(str(folder)), (tables.TRIED, tables.TABLE)):
    empty = pd.DataFrame(columns=[*columns[name], "knobs"])
    empty.to_csv(file, index=False)
  written(folder / "run", rows)
  trials, table = known.files(str(folder))
  merged.take(folder / "run", rows=table, trials=trials)
  return folder


def worked(given, folder):
  return [*study.work(given, folder, lambda words: None)]


def going_on(given, folder, **changes):
  settings = dataclasses.replace(
    given.settings, known=(str(folder),), **changes
  )
  return given._replace(settings=settings, known=known.Known([str(folder)]))


def only(rows, name, **about):
  """Rows of a table, cell by cell: which is done first may differ."""
  found = [
    row
    for each, row in rows
    if each == name and all(row[key] == value for key, value in about.items())
  ]
  return sorted(found, key=lambda row: (row["evaluations"], row["method"]))


@pytest.fixture(scope="module")
def before(given, tmp_path_factory):
  """What a first run left: its rows, and the folder that has taken them."""
  rows = worked(given, tmp_path_factory.mktemp("cells"))
  # LPIPS has no weights here; files have numbers.
  rows = [
    (n, {k: 0.5 if k == "lpips" else v for k, v in row.items()})
    for n, row in rows
  ]
  return rows, merged_into(tmp_path_factory.mktemp("known"), rows)


def test_what_is_known_to_the_end_is_not_done_again(
  given, before, tmp_path, monkeypatch
):
  rows, folder = before

  def compiled(*_):
    raise AssertionError("nothing is to be compiled")

  monkeypatch.setattr("experiments.equal_tuning.bench.Program", compiled)
  found = worked(going_on(given, folder), tmp_path)
  for name in (tables.TRIED, tables.TABLE):
    assert len(only(found, name)) == len(only(rows, name)) > 0
  for row, again in zip(only(rows, tables.TABLE), only(found, tables.TABLE)):
    assert again["psnr"] == pytest.approx(row["psnr"], abs=1e-3)
    assert again["point"] == row["point"]


@pytest.mark.slow
def test_a_search_goes_on_where_it_ended(given, before, tmp_path):
  """As one of all its rounds does, but for digits that the file lacks."""
  _, folder = before
  more = going_on(given, folder, rounds=(4, 1))
  found = worked(more, tmp_path / "more")
  whole = dataclasses.replace(given.settings, rounds=(4, 1))
  expected = worked(given._replace(settings=whole), tmp_path / "whole")
  written(tmp_path / "run", found)  # known rows beside new ones
  about = {"method": "DPIR", "evaluations": 10}
  log, other = (only(f, tables.TRIED, **about) for f in (found, expected))
  assert len(log) == len(other) == 8
  assert [row["point"] for row in log[:4]] == [
    row["point"] for row in only(before[0], tables.TRIED, **about)
  ]
  # A round that was closing before is none of the last ones now, so that the
  # points of the second round differ; the first are the same.
  assert [row["point"] for row in log[:2]] == [
    row["point"] for row in other[:2]
  ]
  assert len({row["point"] for row in log}) == 8


def test_a_round_that_was_not_full_is_not_begun_again(given, before):
  _, folder = before
  cell = cells.Cell(0, "super_resolution", "DPIR")
  for rounds, known_whole in ((1, True), (2, True), (3, False)):
    more = going_on(given, folder, rounds=(rounds, 1))
    assert searches.Searches(more, folder).is_known(cell) == known_whole


def test_winners_restore_again_and_nothing_is_tried(given, before, tmp_path):
  rows, folder = before
  again = going_on(given, folder, rounds=(0, 0), again=True, chains=())
  found = worked(again, tmp_path)
  assert only(found, tables.TRIED) == []
  table = only(found, tables.TABLE)
  expected = only(rows, tables.TABLE, chains=1)
  assert len(table) == len(expected)
  for row, other in zip(table, expected):
    assert row["point"] == other["point"]
    assert row["psnr"] == pytest.approx(other["psnr"], abs=0.02)


def test_winners_restore_again_where_smaller_budgets_are_unknown(
  given, before, tmp_path
):
  """They begin from nobody's winners, which would never come."""
  _, folder = before
  for file in known.files(str(folder)):
    table = pd.read_csv(file)
    table[table["evaluations"] > 10].to_csv(tmp_path / file.name, index=False)
  again = going_on(given, tmp_path, rounds=(0, 0), again=True, chains=())
  bench = study.Bench(again, tmp_path)
  for cell in cells.cells(again.settings):
    assert not bench.waits(cell)
    assert bench.is_done(cell) == (cell.budget == 0)


def test_known_points_of_other_knobs_are_refused(given, before, tmp_path):
  _, folder = before
  for file in known.files(str(folder)):
    text = file.read_text().replace("weight first", "strength first")
    (tmp_path / file.name).write_text(text)
  with oracles.refused(ValueError, "known has points of strength, first"):
    study.Bench(going_on(given, tmp_path), tmp_path)
  with oracles.refused(ValueError, "known must be folders of trials.csv"):
    known.Known([str(tmp_path / "elsewhere")])


def test_rows_of_another_point_than_the_winner_do_not_stand(given, before):
  """As of a search that has gone on."""
  _, folder = before
  more = going_on(given, folder)
  own = runs.Runs(more, searches.Searches(more, folder))
  cell = cells.Cell(0, "super_resolution", "DPIR")
  (about, _) = own.singles(cell, cells.tuned_on(cell.task))
  tried = searches.Searches(more, folder).tried(cell)
  best = max(tried, key=lambda point: tried[point][0])
  found = {point: len(own.known(cell, about, point)) for point in tried}
  assert found == {point: 2 * (point == best) for point in tried}


def test_a_later_folder_takes_the_place_of_cells_of_one_before(
  before, tmp_path
):
  _, folder = before
  for file in known.files(str(folder)):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  trials, _ = known.files(str(tmp_path))
  log = tables.read_trials(trials)
  one = (log["method"] == "DPIR") & (log["evaluations"] == 10)
  tables.packed_trials(log[one].iloc[:1]).to_csv(trials, index=False)
  found = known.Known([str(folder), str(tmp_path)])
  knobs = methods.METHODS["DPIR"].knobs(10)
  about = {"method": "DPIR", "task": "super_resolution"}
  sizes = [
    len(found.tried(about | {"evaluations": calls}, knobs))
    for calls in (10, 20)
  ]
  assert sizes == [1, 2]


def test_a_cell_that_was_being_written_is_left_out(before, tmp_path):
  """The others take the place of what is there, each once."""
  rows, folder = before
  for file in known.files(str(folder)):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  trials, table = known.files(str(tmp_path))
  count = len(tables.read(table)), len(tables.read_trials(trials))
  tuned = [
    (name, row | {"psnr": row["psnr"] + 1})
    for name, row in rows
    if name != tables.FAILED and row["method"] == "DPIR"
  ]
  written(tmp_path / "run", tuned[:-1])
  with (tmp_path / "run" / f"{tables.TABLE}.jsonl").open("a") as file:
    file.write(json.dumps(tuned[-1][1])[:20])
  merged.take(tmp_path / "run", rows=table, trials=trials)
  assert (len(tables.read(table)), len(tables.read_trials(trials))) == count
  found = tables.read(table).set_index(["method", "evaluations", "chains"])
  old = tables.read(folder / table.name).set_index(found.index.names)
  gain = (found["psnr"] - old["psnr"].loc[found.index]).groupby(level=[0, 1, 2])
  moved = gain.mean().round(2)
  last = tuned[-1][1]
  cut = (last["method"], last["evaluations"], last["chains"])
  assert moved[cut] == 0
  assert (moved.drop(cut).xs("DPIR") == 1).all()
  assert (moved.drop("DPIR") == 0).all()
