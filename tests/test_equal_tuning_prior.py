"""Equal tuning under another prior: what restores again, and its rows."""

import dataclasses
import json

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from experiments.equal_tuning import (
  cells,
  known,
  merged,
  other_prior,
  settings,
  study,
  tables,
)
from experiments.equal_tuning.methods import METHODS
from experiments.harness import prior_files, record, writing
from posterior_jax.priors import photo
from tests import oracles
from tests.test_equal_tuning_cells import given as given  # a fixture

SECOND = prior_files.About("second 12345678", 1_840_000, 251, 1201, 201, "gpu")
CALLS = 10, 20


def points(method, calls):
  """Three, of which the second and the third scored alike and best."""
  knobs = METHODS[method].knobs(calls)
  return [
    known.shown({knob.name: knob.start / n for knob in knobs})
    for n in (1, 2, 4)
  ]


@pytest.fixture
def folder(given, tmp_path):
  """A search that is known: of equal points the third is the one with rows."""
  runs = [
    {"method": method, "evaluations": calls, "task": "super_resolution"}
    for method in given.settings.methods
    for calls in CALLS
  ]
  trials = [
    about | {"point": point, "psnr": psnr, "lpips": 0.5 - psnr / 100}
    for about in runs
    for point, psnr in zip(
      points(about["method"], about["evaluations"]), (25.0, 26.0, 26.0)
    )
  ]
  rows = [
    about
    | {"kernel": "", "tuned for": criterion, "chains": 1, "draws": 1}
    | {"point": points(about["method"], about["evaluations"])[2]}
    | {"interior": True, "seconds": 0.5}
    | {"picture": name, "psnr": 20.0, "lpips": 0.5}
    for about in runs
    for criterion in tables.SCORES
    for name in given.names
  ]
  log, table = known.files(str(tmp_path))
  tables.packed_trials(pd.DataFrame(trials)).to_csv(log, index=False)
  rows = tables.named(pd.DataFrame(rows))
  tables.packed(rows).to_csv(table, index=False)
  return tmp_path


@pytest.fixture
def programs(monkeypatch):
  """In place of compiled ones, those that return the pictures."""
  made = []

  class Program:
    def __init__(self, *_):
      self.calls = []

    def compile(self, *_):
      made.append(self)

    def takes(self, point):
      return True

    def __call__(self, slots, pictures):
      self.calls.append(slots)
      which = np.array([slot.picture for slot in slots])
      return pictures.truth[which] + 0.1

  monkeypatch.setattr("experiments.equal_tuning.bench.Program", Program)
  return made


def again(given, folder, about=SECOND):
  changes = {"known": (str(folder),), "again": True, "chains": ()}
  own = dataclasses.replace(given.settings, rounds=(0, 0), **changes)
  return given._replace(
    settings=own, known=known.Known([str(folder)]), prior=about
  )


def restored(given, workdir, **options):
  """The folder of a whole run."""
  with record.Run(workdir, command=["here"], config={}, **options) as run:
    study.compare(given, run)
  return workdir


def take(run, folder):
  trials, rows = known.files(str(folder))
  merged.take(
    run,
    rows=rows,
    trials=trials,
    second=folder / other_prior.ROWS.name,
    about=folder / other_prior.ABOUT.name,
  )
  return tables.read(folder / other_prior.ROWS.name)


def test_rows_of_a_second_prior_name_it_and_lie_apart(
  given, folder, programs, tmp_path
):
  before = [path.read_bytes() for path in known.files(str(folder))]
  found = take(restored(again(given, folder), tmp_path / "run"), folder)
  assert len(found) == 2 * 2 * 2 * 2  # methods, budgets, criteria, pictures
  assert set(found["prior"]) == {SECOND.prior}
  assert (found["psnr"] > 26).all()  # those known are 20
  assert [path.read_bytes() for path in known.files(str(folder))] == before
  said = json.loads((folder / other_prior.ABOUT.name).read_text())
  assert said == SECOND._asdict()


