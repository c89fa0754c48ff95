"""`fast()` on a single photograph: its discrepancy does not lose it.

The noise that a level takes out follows what the last prediction lost of the
measurement. Under a short kernel too strong a rule leaves noise in, on some
pictures and not on others: means over pictures hide a fall of several dB.
"""

import jax
import jax.numpy as jnp
import pytest

import posterior_jax as pj
from experiments.data import photographs
from experiments.few_calls.variants import ANY_WAY_UP
from posterior_jax.nfc_sampler import Denoise, compose, levels_of, parts_of
from tests import oracles

SIZE, NOISE, CALLS = 48, 0.05, 5
FAST = pj.NFCConfig.fast(levels=CALLS, predictor=ANY_WAY_UP)


@oracles.quick_jit
def _restored(discrepancy, denoise, observation):
  config = FAST.replace(predictor={"discrepancy": discrepancy})
  spectrum = pj.priors.power_law_spectrum(SIZE, SIZE)
  sampler = compose(parts_of(config, spectrum), levels_of(config))
  return pj.run(sampler, denoise, observation, jax.random.key(0))[0][0]


@pytest.mark.parametrize("kernel", ["short", "p20"])
def test_no_picture_of_a_short_blur_is_lost(kernel):
  """Beside the same run without, which takes out sigma at every level."""
  file = photographs.path("astronaut")  # which the prior has not learned
  truth = jnp.asarray(photographs.crops(file, SIZE, 1))
  operator = pj.operators.motion_blur(truth.shape[1:], kernel)
  noise = jax.random.normal(jax.random.key(2), truth.shape)
  y = operator.forward(truth) + NOISE * noise
  observation = pj.Observation(y, operator, NOISE)
  prior = pj.priors.photo_prior()

  def scores(discrepancy):
    x = _restored(discrepancy, prior.denoise, observation)
    return float(pj.metrics.psnr(x, truth)[0])

  assert isinstance(FAST.predictor, Denoise)
  without = scores(0.0)
  assert scores(FAST.predictor.discrepancy) > without - 0.5
  # This picture can tell: it is lost to twice as strong a rule.
  assert scores(0.5) < without - 2
