"""What is moved to the measurement lies ahead of the prediction."""

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax as pj
from posterior_jax.nfc_sampler import (
  Fusion,
  Mean,
  Schedule,
  Sigma,
  compose,
  levels_of,
  parts_of,
)
from tests import by_hand

NOISE, LEVELS, MOMENTUM = 0.1, 4, 1.5
CONFIG = pj.NFCConfig(
  levels=LEVELS,
  schedule=Schedule(
    sigma_max=0.8, sigma_min=0.1, renewal=0.0, momentum=MOMENTUM
  ),
  width=Sigma(),
  inner=Mean(1e-7, 50),
)
MASK = np.ones((4, 4, 1))
MASK[0] = 0


def _observation():
  y = np.linspace(-1, 1, 16).reshape(1, 4, 4, 1) * MASK
  operator = pj.operators.inpainting((4, 4, 1), MASK[..., 0])
  return pj.Observation(jnp.asarray(np.float32(y)), operator, NOISE)


def test_a_run_by_hand():
  observation = _observation()
  y = np.asarray(observation.y)
  nodes = pj.schedule.karras(LEVELS, sigma_max=0.8, sigma_min=0.1, rho=7.0)
  x, levels = by_hand.run(CONFIG, observation, nodes)
  last, before, added = None, None, []
  for sigma, tied, state in levels:
    x0 = x * (0.25 / (0.25 + sigma**2))
    ahead = x0
    if last is not None:
      ahead = x0 + MOMENTUM * np.log(last / sigma) * (x0 - before)
    added.append(np.abs(ahead - x0).max())
    weight = MASK / NOISE**2
    x = (weight * y + ahead / tied**2) / (weight + 1 / tied**2)
    last, before = sigma, x0
    np.testing.assert_allclose(state.predicted[0], x0, atol=1e-5)
    np.testing.assert_allclose(state.x[0], x, atol=1e-5)
  assert added[0] == 0 and min(added[1:]) > 0.01


def test_fusion_is_with_what_lies_ahead():
  """Weights of 0 leave it as it is, whatever was measured."""
  config = CONFIG.replace(fusion=Fusion(low=0.0, high=0.0))
  observation = _observation()
  sampler = compose(parts_of(config), levels_of(config))
  state = sampler.init(jax.random.key(0), observation, 1)
  before, added = state.predicted, []
  for pace in np.asarray(levels_of(config).pace):
    state, _ = sampler.step(
      state, by_hand.denoise, observation, jax.random.key(1)
    )
    ahead = state.predicted + pace * (state.predicted - before)
    np.testing.assert_allclose(state.x, ahead, atol=1e-6)
    added.append(float(jnp.abs(ahead - state.predicted).max()))
    before = state.predicted
  assert added[0] == 0 and min(added[1:]) > 0.01


def test_what_is_averaged_is_the_prediction_itself():
  config = CONFIG.replace(schedule={"held": 0.1, "averaged": "predicted"})
  observation = _observation()
  sampler = compose(parts_of(config), levels_of(config))
  state = sampler.init(jax.random.key(0), observation, 1)
  key = jax.random.key(1)
  for _ in range(LEVELS):
    state, _ = sampler.step(state, by_hand.denoise, observation, key)
  np.testing.assert_array_equal(state.x, state.predicted)


def test_no_level_goes_on_from_the_pass_before_it():
  config = CONFIG.replace(schedule={"held": 0.5, "passes": 2})
  pace = np.asarray(levels_of(config).pace)
  assert pace.shape == (2 * LEVELS,)
  # Held levels lie where the one before does; the second pass begins anew.
  falls = np.array([False, True, True, False] * 2)
  np.testing.assert_array_equal(pace > 0, falls)


def test_it_may_be_traced():
  observation = _observation()

  @jax.jit
  def last(momentum):
    config = CONFIG.replace(schedule={"momentum": momentum})
    sampler = compose(parts_of(config), levels_of(config))
    return pj.run(sampler, by_hand.denoise, observation, jax.random.key(0))[0]

  sampler = compose(parts_of(CONFIG), levels_of(CONFIG))
  want, _ = pj.run(sampler, by_hand.denoise, observation, jax.random.key(0))
  np.testing.assert_allclose(last(MOMENTUM), want, atol=1e-6)


def test_without_it_no_prediction_is_kept():
  config = CONFIG.replace(schedule={"momentum": 0.0})
  sampler = compose(parts_of(config), levels_of(config))
  state = sampler.init(jax.random.key(0), _observation(), 1)
  assert state.predicted is None