def test_of_points_that_scored_alike_the_one_with_rows_restores_again(
  given, folder, programs, tmp_path
):
  """And once for both criteria: the pictures are as many as the slots."""
  found = take(restored(again(given, folder), tmp_path / "run"), folder)
  for method in given.settings.methods:
    own = found[(found["method"] == method) & (found["evaluations"] == 10)]
    assert set(own["point"]) == {points(method, 10)[2]}
  # Two samples of each picture at the first budget, one at the second.
  sizes = sorted([len(c) for c in each.calls] for each in programs)
  assert sizes == [[2], [2], [4], [4]]


def test_a_run_that_was_cut_is_gone_on_with(given, folder, programs, tmp_path):
  run = restored(again(given, folder), tmp_path / "run")
  lines = (run / f"{tables.TABLE}.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  (run / f"{tables.TABLE}.jsonl").write_text("\n".join(lines)[:-30])
  assert len(take(run, folder)) == len(lines) - 4
  programs.clear()
  more = restored(again(given, folder), tmp_path / "more")
  assert len(programs) == 1
  assert len(take(more, folder)) == len(lines)
  # All of it is done; under a third prior nothing is.
  bench = study.Bench(again(given, folder), tmp_path)
  third = again(given, folder, SECOND._replace(prior="third"))
  other = study.Bench(third, tmp_path)
  for cell in cells.cells(given.settings):
    assert bench.is_done(cell) and not other.is_done(cell)
  assert last["prior"] == SECOND.prior


def test_a_resumed_run_names_its_prior_once(given, folder, programs, tmp_path):
  run = restored(again(given, folder), tmp_path / "run")
  restored(again(given, folder), run, resume=True)
  assert len((run / f"{tables.PRIOR}.jsonl").read_text().splitlines()) == 1
  assert len(take(run, folder))


def test_rows_of_two_priors_are_not_mixed(given, folder, programs, tmp_path):
  take(restored(again(given, folder), tmp_path / "run"), folder)
  third = SECOND._replace(prior="third")
  other = restored(again(given, folder, third), tmp_path / "third")
  with oracles.refused(ValueError, "second_rows.csv must be of one prior"):
    take(other, folder)
  searched = given._replace(prior=third, known=known.Known([str(folder)]))
  own = dataclasses.replace(
    given.settings, known=(str(folder),), rounds=(1, 1), chains=()
  )
  run = restored(searched._replace(settings=own), tmp_path / "searched")
  assert len(pd.read_csv(run / f"{tables.TRIED}.csv"))
  with oracles.refused(ValueError, "rows.csv must be of one prior, 'small'"):
    take(run, folder)


def test_winners_restored_again_under_the_first_prior_replace_its_rows(
  given, folder, programs, tmp_path
):
  shipped = SECOND._replace(
    prior=other_prior.FIRST, sha256=other_prior.FIRST_WEIGHTS
  )
  run = restored(again(given, folder, shipped), tmp_path / "run")
  trials, rows = known.files(str(folder))
  log, old = trials.read_bytes(), tables.read(rows)
  merged.take(run, rows=rows, trials=trials, second=folder / "none.csv")
  assert trials.read_bytes() == log and not (folder / "none.csv").exists()
  new = tables.read(rows)
  assert len(new) == len(old) and (old["psnr"] == 20).all()
  assert (new["psnr"] > 26).all() and set(new["draws"]) == {1, 2}
  retrained = again(given, folder, shipped._replace(sha256="0123"))
  run = restored(retrained, tmp_path / "retrained")
  with oracles.refused(ValueError, "small must be of sha256 9b6f"):
    merged.take(run, rows=rows, trials=trials, second=folder / "none.csv")
  # All of it anew next time, whatever is known of it.
  bench = study.Bench(again(given, folder, shipped), tmp_path)
  assert not any(map(bench.is_done, cells.cells(given.settings)))


def test_searches_of_one_prior_are_not_gone_on_with_under_another(folder):
  found = known.Known([str(folder)])
  gaussian = prior_files.about("gaussian", None)
  small = SECOND._replace(prior="small", sha256=other_prior.FIRST_WEIGHTS)
  found.check_prior(small)
  with oracles.refused(ValueError, "unless again is True; it is of 'small'"):
    found.check_prior(gaussian)
  with oracles.refused(ValueError, "known must be of the weights that are"):
    found.check_prior(small._replace(sha256="0123"))
  known.Known().check_prior(gaussian)  # of nothing


def test_rows_without_a_prior_are_of_the_small_one_that_ships():
  """Retrained, every search and all rows of it would be to do again."""
  assert prior_files.sha256("") == other_prior.FIRST_WEIGHTS


def test_rows_of_other_weights_under_the_same_name_are_not_taken_for_known(
  given, folder, programs, tmp_path
):
  """As of a shipped prior, which was trained further."""
  take(restored(again(given, folder), tmp_path / "run"), folder)
  further = again(given, folder, SECOND._replace(sha256="0123"))
  bench = study.Bench(again(given, folder), tmp_path)
  other = study.Bench(further, tmp_path)
  for cell in cells.cells(given.settings):
    assert bench.is_done(cell) and not other.is_done(cell)
  run = restored(further, tmp_path / "further")
  with oracles.refused(ValueError, "must be of sha256 None, as the rows"):
    take(run, folder)


def test_a_prior_is_named_by_its_weights(tmp_path):
  assert prior_files.named("") == prior_files.named(str(photo.SHIPPED["small"]))
  text = photo.SHIPPED["small"].read_text()
  (tmp_path / "mine.json").write_text(text)
  assert prior_files.named(str(tmp_path / "mine.json")) == "small"
  (tmp_path / "mine.json").write_text(text + "\n")
  name = prior_files.named(str(tmp_path / "mine.json"))
  assert name.startswith("mine.json ") and len(name) == len("mine.json ") + 8
  folders = tmp_path / "a", tmp_path / "b"
  for number, each in enumerate(folders):
    each.mkdir()
    (each / "config.json").write_text("of both")
    (each / "weights").write_text(f"{number}")
  names = [prior_files.named(str(each)) for each in folders]
  assert names[0][:2] == "a " and names[0][2:] != names[1][2:]


def test_what_the_manifest_says_is_known_of_a_prior():
  found = prior_files.about("", prior_files.load(""))
  assert found.prior == "small" and found.photographs == 69
  said = json.loads(photo.SHIPPED["small"].read_text())
  assert found[3:7] == (said["steps"], said["seconds"], said["device"], 1)
  assert found.earlier is None
  assert found.sha256 == writing.digest(photo.SHIPPED["small"])
  large = prior_files.about("large", prior_files.load("large"))
  assert (large.steps, large.earlier) == (24_806, 34_344)
  assert 5.2e6 < found.parameters < 5.4e6
  assert prior_files.about("gaussian", None) == (
    "gaussian",
    *[None] * 5,
    1,
    None,
    None,
  )


def test_a_prior_of_another_file_than_known_is_refused_before_it_runs(
  given, folder, tmp_path
):
  for name in ("a", "b"):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3))
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
  own = dataclasses.replace(
    given.settings, folder=str(tmp_path), photographs=str(tmp_path)
  )
  assert settings.prepare(own).prior.prior == "gaussian"
  many = dataclasses.replace(own, tuned_on=(2, 3))
  with oracles.refused(ValueError, "tuned_on must be at most 2, the pictures"):
    settings.prepare(many)
  more = dataclasses.replace(own, known=(str(folder),))
  with oracles.refused(ValueError, "known must be of the prior that is tuned"):
    settings.prepare(more)
  ready = settings.prepare(dataclasses.replace(more, again=True, rounds=(0, 0)))
  assert ready.prior.prior == "gaussian"
