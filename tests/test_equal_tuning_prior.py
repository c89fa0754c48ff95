"""Equal tuning under another prior: what restores again, its rows, its page."""

import dataclasses
import json
import math

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
from experiments.equal_tuning.page import prior_section, written
from experiments.harness import prior_files, record
from posterior_jax.priors import photo
from tests import oracles
from tests.test_equal_tuning_cells import given as given  # a fixture
from tests.test_equal_tuning_tables import rows_of

SECOND = prior_files.About("second 12345678", 1_840_000, 251, 1201, 201, "gpu")
FIRST = SECOND._replace(prior="small", parameters=5_300_000, photographs=69)
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
    | {"kernel": "", "tuned for": criterion, "chains": 1}
    | {"point": points(about["method"], about["evaluations"])[2]}
    | {"interior": True, "seconds": 0.5}
    | {"picture": name, "psnr": 20.0, "lpips": 0.5}
    for about in runs
    for criterion in tables.SCORES
    for name in given.names
  ]
  log, table = known.files(str(tmp_path))
  pd.DataFrame(trials).to_csv(log, index=False)
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
  shipped = SECOND._replace(prior=other_prior.FIRST)
  run = restored(again(given, folder, shipped), tmp_path / "run")
  trials, rows = known.files(str(folder))
  log, old = trials.read_bytes(), tables.read(rows)
  merged.take(run, rows=rows, trials=trials, second=folder / "none.csv")
  assert trials.read_bytes() == log and not (folder / "none.csv").exists()
  new = tables.read(rows)
  assert len(new) == len(old) and (old["psnr"] == 20).all()
  assert (new["psnr"] > 26).all() and set(new["draws"]) == {1, 2}
  # All of it anew next time, whatever is known of it.
  bench = study.Bench(again(given, folder, shipped), tmp_path)
  assert not any(map(bench.is_done, cells.cells(given.settings)))


def test_searches_of_one_prior_are_not_gone_on_with_under_another(folder):
  found = known.Known([str(folder)])
  found.check_prior("small")
  with oracles.refused(ValueError, "unless again is True; it is of 'small'"):
    found.check_prior("gaussian")
  known.Known().check_prior("gaussian")  # of nothing


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
  assert found[3:] == (said["steps"], said["seconds"], said["device"], 1)
  assert 5.2e6 < found.parameters < 5.4e6
  assert prior_files.about("gaussian", None) == (
    "gaussian",
    *[None] * 5,
    1,
  )


def second_of(psnr, about=SECOND):
  return rows_of(psnr).assign(prior=about.prior)


def test_both_standings_are_of_what_both_have():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 30.0, "Z": 20.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Z": 20.0})
  pair = other_prior.shared(first, second)
  for criterion, leads in (("PSNR", (2, -2)), ("LPIPS", (0.02, -0.02))):
    own = [tables.chosen(rows, criterion, 20) for rows in pair]
    found = other_prior.standing(*own, criterion)
    assert list(found.index) == ["motion, short", "box"]
    np.testing.assert_allclose(found["lead"], leads[0])
    np.testing.assert_allclose(found["lead 2"], leads[1])
    assert set(found["NFC is"]) == {tables.AHEAD}  # Y has no second row
    assert set(found["NFC is 2"]) == {tables.BEHIND}


def test_rows_of_another_point_are_not_compared():
  first = rows_of({"NFC, a": 27.0, "X": 25.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0})
  second.loc[second["method"] == "X", "point"] = "a=2"
  own, others = other_prior.shared(first, second)
  assert set(own["method"]) == set(others["method"]) == {"NFC, a"}


def test_ranks_are_compared_by_operator():
  """1, 2, 3 and 2, 1, 3: Spearman's correlation is a half."""
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0, "Z": 1.0})
  box = second["operator"] == "box"
  second.loc[box & (second["method"] == "X"), ["psnr", "lpips"]] = math.nan
  pair = other_prior.shared(first, second)
  for criterion in tables.SCORES:
    own = [tables.chosen(rows, criterion, 20) for rows in pair]
    found = other_prior.correlations(*own, criterion)
    # In the box X diverges under the second one: the worst of three.
    np.testing.assert_allclose(found["correlation"], 0.5)
    assert set(found["methods"]) == {3}
    assert [*found["same best"]] == [False, True]
  two = second[second["method"] != "Y"]
  own = other_prior.shared(first, two)
  assert not len(other_prior.correlations(*own, "PSNR"))


