"""The table of samplers that studies compare: settings, budgets, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from experiments import samplers
from tests.oracles import refused

SHAPE = (8, 8, 1)
BUDGET = 20
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


@pytest.mark.parametrize("method,setting", PAIRS)
def test_a_run_spends_its_budget(problem, method, setting):
  """By the denoiser calls that the run itself counts."""
  prior, observation = problem
  config = samplers.config(
    method, setting, task="box_inpainting", evaluations=BUDGET
  )
  sampler = samplers.build(method, config, spectrum=prior.spectrum)
  x, info = pj.run(sampler, prior.denoise, observation, jax.random.key(1))
  calls = int(np.sum(np.broadcast_to(info.calls, sampler.num_steps)))
  assert BUDGET / 2 < calls <= BUDGET
  assert bool(jnp.isfinite(x).all())


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
