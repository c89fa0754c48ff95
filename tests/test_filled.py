"""Noise that is filled in: every direction has the next level's in all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax.baselines import ddnm_sampler, diffusion
from posterior_jax.nfc_sampler import (
  Mean,
  Schedule,
  Sigma,
  levels_of,
  parts_of,
)

NOISE, SIGMA, NEXT, RENEWAL = 0.3, 0.8, 0.5, 0.6
SIZE = (6, 6, 1)


def _blur():
  return pj.operators.gaussian_blur(SIZE, size=3, std=0.8, boundary="circular")


def _mask():
  keep = np.ones(SIZE[:2])
  keep[0] = 0
  return pj.operators.inpainting(SIZE, keep)


def _config(factor=1.0, renewal=RENEWAL, most=None):
  return pj.NFCConfig(
    levels=3,
    schedule=Schedule(noise="filled", renewal=renewal),
    width=Sigma(factor, most),
    inner=Mean(tolerance=1e-7),
  )


def _level(config, following=NEXT):
  first = jax.tree.map(lambda entry: entry[0], levels_of(config))
  # After the last level there is no noise, and the width is its own.
  tied = following or SIGMA
  values = dict(sigma=SIGMA, following=following, tied=tied)
  return first._replace(**jax.tree.map(jnp.float32, values))


def _moved(config, observation, x, x0, level):
  """The state that a level makes of x and of its prediction."""
  parts = parts_of(config)
  given, image = parts.fill(jax.random.key(2), observation, x, x0, x0, level)
  width = parts.width([], observation, None, level)
  return parts.likelihood(jax.random.key(3), given, image, width, level).z


@pytest.mark.parametrize("operator", [_blur(), _mask()], ids=["blur", "mask"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_measurement_brings_in_a_part_of_the_noise(operator, factor):
  """About images that are predicted without error the state is white."""
  count = 3000
  keys = jax.random.split(jax.random.key(0), 3)
  truth = jax.random.normal(keys[0], (count, *SIZE))
  y = operator.forward(truth)
  y += NOISE * operator.observed * jax.random.normal(keys[1], y.shape)
  x = truth + SIGMA * jax.random.normal(keys[2], truth.shape)
  config = _config(factor)
  found = _moved(
    config,
    pj.Observation(y, operator, NOISE),
    x[None],
    truth[None],
    _level(config),
  )
  error = np.asarray(found[0] - truth, np.float64).reshape(count, -1)
  covariance = error.T @ error / count / NEXT**2
  # Standard errors: sqrt(2 / n) on the diagonal, sqrt(1 / n) beside it.
  np.testing.assert_allclose(
    covariance, np.eye(36), atol=5 * (2 / count) ** 0.5
  )


@pytest.mark.parametrize("most", [None, 0.4, 5.0])
def test_what_is_kept_has_none_of_the_measurement(most):
  """Where a largest width says what that shows; else the two add up."""
  count = 3000
  keys = jax.random.split(jax.random.key(0), 2)
  truth = jax.random.normal(keys[0], (count, *SIZE))
  noise = jax.random.normal(keys[1], truth.shape)
  observation = pj.Observation(
    _mask().observed * (truth + NOISE * noise), _mask(), NOISE
  )
  config = _config(renewal=0.1, most=most)
  x = (truth + SIGMA * noise)[None]
  found = _moved(config, observation, x, truth[None], _level(config))
  error = np.asarray(found[0] - truth, np.float64).reshape(count, -1)
  variance = error.var(axis=0).reshape(SIZE) / NEXT**2
  chance = 5 * (2 / count) ** 0.5
  np.testing.assert_allclose(variance[0], 1, atol=chance)  # dropped pixels
  # Elsewhere p of what is kept is y's noise, which w of y brings in again.
  width = min(NEXT, most or NEXT) ** 2
  w = 1 / (1 + NOISE**2 / width)
  p = 1 / (1 + (most / NOISE) ** 2) if most else 1.0
  twice = 2 * w * (1 - w) * NOISE / NEXT * p * (1 - 0.1**2) ** 0.5
  np.testing.assert_allclose(variance[1:].mean(), 1 + twice, atol=0.02)
  assert twice < 0.01 if most == 5.0 else twice > 0.05


@pytest.mark.parametrize("most", [None, 0.7])
def test_another_pass_begins_anew(most):
  """Of the noise of the pass before nothing is kept."""
  keys = jax.random.split(jax.random.key(0), 2)
  x0 = jax.random.normal(keys[0], (1, 2, *SIZE))
  observation = pj.Observation(_blur().forward(x0[0]), _blur(), NOISE)
  config = _config(renewal=0.1, most=most)
  level = _level(config)._replace(anew=jnp.float32(1))
  found = [
    _moved(config, observation, x0 + noise, x0, level)
    for noise in (0.0, jax.random.normal(keys[1], x0.shape))
  ]
  np.testing.assert_array_equal(*found)


def test_a_level_is_a_step_of_ddnm():
  """Where the operator has no decomposition and every singular value counts."""
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (3, 2, *SIZE))
  observation = pj.Observation(
    jax.random.normal(keys[1], (2, *SIZE)), _blur(), NOISE
  )
  config = _config()
  found = _moved(config, observation, x, 0.5 * x, _level(config))
  expected, _ = ddnm_sampler.correction(
    jax.random.key(2),
    ddnm_sampler.DDNMConfig(eta=RENEWAL, threshold=0.0, tolerance=1e-7),
    observation,
    x,
    0.5 * x,
    diffusion.Level(*map(jnp.float32, (0, SIGMA, NEXT))),
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_last_level_has_none():
  """Its image is the prediction, moved to what was measured."""
  x = jax.random.normal(jax.random.key(0), (1, 1, *SIZE))
  y = np.linspace(-1, 1, 36).reshape(1, *SIZE)
  observation = pj.Observation(jnp.asarray(y, jnp.float32), _mask(), NOISE)
  config = _config()
  found = _moved(config, observation, x, 0.5 * x, _level(config, 0.0))
  weight = _mask().observed / NOISE**2
  expected = (weight * y + 0.5 * x / SIGMA**2) / (weight + 1 / SIGMA**2)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_starts_under_all_of_the_noise():
  """Whatever share of it is drawn anew between levels."""
  count = 3000
  y = jnp.linspace(-1, 1, 36).reshape(1, *SIZE)
  config = _config(renewal=0.1).replace(schedule={"start": "measurement"})
  parts = parts_of(config, pj.priors.power_law_spectrum(*SIZE[:2]))
  x = parts.start(
    jax.random.key(0),
    pj.Observation(y, _mask(), NOISE),
    (count, 1, *SIZE),
    _level(config),
  )
  # Of the whole, the noise of y, which stays as it is here, is missing.
  w = 1 / (1 + NOISE**2 / SIGMA**2)
  seen = SIGMA**2 - w**2 * NOISE**2
  expected = np.where(_mask().observed, seen, SIGMA**2)
  expected = np.broadcast_to(expected, SIZE)
  np.testing.assert_allclose(
    jnp.var(x[:, 0], axis=0), expected, rtol=5 * (2 / count) ** 0.5
  )


def test_a_traced_factor_that_brings_in_more_noise_is_finite():
  """It cannot be refused; a factor that is known is."""
  x = jnp.zeros((1, 1, *SIZE))
  observation = pj.Observation(x[0], _blur(), NOISE)

  @jax.jit
  def moved(factor):
    config = _config(factor)
    return _moved(config, observation, x, x, _level(_config()))

  assert np.isfinite(moved(3.0)).all()
  np.testing.assert_allclose(
    moved(2.0),
    _moved(_config(2.0), observation, x, x, _level(_config())),
    atol=1e-5,
  )


def test_a_level_is_float32_under_x64():
  config = _config(most=0.4)
  with jax.enable_x64(True):
    x = jnp.zeros((1, 1, *SIZE), jnp.float32)
    observation = pj.Observation(x[0], _blur(), np.float64(NOISE))
    found = _moved(config, observation, x, x, _level(config))
  assert found.dtype == jnp.float32
