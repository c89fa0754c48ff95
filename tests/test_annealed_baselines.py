"""DAPS and SITCOM: fresh noise at every level, against their closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  NFCConfig,
  Observation,
  SamplerState,
  baselines,
  nfc,
  operators,
  priors,
  schedule,
)
from tests import oracles

SIZE = (6, 6)
SHAPE = (*SIZE, 1)
D = SIZE[0] * SIZE[1]
NOISE = 0.2


def flat(x):
  return np.asarray(x, np.float64).reshape(*x.shape[:2], -1)


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SIZE, pixel_std=0.6))


def observe(prior, operator, count=2):
  truth = prior.sample(jax.random.key(0), (count,), channels=1)
  clean = operator.forward(truth)
  y = clean + NOISE * jax.random.normal(jax.random.key(1), clean.shape)
  # Dropped pixels must not be read.
  y = jnp.where(operator.observed == 0, 9.0, y)
  return Observation(y, operator, NOISE)


def gain(prior, sigma):
  c = oracles.fourier_diagonal(np.asarray(prior.spectrum, np.float64))
  return np.linalg.solve(c + sigma**2 * np.eye(D), c)


# --- DAPS --------------------------------------------------------------------


def test_daps_is_nfc_without_band_and_fusion(prior):
  """Key by key, level by level, up to the order of sums."""
  observation = observe(prior, operators.gaussian_blur(SHAPE, size=5, std=1.0))
  settings = {"levels": 3, "predictor_steps": 2, "inner_steps": 5}
  ours = baselines.daps(
    baselines.DAPSConfig.published("motion_blur", **settings)
  )
  theirs = nfc(
    NFCConfig.paper(
      levels=3,
      predictor={"steps": 2},
      inner={"steps": 5},
      band=None,
      fusion=None,
    )
  )
  assert ours.num_steps == theirs.num_steps == 3

  def chain(sampler):
    @oracles.quick_jit
    def step(state, key):
      return sampler.step(state, prior.denoise, observation, key)

    state = sampler.init(jax.random.key(3), observation, 2)
    for key in jax.random.split(jax.random.key(4), 3):
      state, info = step(state, key)
      yield state.x, info.sigma, info.residual

  for found, expected in zip(chain(ours), chain(theirs), strict=True):
    for one, other in zip(found, expected):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def one_level(config, prior, observation, count):
  """Many answers from one state, with the closed form of the ODE's end."""
  sigma = config.sigma_max
  x = sigma * jax.random.normal(jax.random.key(5), (1, 1, *SHAPE))
  state = SamplerState(jnp.tile(x, (count, 1, 1, 1, 1)), jnp.int32(0))
  sampler = baselines.daps(config)
  after, _ = oracles.quick_jit(
    lambda state, observation, key: sampler.step(
      state, prior.denoise, observation, key
    )
  )(state, observation, jax.random.key(6))
  nodes = np.linspace(
    sigma ** (1 / config.rho),
    config.predictor_sigma_min ** (1 / config.rho),
    config.predictor_steps + 1,
  )
  nodes = nodes**config.rho
  centre = flat(x)[0, 0]
  for now, following in itertools.pairwise(nodes):
    slope = (centre - gain(prior, now) @ centre) / now
    centre = centre + (following - now) * slope
  return flat(after.x)[:, 0], centre  # [count, D], [D]


@pytest.mark.parametrize("inner", ["langevin", "exact"])
def test_daps_draws_from_its_level(inner, prior):
  """The law of z given the end of the ODE, at a step that biases Langevin.

  Unadjusted Langevin with step h on precision P settles at the covariance
  (P - h P^2 / 2)^-1: with h P = 0.48 where a pixel is observed a third above
  the exact one. 150 steps are e^-6 from it where h P = 0.04 (not observed).
  """
  operator = operators.random_inpainting(SHAPE, fraction=0.5)
  observation = observe(prior, operator, count=1)
  tau = 0.3
  config = baselines.DAPSConfig(
    levels=1,
    sigma_max=1.0,
    inner=inner,
    inner_steps=150,
    step_size=0.04,
    step_size_decay=1.0,
    noise_std=tau,
  )
  count = 1000
  found, centre = one_level(config, prior, observation, count)
  a = oracles.dense_operator(operator)
  y = np.asarray(observation.y * operator.mask, np.float64).ravel()
  precision = a.T @ a / tau**2 + np.eye(D) / config.sigma_max**2
  mean = np.linalg.solve(
    precision, y @ a / tau**2 + centre / config.sigma_max**2
  )
  biased = precision - 0.04 / 2 * precision @ precision
  covariance = np.linalg.inv(biased if inner == "langevin" else precision)
  std = np.sqrt(np.diag(covariance))
  # Five standard errors of the mean and of the variance over 36 pixels.
  error = (found.mean(0) - mean) / std * count**0.5
  assert np.abs(error).max() < 5, error
  ratio = found.var(0, ddof=1) / std**2
  assert np.abs(ratio - 1).max() < 5 * (2 / count) ** 0.5, ratio
  pooled = np.corrcoef(found.T)[np.triu_indices(D, 1)]
  assert np.abs(pooled).max() < 5 / count**0.5


