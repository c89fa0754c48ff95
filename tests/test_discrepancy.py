"""The noise that is taken out follows what the last prediction left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax.nfc_sampler import (
  Denoise,
  Jacobian,
  Mean,
  Probed,
  Schedule,
  Sigma,
  compose,
  levels_of,
  parts_of,
)
from tests import by_hand

NOISE, LEVELS = 0.1, 4
CONFIG = pj.NFCConfig(
  levels=LEVELS,
  schedule=Schedule(sigma_max=0.8, sigma_min=0.1, renewal=0.0),
  predictor=Denoise(discrepancy=0.5),
  width=Sigma(),
  inner=Mean(1e-7, 50),
)


def _observation():
  """One image that the prior explains, one that it shrinks too far, holes."""
  y = np.stack([np.full((4, 4, 1), 0.02), np.full((4, 4, 1), 0.9)])
  y[:, 0] = 0.0
  mask = np.ones((4, 4))
  mask[0] = 0
  operator = pj.operators.inpainting((4, 4, 1), mask)
  return pj.Observation(jnp.asarray(np.float32(y)), operator, NOISE), mask


def test_a_run_by_hand():
  """Two images, each by a misfit of its own, over observed pixels."""
  observation, mask = _observation()
  y = np.asarray(observation.y)
  nodes = pj.schedule.karras(LEVELS, sigma_max=0.8, sigma_min=0.1, rho=7.0)
  x, levels = by_hand.run(CONFIG, observation, nodes)
  seen = mask[..., None]
  ratio, ratios = np.ones(2), []
  for sigma, tied, state in levels:
    taken = sigma * np.clip(ratio, 0.5, 4.0) ** -0.5
    x0 = x * (0.25 / (0.25 + taken**2))[:, None, None, None]
    misfit = ((y - x0) * seen) ** 2
    ratio = misfit.sum((1, 2, 3)) / (mask.sum() * NOISE**2)
    ratios.append(ratio)
    weight = seen / NOISE**2
    x = (weight * y + x0 / tied**2) / (weight + 1 / tied**2)
    np.testing.assert_allclose(state.misfit[0], ratio, rtol=1e-4)
    np.testing.assert_allclose(state.x[0], x, atol=1e-5)
  # Both sides of 1, and beyond what is believed.
  assert np.min(ratios) < 1 < 4 < np.max(ratios)


def test_the_misfit_is_of_the_noise_as_it_is():
  """Whatever the likelihood assumes, for the first prediction is the same."""
  observation, _ = _observation()
  found = []
  for change in (
    {},
    {"halved_misfit": False},
    {"inner_noise_std": 5 * NOISE},
  ):
    config = CONFIG.replace(**change)
    sampler = compose(parts_of(config), levels_of(config))
    state = sampler.init(jax.random.key(0), observation, 1)
    key = jax.random.key(1)
    state, _ = sampler.step(state, by_hand.denoise, observation, key)
    found.append(state.misfit)
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_array_equal(found[0], found[2])


def test_it_may_be_traced():
  observation, _ = _observation()

  @jax.jit
  def last(q):
    config = CONFIG.replace(predictor={"discrepancy": q})
    sampler = compose(parts_of(config), levels_of(config))
    return pj.run(sampler, by_hand.denoise, observation, jax.random.key(0))[0]

  sampler = compose(parts_of(CONFIG), levels_of(CONFIG))
  want, _ = pj.run(sampler, by_hand.denoise, observation, jax.random.key(0))
  np.testing.assert_allclose(last(0.5), want, atol=1e-6)


def test_without_it_no_misfit_is_kept():
  observation, _ = _observation()
  config = CONFIG.replace(predictor=Denoise())
  sampler = compose(parts_of(config), levels_of(config))
  assert sampler.init(jax.random.key(0), observation, 1).misfit is None


@pytest.mark.parametrize("width", [Probed(), Jacobian()])
def test_a_covariance_is_of_the_noise_that_is_taken_out(width):
  """sigma^2 dD/dx at the image's own sigma, as the prediction is."""
  config = CONFIG.replace(width=width, levels=2)
  parts = parts_of(config, pj.priors.power_law_spectrum(4, 4))
  level = jax.tree.map(lambda a: a[0], levels_of(config))
  heeded = parts.heed(level, jnp.array([[1.0, 4.0]]))
  x = jnp.ones((1, 2, 4, 4, 1))
  found = parts.predict(by_hand.denoise, x, heeded)
  own = np.array([0.8, 0.4])  # 0.8 * 4^(-1/2)
  gain = 0.25 / (0.25 + own**2)
  np.testing.assert_allclose(found.x0[0, :, 0, 0, 0], gain, rtol=1e-5)
  product = found.covariance(x)[0, :, 0, 0, 0]
  np.testing.assert_allclose(product, own**2 * gain, rtol=1e-5)
