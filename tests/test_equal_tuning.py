"""Equal tuning: the search in rounds, the methods, the settings."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import posterior_jax as pj
from configs import equal_tuning as configs
from experiments import prior_sources
from experiments.equal_tuning import (
  methods,
  rounds,
)
from experiments.equal_tuning.rounds import Rounds
from experiments.equal_tuning.settings import TUNED_ON, Settings
from experiments.few_calls import contenders
from experiments.few_calls.search import Knob
from experiments.harness import command_line
from posterior_jax.priors import photo
from tests import oracles

NUMBER = Knob("factor", 1.0)
SHARE = Knob("share", 0.5, factor=None, step=0.2, low=0.0, high=1.0)


def searched(knobs, score, *, rounds, count):
  start = tuple(knob.start for knob in knobs)
  search = Rounds(knobs, [start, start])
  for left in reversed(range(rounds)):
    for point in search.propose(count, closing=left < 2):
      search.add(point, score(point))
  return search


def test_rounds_find_both_winners_inside_of_what_was_tried():
  def score(point):
    near = math.log2(point[0])
    return -((near - 2) ** 2) - (point[1] - 2) ** 2, -((near + 1) ** 2)

  search = searched((NUMBER, SHARE), score, rounds=6, count=6)
  assert len(search.tried) == 36
  first, second = search.best(0), search.best(1)
  assert first == (4.0, 1.0)  # the second knob ends at 1
  assert second[0] == 0.5
  assert search.interior(first) and search.interior(second)
  line = [p[0] for p in search.tried if p[1] == first[1]]
  assert min(line) < first[0] < max(line)


@pytest.mark.parametrize("knobs", [(NUMBER,), (NUMBER, SHARE, NUMBER)])
def test_a_round_has_as_many_points_for_one_knob_as_for_three(knobs):
  search = searched(knobs, lambda p: (sum(p), -sum(p)), rounds=4, count=6)
  assert len(search.tried) == 24


def test_a_side_is_open_until_something_was_tried_beyond():
  search = Rounds((NUMBER, SHARE), [(1.0, 0.5), (1.0, 0.5)])
  search.add((1.0, 0.5), (1.0, 1.0))
  assert not search.interior((1.0, 0.5))
  # On other lines they say nothing of this point.
  search.add((2.0, 0.7), (0.0, 0.0))
  search.add((0.5, 0.3), (0.0, 0.0))
  assert not search.interior((1.0, 0.5))
  for point in ((2.0, 0.5), (0.5, 0.5), (1.0, 0.3), (1.0, 0.7)):
    assert not search.interior((1.0, 0.5))
    search.add(point, (math.nan, 0.0))
  assert search.interior((1.0, 0.5)) and search.best(0) == (1.0, 0.5)


def test_a_step_that_ends_beside_a_bound_ends_at_it():
  """From 0.4, two steps of 0.2 less rounding lead to 1e-16."""
  knob = Knob("decay", 0.6, factor=None, step=0.2, high=0.99)
  search = Rounds((knob,), [(0.6,)])
  for value in (0.6, 0.4):
    search.add((value,), (-value,))
  (point,) = search.propose(1)
  assert point == (0.0,)
  search.add(point, (0.0,))
  assert search.interior(point)


def test_a_count_has_whole_steps():
  """Powers of two alone, and between neighbours nothing."""
  knob = Knob("passes", 2, low=1, high=64, whole=True)
  search = searched((knob,), lambda p: 2 * (-abs(p[0] - 8),), rounds=4, count=3)
  tried = {p[0] for p in search.tried}
  assert {4.0, 8.0, 16.0} < tried < {float(2**k) for k in range(7)}
  assert search.best(0) == (8.0,)
  assert rounds._middle(knob, 4.0, 8.0) is None
  assert rounds._middle(knob, 16.0, 64.0) == 32.0


@pytest.mark.parametrize("evaluations", [10, 20, 1000])
def test_every_search_begins_within_its_bounds(evaluations):
  for method, contender in methods.METHODS.items():
    for knob in contender.knobs(evaluations):
      assert knob.low <= knob.start <= knob.high, (method, knob)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_passes_share_the_evaluations_of_a_budget(passes):
  """What they do not share evenly is left; then nothing more is done."""
  for name, each in (("perceptual()", 1), ("guided()", 2)):
    contender = methods.METHODS[f"NFC, {name} in passes"]
    knobs = contender.knobs(50)
    assert knobs[-1].name == "passes" and knobs[-1].high in (4, 8)
    point = {knob.name: knob.start for knob in knobs} | {"passes": passes}
    operands = contender.operands(50, point)
    levels = 50 // each
    assert operands["count"] == levels // passes * passes
    assert len(operands["levels"].sigma) == levels
    following = np.asarray(operands["levels"].following)
    last = int(operands["count"]) - 1
    assert following[last] == 0 and (following[:last] > 0).all()


def test_every_method_keeps_to_its_evaluations():
  """By levels and what one takes, at every budget."""
  for calls in configs.get_config().evaluations:
    made = {
      "fast": methods.preset("fast")(calls).levels,
      "restoration": 4 * methods.preset("restoration")(calls).levels,
      "calibrated": 2 * methods.preset("calibrated")(calls).levels,
      "Jacobian": 2 * methods.by_jacobian(calls).levels,
      "ODE": methods.by_ode(calls).levels
      * methods.by_ode(calls).predictor.calls,
      "perceptual": methods.preset("perceptual")(calls).levels,
      "guided": 2 * methods.guided(calls).levels,
      "AdamDPS": 2 * methods.adamdps(calls).levels,
      "DAPS": methods.daps(calls).levels * methods.daps(calls).predictor_steps,
      "SITCOM": 2 * methods.sitcom(calls).levels * methods.sitcom(calls).steps,
      "DiffPIR": methods.diffpir(calls).levels,
      "FAST-DIPS": methods.fastdips(calls).levels,
    }
    assert max(made.values()) <= calls
    assert min(v for k, v in made.items() if k != "DiffPIR") > calls - 5


# A run of each takes 1 to 3 s to compile.
QUICK = ("NFC, by Jacobian", "NFC, guided()", "PiGDM")


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in methods.METHODS
    if name != contenders.DPIR  # which is no sampler and counts nothing
  ],
)
def test_a_run_takes_the_evaluations_of_its_budget(name, monkeypatch):
  """Calls and VJPs as the diagnostics of its steps count them."""

  def counted(sampler, denoise, observation, key):
    _, info = pj.run(sampler, denoise, observation, key)
    return np.sum(np.broadcast_to(info.evaluations, sampler.num_steps))

  monkeypatch.setattr(contenders, "scanned", counted)
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(16, 16))
  operator = pj.operators.gaussian_blur(
    (16, 16, 1), size=5, std=1.0, boundary="circular"
  )
  truth = prior.sample(jax.random.key(0), (1,), channels=1)
  y = operator.forward(truth) + 0.05 * jax.random.normal(
    jax.random.key(1), truth.shape
  )
  given = pj.Observation(y, operator, 0.05)
  contender = methods.METHODS[name]
  point = {knob.name: knob.start for knob in contender.knobs(20)}
  found = contender.restore(20)(
    contender.operands(20, point),
    prior.denoise,
    given,
    jax.random.key(2),
    prior.spectrum,
  )
  assert found == 20


def test_numbers_that_do_not_go_together_are_refused():
  settings = command_line.to_settings(Settings, configs.get_config("debug"))
  for changes, words in (
    ({"rounds": (2,)}, "rounds must have a number for each of evaluations"),
    ({"tuned_on": (2,)}, "tuned_on must have a number for each of evaluations"),
    ({"rounds": (0, 0)}, "rounds must be at least 1 without known"),
    ({"again": True}, "again must be False without known"),
    ({"again": True, "known": ("a",)}, "rounds must be 0 with again"),
    ({"chains": (2, 2, 2)}, "chains must have at most a number for each of"),
    ({"draws": (2, 2, 2)}, "draws must have at most a number for each of"),
    ({"draws": (0,)}, "draws must be at least 1"),
    ({"kernels": ("wide",)}, "kernels must be among short, p20, p30"),
    ({"kernels": ()}, "kernels must"),
    ({"kernels": ("p20", "p20")}, "kernels must not repeat"),
    ({"chains": (4, 2)}, "chains times evaluations must differ .* got 40, 40"),
    ({"side": 16}, "side must be"),
  ):
    with oracles.refused(ValueError, words):
      dataclasses.replace(settings, **changes)


def test_the_prior_has_seen_nothing_that_is_tuned_on():
  listed = {
    name: said["sha256"]
    for package in prior_sources.DEBIAN.values()
    for name, said in package["photographs"].items()
  }
  seen = json.loads(photo.SHIPPED["small"].read_text())["photographs"].values()
  assert len(seen) == 69
  for picture in TUNED_ON:
    (name,) = (n for n in listed if n.endswith(f"/activities/{picture}"))
    assert listed[name] not in seen
