"""Equal tuning: the slots of a program, the cells and who does them."""

import concurrent.futures
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from configs import equal_tuning as configs
from experiments.data.degradations import FROZEN
from experiments.equal_tuning import (
  bench,
  cells,
  methods,
  pending,
  study,
  tables,
  winners,
)
from experiments.equal_tuning.programs.slots import (
  SAMPLERS,
  Program,
  Slot,
  measured,
)
from experiments.equal_tuning.settings import Given, Settings
from experiments.harness import command_line, prior_files


@pytest.fixture(scope="module")
def given():
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(32, 32))
  config = configs.get_config("debug")
  settings = command_line.to_settings(Settings, config)
  truth = prior.sample(jax.random.key(0), (2,), channels=3)
  images = np.asarray(jnp.clip(truth, -1, 1))
  return Given(
    settings,
    prior.denoise,
    prior.spectrum,
    None,
    ("a", "b"),
    images,
    images,
    prior_files.About("gaussian"),
  )


def diffpir(point):
  return pj.baselines.diffpir(dataclasses.replace(methods.diffpir(10), **point))


def daps(point):
  return pj.baselines.daps(dataclasses.replace(methods.daps(10), **point))


def perceptual(point, spectrum, levels=10, passes=1):
  schedule = {name: point[name] for name in ("sigma_max", "renewal")}
  schedule["passes"] = passes
  width = {name: point[name] for name in ("factor", "most")}
  config = methods.preset("perceptual")(levels).replace(
    width=width, schedule=schedule
  )
  return pj.nfc(config, spectrum=spectrum)


def passing(point, spectrum):
  """Ten levels in whole passes: of four passes two levels are left."""
  passes = int(point["passes"])
  return perceptual(point, spectrum, levels=10 // passes, passes=passes)


def guided(point, spectrum):
  schedule = {name: v for name, v in point.items() if name != "factor"}
  width = {"factor": point["factor"]}
  config = methods.guided(10).replace(width=width, schedule=schedule)
  return pj.nfc(config, spectrum=spectrum)


NFC = perceptual, passing, guided
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  "name, made, points",
  [
    slow("DiffPIR", diffpir, ((0.5, 0.6), (2.0, 1.0))),
    slow("DAPS", daps, ((0.02, 1e-4), (0.05, 5e-4))),
    (
      "NFC, perceptual()",
      perceptual,
      ((0.5, 0.9, 0.4, 2.0), (2.0, 0.4, 1.0, 1.0)),
    ),
    (
      "NFC, perceptual() in passes",
      passing,
      ((0.5, 0.9, 0.4, 2.0, 2.0), (2.0, 0.4, 1.0, 1.0, 4.0)),
    ),
    slow(
      *("NFC, guided()", guided, ((2.0, 0.5, 1.5, 4.0), (1.0, 2.0, 0.6, 1.0)))
    ),
  ],
  ids=["DiffPIR", "DAPS", "perceptual", "passes", "guided"],
)
def test_a_slot_is_a_run_of_its_own_point(given, name, made, points):
  """Knobs are traced, a share of noise and a likelihood's noise among them."""
  task = cells.tuned_on("super_resolution")
  pictures = measured(task, given.truth, 0.1, 0)
  contender = methods.METHODS[name]
  program = Program(contender, 10, 4, given.denoise, given.spectrum, 7)
  knobs = [knob.name for knob in contender.knobs(10)]
  points = [dict(zip(knobs, point)) for point in points]
  program.compile(points[0], pictures)
  own = jax.random.fold_in(jax.random.key(7), SAMPLERS)
  found = program([Slot(points[0], 0), Slot(points[1], 1)], pictures)
  for number, point in enumerate(points):
    needed = (given.spectrum,) if made in NFC else ()
    expected, _ = pj.run(
      made(point, *needed),
      given.denoise,
      pj.Observation(pictures.y[number : number + 1], pictures.operator, 0.1),
      jax.random.fold_in(own, number),
    )
    # The first level's noise is 157: its rounding is 1e-5.
    np.testing.assert_allclose(found[number], expected[0, 0], atol=5e-4)
  assert np.abs(found[0] - found[1]).max() > 0.1


def test_no_sampler_shares_a_key_with_a_measurement(given):
  pictures = measured(cells.tuned_on("super_resolution"), given.truth, 0.1, 0)
  contender = methods.METHODS["DiffPIR"]
  program = Program(contender, 10, 4, given.denoise, given.spectrum, 0)
  point = {knob.name: knob.start for knob in contender.knobs(10)}
  keys = program._arguments([Slot(point, 0), Slot(point, 1)], pictures)[5]
  key = jax.random.key(0)
  noise = [jax.random.fold_in(key, number) for number in range(len(FROZEN))]
  known = {tuple(jax.random.key_data(key).tolist()) for key in noise}
  assert not known & {tuple(key) for key in jax.random.key_data(keys).tolist()}