def test_daps_refuses_an_empty_ramp():
  with oracles.refused(ValueError, r"sigma_min must lie in \(0, sigma_max\)"):
    baselines.DAPSConfig(sigma_min=3.0, sigma_max=2.0)


# --- SITCOM ------------------------------------------------------------------


AT, LEVELS = 13, 20  # sigma 1.4, the root of 1 + sigma^2 not far from it
SIGMA, FOLLOWING = schedule.ddpm(LEVELS)[AT : AT + 2]
UNIT = (1 + SIGMA**2) ** 0.5


def optimise(config, prior, observation, x):
  """The clean image found from x [2, 2, H, W, 1], flattened, and the Info."""
  sampler = baselines.sitcom(config)
  key = jax.random.key(7)
  after, info = oracles.quick_jit(
    lambda state, observation, key: sampler.step(
      state, prior.denoise, observation, key
    )
  )(SamplerState(x, jnp.int32(AT)), observation, key)
  return flat(after.x - FOLLOWING * jax.random.normal(key, x.shape)), info


def noisy_images(prior):
  noise = jax.random.normal(jax.random.key(2), (2, 2, *SHAPE))
  clean = prior.sample(jax.random.key(3), (2, 2), channels=1)
  return clean + np.float32(SIGMA) * noise


def test_sitcom_first_step_is_that_of_adam(prior):
  """Adam starts along the sign of the slope, in variance-preserving units."""
  observation = observe(prior, operators.random_inpainting(SHAPE, fraction=0.5))
  x = noisy_images(prior)
  config = baselines.SITCOMConfig(
    levels=LEVELS, steps=2, rate=0.05, stop=0.0, clip=False
  )
  found, info = optimise(config, prior, observation, x)
  w = gain(prior, SIGMA)
  mask = np.asarray(observation.operator.mask).ravel()
  y = np.asarray(observation.y, np.float64).reshape(2, D)
  slope = -(mask * (y - flat(x) @ w.T)) @ w
  assert np.abs(slope).min() > 1e-4  # no sign in doubt
  u = flat(x) / UNIT - 0.05 * np.sign(slope)
  np.testing.assert_allclose(found, UNIT * u @ w.T, atol=1e-5)
  assert (int(info.calls), int(info.products)) == (2, 2)


def test_sitcom_reaches_the_optimum(prior):
  """(s^2 W A^T A W + anchor) u = s W A^T y + anchor x / s, s^2 = 1 + sigma^2.

  Adam with a constant rate ends within its rate, 0.002, of every pixel.
  """
  operator = operators.gaussian_blur(SHAPE, size=3, std=0.7)
  observation = observe(prior, operator)
  x = noisy_images(prior)
  config = baselines.SITCOMConfig(
    levels=LEVELS, steps=1500, rate=0.005, anchor=0.3, stop=0.0, clip=False
  )
  found, _ = optimise(config, prior, observation, x)
  w = gain(prior, SIGMA)
  seen = UNIT * oracles.dense_operator(operator) @ w
  y = np.asarray(observation.y, np.float64).reshape(2, D)
  rhs = y @ seen + 0.3 * flat(x) / UNIT
  u = np.linalg.solve(seen.T @ seen + 0.3 * np.eye(D), rhs[..., None])[..., 0]
  np.testing.assert_allclose(found, UNIT * u @ w.T, atol=0.002)
  start = flat(x) @ w.T
  assert np.abs(start - found).max() > 0.1  # far from where it began


def test_sitcom_stops_image_by_image(prior):
  """Whoever fits the noise stays; the others go on until they do."""
  operator = operators.random_inpainting(SHAPE, fraction=0.5)
  observation = observe(prior, operator)
  x = noisy_images(prior)
  w = gain(prior, SIGMA)
  fits = jnp.asarray((flat(x) @ w.T)[0].reshape(2, *SHAPE), jnp.float32)
  y = observation.y.at[1].set(fits[1])  # sample 0 of observation 1 fits it
  observation = Observation(y, operator, NOISE)
  config = baselines.SITCOMConfig(
    levels=LEVELS, steps=400, stop=1.0, clip=False
  )
  found, info = optimise(config, prior, observation, x)
  np.testing.assert_allclose(found[0, 1], (flat(x) @ w.T)[0, 1], atol=1e-5)
  assert 1 < int(info.calls) < 400
  residual = np.asarray(info.residual)
  assert residual.max() <= 1.0 + 1e-4
  others = [residual[0, 0], residual[1, 0], residual[1, 1]]
  assert min(others) > 0.5  # stopped at the threshold, not far below it