def sectioned(first, second, gain=None):
  about = {each.prior: each._asdict() for each in (FIRST, SECOND)}
  gain = pd.DataFrame() if gain is None else gain
  return prior_section.block(first, second, about, gain)


def test_the_section_says_which_prior_and_what_became_of_the_ranks():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  text = sectioned(first, second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0}))
  assert (
    "`small` (5.3 million parameters, trained on 69 photographs, 1201 steps in "
    "201 s on 1 gpu), are used as they are under a second one, "
    "`second 12345678` (1.8 million parameters, trained on 251 photographs"
  ) in text
  assert "denoises" not in text and "Not run" not in text
  row = "2 / 0 / 0 | 0 / 0 / 2 | 0 of 2 "
  row += "| 0 of 2 | 0.50 | 0.50 (motion, short) |"
  for criterion in tables.SCORES:
    assert f"| {criterion}, 20 | {row}" in text
  assert (
    "| box | first | NFC, a 27.50 | X 25.50 | +2.00 (+2.00, +2.00) "
    "| **ahead** |\n"
    "|  | second | NFC, a 26.50 | X 28.50 | -2.00 (-2.00, -2.00) | behind |"
  ) in text


def test_the_section_has_what_each_method_gains_and_loses():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = second_of({"NFC, a": 26.0, "X": 28.25, "Y": np.nan})
  text = sectioned(first, second)
  assert "| NFC, a | -1.00 / +.010 | -1.00 / +.010 |" in text
  assert "| X | +3.25 / -.032 | +3.25 / -.032 |" in text
  assert "| Y | diverged | diverged |" in text


def test_the_section_has_the_denoising_of_its_own_prior_alone():
  first = rows_of({"NFC, a": 27.0, "X": 25.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0})
  about = {"base": "small", "pictures": 23, "side": 128, "base psnr": 31.59}
  gain = pd.DataFrame(
    [
      about | {"prior": SECOND.prior, "sigma": 25, "psnr": 30.11},
      about | {"prior": "third", "sigma": 50, "psnr": 26.8},
    ]
  )
  text = sectioned(first, second, gain)
  assert (
    "denoises 23 pictures of 128 x 128, at sigma 25 of 255 to 30.11 dB, the "
    "first to 31.59 (`python -m experiments.prior_gain KODAK "
    "second 12345678 --side=128`)."
  ) in text
  assert "sigma 50" not in text
  assert "denoises" not in sectioned(first, second, gain.iloc[1:])


def test_what_was_not_run_is_not_said_to_have_diverged():
  """Neither at another budget, nor of what was tuned for the other score."""
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  first = pd.concat([first, first.assign(evaluations=100)])
  second = first.assign(prior=SECOND.prior)
  few = second["evaluations"] == 20
  x, lpips = second["method"] == "X", second["tuned for"] == "LPIPS"
  box = second["operator"] == "box"
  text = sectioned(first, second[~(few & box & x) & ~(~few & box & x & lpips)])
  assert "diverged" not in text
  at_20, at_100 = text.split("**PSNR / LPIPS, ")[1:]
  assert "| X | +0.00 / +.000 | - |" in at_20
  assert "| X | +0.00 / +.000 | +0.00 / - |" in at_100


def test_winners_that_were_replaced_are_counted():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = first.assign(prior=SECOND.prior)
  assert "replaced since" not in sectioned(first, second)
  newer = first[(first["method"] == "X") & (first["tuned for"] == "PSNR")]
  text = sectioned(pd.concat([first, newer.assign(point="a=2")]), second)
  count = len(newer["task"].unique())
  assert f"{count} of the {2 * 3 * count} have been replaced since" in text


def test_the_section_says_what_was_not_run():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0, "Z": 20.0})
  more = first.assign(evaluations=100)
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0})
  lost = (second["method"] == "Y") & (second["operator"] == "box")
  text = sectioned(pd.concat([first, more]), second[~lost])
  assert "Not run under it: at 20 evaluations Y on box; Z.\n" in text
  assert "100 evaluations" not in text
  text = sectioned(first, second[second["operator"] != "box"])
  assert "at 20 evaluations anything on box; Z.\n" in text


@pytest.fixture(scope="module")
def change():
  """Mean PSNR under the large prior less that under the small one."""
  first = other_prior.with_base(tables.read())
  both = other_prior.shared(first, tables.read(other_prior.ROWS))
  one, two = (
    rows[rows["tuned for"] == "PSNR"]
    .groupby(["method", "evaluations", "operator"])["psnr"]
    .agg(tables.mean)
    for rows in both
  )
  return (two - one).dropna()