def test_cells_are_tuned_alike_and_each_is_done_once(given, tmp_path):
  rows = [*study.work(given, tmp_path, lambda words: None)]
  trials = [row for name, row in rows if name == tables.TRIED]
  table = [row for name, row in rows if name == tables.TABLE]
  for calls, count in ((10, 4), (20, 2)):
    for method in given.settings.methods:
      own = [
        row
        for row in trials
        if (row["method"], row["evaluations"]) == (method, calls)
      ]
      assert len(own) == count
      best = max(own, key=lambda row: row["psnr"])
      tuned = [
        row
        for row in table
        if (row["method"], row["evaluations"], row["chains"])
        == (method, calls, 1)
        and row["tuned for"] == "PSNR"
      ]
      assert len(tuned) == 2
      assert {row["point"] for row in tuned} == {best["point"]}
  assert {row["chains"] for row in table} == {1, 2}
  # A second process finds everything begun.
  assert not [*study.work(given, tmp_path, lambda words: None)]


def test_scores_of_several_draws_are_averaged(given, tmp_path, monkeypatch):
  """Of every picture, each with noise of its own; not of means of chains."""

  class Drawn:
    """Off by 0.1 in the first sample of a picture, by 0.2 in the second."""

    def __init__(self, *_):
      self.takes = lambda _: True

    def compile(self, *_):
      pass

    def __call__(self, slots, pictures):
      off = 0.1 * np.array([[[[1 + slot.chain]]] for slot in slots])
      return off * jnp.ones(pictures.truth.shape[1:])

  monkeypatch.setattr(bench, "Program", Drawn)
  black = given._replace(truth=np.zeros_like(given.truth))
  rows = [
    row
    for name, row in study.work(black, tmp_path, lambda _: None)
    if name == tables.TABLE
  ]
  one, two = -20 * np.log10(0.05), -20 * np.log10(0.1)
  for calls, chains, draws, psnr in (
    (10, 1, 2, (one + two) / 2),
    (20, 1, 1, one),
    (20, 2, 1, -20 * np.log10(0.075)),
  ):
    own = [
      row
      for row in rows
      if (row["evaluations"], row["chains"]) == (calls, chains)
    ]
    assert own and {row["draws"] for row in own} == {draws}
    np.testing.assert_allclose([row["psnr"] for row in own], psnr, rtol=1e-5)


class Bench(bench.Bench):
  """Compiles nothing, leaves winners after a while, yields its starts."""

  def program(self, cell):
    if (cell.budget, cell.method) == (0, "DPIR"):
      raise ValueError("too long")
    time.sleep(0.1 * (cell.budget == 0))  # the later ones are ready first
    return super().program(cell)

  def done(self, cell, program):
    time.sleep(0.1)
    winners.keep(self._folder, cell, [(2.0, 0.1), (3.0, 0.2)], [True, True])
    yield tables.TRIED, {"starts": self._searches.starts(cell)}


def test_a_search_begins_from_the_winners_of_the_budget_before(
  given, tmp_path, monkeypatch
):
  """Of another process too, and not at all where those failed."""
  monkeypatch.setattr(study, "Bench", Bench)
  monkeypatch.setattr(bench, "Program", lambda *_: Compiled())
  rows = [*study.work(given, tmp_path, lambda words: None)]
  starts = [row["starts"] for name, row in rows if name == tables.TRIED]
  assert starts == [
    [(4.35, 0.845, 0.0493)] * 2,
    [(2.0, 0.1), (3.0, 0.2)],
  ]
  failed = [row for name, row in rows if name == tables.FAILED]
  assert [(row["method"], row["evaluations"]) for row in failed] == [
    ("DPIR", 10),
    ("DPIR", 20),
  ]
  assert failed[0]["error"] == "ValueError: too long"
  assert "left no winners" in failed[1]["error"]


def test_a_search_waits_for_another_process(given, tmp_path, monkeypatch):
  monkeypatch.setattr(study, "Bench", Bench)
  monkeypatch.setattr(study, "_QUIET", 0.2)
  monkeypatch.setattr(bench, "Program", lambda *_: Compiled())
  (one, *_) = cells.cells(given.settings)
  assert cells.begun(tmp_path / "0")

  def other():
    time.sleep(1.0)
    winners.keep(tmp_path, one, [(7.0, 0.3)] * 2, [True, True])

  with concurrent.futures.ThreadPoolExecutor() as pool:
    pool.submit(other)
    rows = [*study.work(given, tmp_path, lambda words: None)]
  starts = [row["starts"] for name, row in rows if name == tables.TRIED]
  assert starts == [[(7.0, 0.3)] * 2]


class Compiled:
  def compile(self, point, pictures):
    del point, pictures


def test_a_process_begins_no_more_long_cells_than_it_can_run_soon(
  given, tmp_path
):
  """Short ones as many as there are; one that is too long by itself, alone."""
  changes = {"rounds": (1, 1, 1), "tuned_on": (1, 1, 1), "chains": ()}
  own = dataclasses.replace(
    given.settings, evaluations=(100, 1000, 4000), **changes
  )

  class Free:
    waits = lacks_means_alone = staticmethod(lambda _: False)

  waiting = pending.Pending(own, Free, tmp_path)
  begun = [waiting.take()[1] for _ in range(4)]
  assert [cell.budget for cell in begun] == [0, 0, 1, 1]
  assert waiting.take() is None
  for cell in begun:
    waiting.is_done(cell)
  assert waiting.take()[1].budget == 2
  assert waiting.take() is None and len(waiting) == 1
