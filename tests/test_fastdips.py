"""FAST-DIPS against its equations in float64 and the ball that it aims at.

With a Gaussian prior the denoiser is a matrix, D(x) = C (C + sigma^2)^-1 x.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import baselines, operators, priors, schedule
from tests import oracles

SHAPE = (8, 8, 1)
D = 64
NOISE = 0.1
LOPSIDED = np.random.default_rng(5).dirichlet(np.ones(25)).reshape(5, 5)
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.blur(SHAPE, LOPSIDED),
}
PRIOR = priors.gaussian_prior(
  priors.power_law_spectrum(*SHAPE[:2], pixel_std=0.6)
)


def observe(operator, count=2):
  truth = PRIOR.sample(jax.random.key(0), (count,), channels=1)
  clean = operator.forward(truth)
  y = clean + NOISE * jax.random.normal(jax.random.key(1), clean.shape)
  # Dropped pixels must not be read.
  y = jnp.where(operator.observed == 0, 9.0, y)
  return pj.Observation(y, operator, NOISE)


def flat(x):
  return np.asarray(x, np.float64).reshape(*x.shape[:-3], -1)


def norm(x):
  return np.sqrt((x**2).sum(-1, keepdims=True))


def corrected(x0, sigma, forward, jacobian, y, config):
  """The authors' loop over v = A z and its scaled multiplier u.

  Rows are images; `jacobian` is J at a row, and their alpha is written out.
  """
  rho = config.penalty / NOISE**2
  radius = config.radius * NOISE * y.shape[-1] ** 0.5
  gamma = sigma**2
  z, v, u = x0, forward(x0), np.zeros_like(y)

  def energy(z, b):
    miss = ((forward(z) - b) ** 2).sum(-1, keepdims=True)
    return rho / 2 * miss + norm(z - x0) ** 2 / (2 * gamma)

  for _ in range(config.iterations):
    b = v - u
    for _ in range(config.steps):
      r = forward(z) - b
      jacobians = [jacobian(row) for row in z]
      pull = np.stack([row @ j for row, j in zip(r, jacobians)])
      g = (z - x0) / gamma + rho * pull
      jg = np.stack([j @ row for row, j in zip(g, jacobians)])
      up = ((z - x0) * g).sum(-1) / gamma + rho * (r * jg).sum(-1)
      down = (g**2).sum(-1) / gamma + rho * (jg**2).sum(-1) + 1e-12
      alpha = np.clip(up / down, 0, 1)[:, None]
      for _ in range(8):
        worse = energy(z - alpha * g, b) > energy(z, b) * (1 + 1e-12)
        alpha = np.where(worse, alpha / 2, alpha)
      z = z - alpha * g
    d = forward(z) + u - y
    v = y + np.minimum(1, radius / np.maximum(norm(d), 1e-12)) * d
    u = u + forward(z) - v
  return z


def trajectory(config, observation, forward, jacobian, y, noises):
  """States of every level, the last the answer, from the sampler's noise."""
  sigmas = schedule.karras(config.levels, sigma_max=config.sigma_max)
  c = oracles.fourier_diagonal(np.asarray(PRIOR.spectrum, np.float64))
  x = sigmas[0] * noises[0]
  for sigma, following, noise in zip(sigmas, sigmas[1:], noises[1:]):
    x0 = x @ np.linalg.solve(c + sigma**2 * np.eye(D), c).T
    z = corrected(x0, sigma, forward, jacobian, y, config)
    x = z + following * noise if following else x0
    yield x


def chain(config, observation, samples=2):
  """States of every level [levels, samples, N, ...] and all noise drawn."""
  sampler = baselines.fastdips(config)
  key, rest = jax.random.split(jax.random.key(3))
  keys = jax.random.split(rest, config.levels)

  @oracles.quick_jit
  def states(observation):
    def step(state, key):
      state, info = sampler.step(state, PRIOR.denoise, observation, key)
      return state, (state.x, info)

    return jax.lax.scan(step, sampler.init(key, observation, samples), keys)[1]

  x, info = states(observation)
  noises = [jax.random.normal(key, x[0].shape) for key in (key, *keys)]
  return x, info, [flat(noise).reshape(-1, D) for noise in noises]


CONFIG = baselines.FASTDIPSConfig(
  levels=6, sigma_max=20.0, iterations=4, steps=2, radius=0.7, penalty=0.8
)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_trajectory_is_that_of_the_equations(name):
  operator = OPERATORS[name]()
  observation = observe(operator)
  x, info, noises = chain(CONFIG, observation)
  seen = np.broadcast_to(operator.observed, operator.measurement_shape)
  a = oracles.dense_operator(operator)[seen.ravel() > 0]
  y = np.tile(flat(observation.y)[:, seen.ravel() > 0], (2, 1))
  expected = trajectory(
    CONFIG, observation, lambda z: z @ a.T, lambda row: a, y, noises
  )
  for found, state, sigma in zip(x, expected, info.sigma, strict=True):
    np.testing.assert_allclose(
      flat(found).reshape(-1, D), state, atol=2e-5 * max(1, float(sigma))
    )
  np.testing.assert_array_equal(info.calls, np.ones(CONFIG.levels))
  np.testing.assert_array_equal(info.products, np.zeros(CONFIG.levels))