@pytest.fixture(scope="module")
def page():
  return " ".join(written.PAGE.read_text().split())


def test_what_is_written_of_the_large_prior_is_in_the_rows(change, page):
  """Sentences beside the tables, which no command writes."""
  method, calls, on = (change.index.get_level_values(i) for i in range(3))
  motion, blur = on.str.startswith("motion"), on.str.endswith("blur")
  wide = on == "super-resolution x4"
  ends = lambda x: f"{x.min():.2f} to {x.max():.2f}"  # noqa: E731
  gaining = ["NFC, perceptual()", "NFC, calibrated()", "NFC, by ODE"]
  gains = change[motion & method.isin([*gaining, "DDNM+", "DiffPIR"])]
  assert f"NFC by ODE gain {ends(gains)} dB on motion blur" in page
  quiet = method.isin(["NFC, fast()", "DPIR"])
  assert "lose on blurs and super-resolution, both 3 dB on" in page
  assert change[quiet & (motion | blur | wide)].max() < 0
  assert {*change[quiet & wide & (calls == 100)].round()} == {-3}
  assert "in the box DPIR 9 to 11, `fast()` 1.8 at 1000" in page
  assert round(change["NFC, fast()", 1000, "box"], 1) == -1.8
  assert {*change[(method == "DPIR") & (on == "box")].round()} == {-9, -10, -11}
  ends = [f(change["NFC, perceptual()"]) for f in (min, max)]
  changes = "changes by {:.2f} to {:.2f} dB".format(*ends)
  limits = written.PAGE.parents[1] / "limits.md"
  for text in (limits.read_text(), photo.photo_prior.__doc__):
    assert changes in " ".join(text.split())
    assert "1 dB on blurs and 3 on super-res" in " ".join(text.split())


def test_what_is_written_of_losses_at_few_evaluations_is_in_the_rows(
  change, page
):
  few = change.xs(20, level="evaluations")
  for name, words, least, most, digits in (
    (
      "NFC, restoration()",
      "`restoration()` loses too (0.1 to 0.6",
      0.1,
      0.6,
      1,
    ),
    ("PiGDM", "PiGDM (0.3 to 0.5)", 0.3, 0.5, 1),
    ("MMPS", "MMPS (0.2 to 0.4)", 0.2, 0.4, 1),
    ("AdamDPS", "AdamDPS (0.1 to 5.6)", 0.1, 5.6, 1),
    ("DPS", "DPS (2 to 8) do", 2, 8, 0),
  ):
    assert words in page
    lost = -few[name].round(digits)
    assert (lost.min(), lost.max()) == (least, most)
  assert "SITCOM on super-resolution and masks (1.5 to 1.6)" in page
  masks = ["super-resolution x4", "random 70 %", "box"]
  assert {*few["SITCOM"][masks].round(1)} == {-1.5, -1.6}


def test_the_page_has_the_section_where_there_are_rows(tmp_path, monkeypatch):
  for name in ("ROWS", "ABOUT", "GAIN", "BASE"):
    path = tmp_path / getattr(other_prior, name).name
    monkeypatch.setattr(other_prior, name, path)
  monkeypatch.setattr(written, "block", lambda *_: "the tables")
  rows, trials = tables.read(), pd.DataFrame()
  assert written.made(rows, trials) == "the tables"
  own = rows[(rows["chains"] == 1) & (rows["evaluations"] == 20)]
  second = own.assign(prior=SECOND.prior, psnr=own["psnr"] - 1)
  tables.packed(second).to_csv(other_prior.ROWS, index=False)
  other_prior.ABOUT.write_text(json.dumps(SECOND._asdict()))
  page = written.made(rows, trials)
  before, text = page.split("## Under another prior")
  assert before == "the tables\n\n"
  row = "| PSNR, 20 | 4 / 2 / 1 | 4 / 2 / 1 | 7 of 7 | 7 of 7 | 1.00 |"
  assert row in text


def test_committed_rows_of_a_second_prior_are_by_the_winners():
  """Every one by the point, and of the picture, of a committed row.

  Or of one whose point a longer search has replaced, of which there are no
  others.
  """
  rows, second = tables.read(), tables.read(other_prior.ROWS)
  _, found = other_prior.shared(other_prior.with_base(rows), second)
  assert len(found) == len(second)
  _, today = other_prior.shared(rows, second)
  assert len(today) + len(tables.read(other_prior.BASE)) == len(second)
  (name,) = other_prior.names(second)
  assert json.loads(other_prior.ABOUT.read_text())["prior"] == name


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
