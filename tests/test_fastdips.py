"""FAST-DIPS against its equations in float64 and the ball that it aims at.

With a Gaussian prior the denoiser is a matrix, D(x) = C (C + sigma^2)^-1 x.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from experiments.few_calls import contenders
from posterior_jax import baselines, operators, priors, schedule
from posterior_jax.baselines import fastdips_sampler
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


def trajectory(config, forward, jacobian, y, noises):
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


def unobserved(operator):
  return np.broadcast_to(operator.observed, operator.measurement_shape) == 0


def compare(config, observation, forward, jacobian, y):
  x, info, noises = chain(config, observation)
  expected = trajectory(config, forward, jacobian, np.tile(y, (2, 1)), noises)
  for found, state, sigma in zip(x, expected, info.sigma, strict=True):
    np.testing.assert_allclose(
      flat(found).reshape(-1, D), state, atol=2e-5 * max(1, float(sigma))
    )
  np.testing.assert_array_equal(info.calls, np.ones(config.levels))
  np.testing.assert_array_equal(info.products, np.zeros(config.levels))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_trajectory_is_that_of_the_equations(name):
  operator = OPERATORS[name]()
  observation = observe(operator)
  seen = ~unobserved(operator).ravel()
  a = oracles.dense_operator(operator)[seen]
  y = flat(observation.y)[:, seen]
  compare(CONFIG, observation, lambda z: z @ a.T, lambda row: a, y)


def test_no_step_is_longer_than_one():
  """With rho = 0.5 the best step down would be of 2 where sigma is large."""
  config = dataclasses.replace(CONFIG, penalty=0.5 * NOISE**2)
  observation = observe(operators.random_inpainting(SHAPE, fraction=0.5))
  seen = ~unobserved(observation.operator).ravel()
  a = oracles.dense_operator(observation.operator)[seen]
  y = flat(observation.y)[:, seen]
  compare(config, observation, lambda z: z @ a.T, lambda row: a, y)


def test_a_bent_measurement_halves_steps_that_lead_up():
  """sin(4 x): where it is flat the tangent's best step is far too long."""
  operator = operators.nonlinear(lambda x: jnp.sin(4 * x), SHAPE)
  observation = observe(operator)
  config = dataclasses.replace(CONFIG, levels=3, sigma_max=2.0)
  compare(
    config,
    observation,
    lambda z: np.sin(4 * z),
    lambda row: np.diag(4 * np.cos(4 * row)),
    flat(observation.y),
  )


def first_level(config, observation):
  """z and x0 of the first of two levels, [4, D], and its residuals."""
  x, info, noises = chain(dataclasses.replace(config, levels=2), observation)
  sigma, following = schedule.karras(2, sigma_max=config.sigma_max)[:2]
  c = oracles.fourier_diagonal(np.asarray(PRIOR.spectrum, np.float64))
  x0 = sigma * noises[0] @ np.linalg.solve(c + sigma**2 * np.eye(D), c).T
  z = flat(x[0]).reshape(-1, D) - following * noises[1]
  return z, x0, np.asarray(info.residual[0])


def nearest(x0, a, y, radius):
  """The point of the ball ||A z - y|| <= radius next to x0: by bisection.

  z = (I + t A^T A)^-1 (x0 + t A^T y), whose residual falls as t grows.
  """
  low, high = -10.0, 10.0
  for _ in range(60):
    t = np.exp((low + high) / 2)
    z = np.linalg.solve(np.eye(D) + t * a.T @ a, x0 + t * a.T @ y)
    if norm(a @ z - y) > radius:
      low = np.log(t)
    else:
      high = np.log(t)
  return z


@pytest.mark.parametrize("name", ["resize", "random"])
def test_a_level_ends_in_the_ball(name):
  """On its surface where it is next to the denoised image."""
  operator = OPERATORS[name]()
  observation = observe(operator)
  # So little noise that the tie to the denoised image counts: it converges.
  config = dataclasses.replace(CONFIG, sigma_max=0.5, iterations=300, steps=3)
  z, x0, residual = first_level(config, observation)
  np.testing.assert_allclose(residual.ravel(), config.radius**2, rtol=1e-3)
  seen = ~unobserved(operator).ravel()
  a = oracles.dense_operator(operator)[seen]
  y = np.tile(flat(observation.y)[:, seen], (2, 1))
  radius = config.radius * NOISE * len(a) ** 0.5
  assert norm(x0 @ a.T - y).min() > 2 * radius  # it begins outside
  expected = [nearest(*pair, radius) for pair in zip(x0, [a] * 4, y)]
  np.testing.assert_allclose(z, expected, atol=1e-3)


def test_what_lies_in_the_ball_stays():
  observation = observe(operators.random_inpainting(SHAPE, fraction=0.5))
  wide = dataclasses.replace(CONFIG, radius=100.0)
  z, x0, _ = first_level(wide, observation)
  np.testing.assert_allclose(z, x0, atol=3e-5)


def test_published_balls_have_one_radius():
  """0.05 in all, at noise 0.05 and 256 x 256 pixels, whatever is observed."""
  for task, share in (
    (None, 1.0),
    ("gaussian_blur", 1.0),
    ("motion_blur", 1.0),
    ("super_resolution", 1 / 16),
    ("box_inpainting", 3 / 4),
    ("random_inpainting", 0.3),
  ):
    config = baselines.FASTDIPSConfig.published(task)
    norm_of_noise = 0.05 * (3 * 256**2 * share) ** 0.5
    np.testing.assert_allclose(config.radius * norm_of_noise, 0.05, rtol=3e-3)


def test_an_empty_ramp_is_refused():
  with oracles.refused(ValueError, r"sigma_min must lie in \(0, sigma_max\)"):
    baselines.FASTDIPSConfig(sigma_min=3.0, sigma_max=2.0)


def test_levels_of_a_search_are_operands():
  """One program for many schedules, each of which is that of its settings."""
  observation = observe(operators.random_inpainting(SHAPE, fraction=0.5))
  traces = []

  @oracles.quick_jit
  def restored(sigmas, key):
    traces.append(sigmas)
    sampler = fastdips_sampler.annealed(CONFIG, sigmas)
    return contenders.scanned(sampler, PRIOR.denoise, observation, key)

  key = jax.random.key(5)
  for sigma_max in (20.0, 3.0):
    config = dataclasses.replace(CONFIG, sigma_max=sigma_max)
    sigmas = jnp.asarray(fastdips_sampler.levels_of(config), jnp.float32)
    expected, _ = pj.run(
      baselines.fastdips(config), PRIOR.denoise, observation, key
    )
    np.testing.assert_allclose(restored(sigmas, key), expected[0], atol=1e-4)
  assert len(traces) == 1
