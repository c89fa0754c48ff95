"""The table of samplers that studies compare: settings, budgets, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

import posterior_jax as pj
from experiments.harness.subjects import samplers
from posterior_jax.nfc_sampler import Jacobian
from tests.oracles import quick_jit, refused

SHAPE = (8, 8, 1)
BUDGET = 60
PAIRS = [
  (m, s) for m, found in samplers.METHODS.items() for s in found.settings
]


@pytest.fixture(scope="module")
def problem():
  spectrum = pj.priors.power_law_spectrum(*SHAPE[:2])
  prior = pj.priors.gaussian_prior(spectrum)
  operator = pj.operators.box_inpainting(SHAPE, size=3)
  truth = prior.sample(jax.random.key(0), (1,), channels=1)
  return prior, pj.Observation(operator.forward(truth), operator, 0.05)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_a_run_spends_its_budget(problem, method):
  """By the denoiser calls that the run itself counts."""
  prior, observation = problem
  config = samplers.config(method, samplers.TUNED, evaluations=BUDGET)
  sampler = samplers.build(method, config, spectrum=prior.spectrum)

  def draw(observation, key):
    return pj.run(sampler, prior.denoise, observation, key)

  with jax.numpy_dtype_promotion("standard"):  # optax promotes
    x, info = quick_jit(draw)(observation, jax.random.key(1))
  calls = int(np.sum(info.calls))
  # Those that stop early, as SITCOM, may spend less.
  assert 0 < calls <= BUDGET
  assert calls > BUDGET / 2 or method == "SITCOM"
  assert np.isfinite(x).all()


@pytest.mark.parametrize("blurred", [True, False])
@pytest.mark.parametrize("method", samplers.METHODS)
def test_float64_mode_leaves_float32(problem, method, blurred):
  """Whatever a sampler makes without a dtype would widen its images."""
  prior, observation = problem
  if blurred:
    operator = pj.operators.gaussian_blur(SHAPE, size=3, std=1.0)
    observation = dataclasses.replace(observation, operator=operator)
  config = samplers.config(method, samplers.TUNED, evaluations=BUDGET)
  sampler = samplers.build(method, config, spectrum=prior.spectrum)
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    made = jax.eval_shape(
      lambda key: pj.run(sampler, prior.denoise, observation, key),
      jax.random.key(1),
    )
  wide = [x for x in jax.tree.leaves(made) if x.dtype == np.float64]
  assert not wide, wide


@pytest.mark.parametrize(
  "evaluations, levels, passes", [(60, 60, 1), (399, 200, 1), (1000, 200, 5)]
)
def test_held_levels_spend_more_calls_on_more_passes(
  evaluations, levels, passes
):
  config = samplers.config("NFC", "tuned", evaluations=evaluations)
  assert (config.levels, config.schedule.passes) == (levels, passes)
  exact = samplers.config("NFC", "calibrated", evaluations=evaluations)
  assert (exact.levels, exact.schedule.passes) == (evaluations, 1)


def test_changes_reach_the_parts():
  """And what follows others follows them, in whatever order it was set."""
  changes = {"width.factor": 3.0, "schedule.sigma_min": 0.07}
  config = samplers.config("NFC", "tuned", evaluations=19, **changes)
  assert config.width == Jacobian(3.0)
  assert (config.schedule.sigma_min, config.schedule.held) == (0.07, 0.6)
  assert config.stop == (1e-2, 20)
  few = samplers.config("NFC", "tuned", **{"inner.max_iterations": 7})
  assert few.stop == (1e-2, 7)
  # Neither goes with the setting without the other.
  kept = {"schedule.held": 0.0, "schedule.averaged": "refined"}
  for changes in (kept, dict(reversed(kept.items()))):
    ramp = samplers.config("NFC", "tuned", **changes)
    assert (ramp.held_levels, ramp.schedule.averaged) == (0, "refined")


@pytest.mark.parametrize(
  "method, changes, sentence",
  [
    ("NFC", {"width.inflation": 2.0}, "inflation is no field of Jacobian, wh"),
    ("NFC", {"tie.factor": 2.0}, "tie is no field of NFCConfig, which has"),
    ("NFC", {"band.blend_start": 0.2}, "band is None here, which has no"),
    ("NFC", {"levels.few": 2}, "levels is 200 here, which has no fields"),
    ("DPS", {"band.power": 2}, "band is no field of DPSConfig, which has"),
    (
      "NFC",
      {"width": Jacobian(), "width.factor": 2.0},
      "width.factor must be left out, since width is given",
    ),
  ],
)
def test_changes_that_nothing_has_are_one_sentence(method, changes, sentence):
  with refused(ValueError, sentence):
    samplers.config(method, "tuned", **changes)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_every_method_has_both_settings(method):
  names = set(samplers.METHODS[method].settings)
  assert {samplers.PUBLISHED, samplers.TUNED} <= names
  for setting in names:
    for task in (None, *pj.baselines.TASKS):
      samplers.config(method, setting, task=task)


def test_refusals():
  with refused(ValueError, "method must be one of NFC.*got 'nfc'"):
    samplers.config("nfc", "tuned")
  with refused(ValueError, "setting of NFC must be one of published, tuned"):
    samplers.config("NFC", "paper")
  with refused(ValueError, "evaluations must be at least 1, got 0"):
    samplers.config("NFC", "tuned", evaluations=0)
