"""DiffPIR, RED-diff and PnP-DM against their closed forms.

With a Gaussian prior the denoiser is a matrix, D(x) = C (C + sigma^2)^-1 x.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  Observation,
  SamplerState,
  baselines,
  metrics,
  operators,
  priors,
  run,
  schedule,
)
from posterior_jax.baselines import diffusion, reddiff_sampler
from tests import oracles

SIZE = (8, 8)
SHAPE = (*SIZE, 1)
D = SIZE[0] * SIZE[1]
NOISE = 0.2
LEVELS, AT = 20, 13
# One step in float32 on numbers of order 1, its solve to a residual of 1e-6.
FLOAT32_STEP = 3e-5
LOPSIDED = np.random.default_rng(5).dirichlet(np.ones(25)).reshape(5, 5)
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.blur(SHAPE, LOPSIDED),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)
few_operators = pytest.mark.parametrize(
  "name", ["resize", "random", pytest.param("blur", marks=pytest.mark.slow)]
)


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


def flat(x):
  return np.asarray(x, np.float64).reshape(*x.shape[:-3], -1)


def gain(prior, sigma):
  c = oracles.fourier_diagonal(np.asarray(prior.spectrum, np.float64))
  return np.linalg.solve(c + sigma**2 * np.eye(D), c)


def data(observation):
  """A and y in float64, y zero where nothing is observed."""
  operator = observation.operator
  seen = np.broadcast_to(operator.observed, operator.measurement_shape)
  return oracles.dense_operator(operator), flat(seen * observation.y)


def noisy_images(prior, sigma):
  noise = jax.random.normal(jax.random.key(2), (2, 2, *SHAPE))
  clean = prior.sample(jax.random.key(3), (2, 2), channels=1)
  return clean + np.float32(sigma) * noise


def one_step(sampler, prior, observation, state, key):
  return oracles.quick_jit(
    lambda state, observation, key: sampler.step(
      state, prior.denoise, observation, key
    )
  )(state, observation, key)


# --- DiffPIR -----------------------------------------------------------------


@few_operators
def test_diffpir_step_is_the_published_one(name):
  """Algorithm 1 of the paper in VP variables, the code's lambda and ranges."""
  spectrum = priors.power_law_spectrum(*SIZE, pixel_std=2.0)  # saturates
  prior = priors.gaussian_prior(spectrum)
  sigma, following = schedule.ddpm(LEVELS)[AT : AT + 2]
  observation = observe(prior, OPERATORS[name]())
  x, key = noisy_images(prior, sigma), jax.random.key(4)
  config = baselines.DiffPIRConfig(
    levels=LEVELS,
    spacing="uniform",
    weight=7 / 4,
    renewal=0.3,
    clip=True,
    tolerance=1e-6,
  )
  state = SamplerState(x, jnp.int32(AT))
  after, info = one_step(
    baselines.diffpir(config), prior, observation, state, key
  )
  a, y = data(observation)
  raw = flat(x) @ gain(prior, sigma).T
  assert (np.abs(raw) > 1).any()
  # Images in [0, 1], the noise too, sigma in [-1, 1]: rho with lambda = 7.
  x0, shifted = (np.clip(raw, -1, 1) + 1) / 2, y / 2 + a.sum(1) / 2
  rho = 7 * (NOISE / 2) ** 2 / sigma**2
  rhs = shifted @ a + rho * x0
  z = 2 * np.linalg.solve(a.T @ a + rho * np.eye(D), rhs[..., None])[..., 0] - 1
  kept, then = 1 / (1 + sigma**2), 1 / (1 + following**2)
  eps = (kept**0.5 * flat(x) - kept**0.5 * z) / (1 - kept) ** 0.5
  noise = flat(jax.random.normal(key, x.shape))
  moved = then**0.5 * z
  moved += (1 - then) ** 0.5 * (0.7**0.5 * eps + 0.3**0.5 * noise)
  np.testing.assert_allclose(
    flat(after.x), moved / then**0.5, atol=FLOAT32_STEP
  )
  assert int(after.level) == AT + 1 and int(info.calls) == 1


def test_diffpir_ends_in_the_denoised_image(prior):
  sigma = schedule.ddpm(LEVELS)[LEVELS - 1]
  observation = observe(prior, OPERATORS["random"]())
  state = SamplerState(noisy_images(prior, sigma), jnp.int32(LEVELS - 1))
  config = baselines.DiffPIRConfig(levels=LEVELS, spacing="uniform", clip=False)
  after, _ = one_step(
    baselines.diffpir(config), prior, observation, state, jax.random.key(4)
  )
  expected = flat(state.x) @ gain(prior, sigma).T
  np.testing.assert_allclose(flat(after.x), expected, atol=FLOAT32_STEP)


def test_diffpir_limits(prior):
  """A heavy tie forgets the data, which leaves DDIM; a light one meets it."""
  sigma, following = schedule.ddpm(LEVELS)[AT : AT + 2]
  observation = observe(prior, OPERATORS["resize"]())
  x, key = noisy_images(prior, sigma), jax.random.key(4)

  def moved(weight):
    config = baselines.DiffPIRConfig(
      levels=LEVELS, spacing="uniform", weight=weight, renewal=0.0, clip=False
    )
    state = SamplerState(x, jnp.int32(AT))
    return one_step(baselines.diffpir(config), prior, observation, state, key)

  level = diffusion.Level(jnp.int32(AT), sigma, following)
  x0 = jnp.asarray(np.float32(flat(x) @ gain(prior, sigma).T)).reshape(x.shape)
  ddim = diffusion.ddim(key, x, x0, level, 0.0)
  after, info = moved(1e9)
  np.testing.assert_allclose(after.x, ddim, atol=FLOAT32_STEP)
  assert info.residual.min() > 0.2
  assert moved(1e-4)[1].residual.max() < 1e-3


# --- RED-diff ----------------------------------------------------------------


@few_operators
def test_reddiff_first_step_is_the_published_one(name, prior):
  """Along the sign of the published slope, in VP variables and noises.

  It starts at the regularised inverse.
  """
  observation = observe(prior, OPERATORS[name]())
  config = baselines.REDDiffConfig(levels=LEVELS, weight=0.7)
  sampler, key = baselines.reddiff(config), jax.random.key(4)
  state = sampler.init(key, observation, 2)
  a, y = data(observation)
  inverse = np.linalg.solve(a.T @ a + NOISE**2 * np.eye(D), a.T)
  expected = np.broadcast_to(y @ inverse.T, (2, 2, D))
  np.testing.assert_allclose(flat(state.x), expected, atol=FLOAT32_STEP)
  state = state._replace(
    x=state.x + 0.1 * jax.random.normal(key, (2, 2, *SHAPE))
  )
  after, info = one_step(sampler, prior, observation, state, key)
  sigma = schedule.ddpm(LEVELS)[0]
  kept = 1 / (1 + sigma**2)
  noise, mu = flat(jax.random.normal(key, state.x.shape)), flat(state.x)
  x = kept**0.5 * mu + (1 - kept) ** 0.5 * noise
  clean = x / kept**0.5 @ gain(prior, sigma).T
  eps = (x - kept**0.5 * clean) / (1 - kept) ** 0.5
  m = (np.abs(a).sum(1) > 0).sum()
  slope = (mu @ a.T - y) @ a / m
  slope += 0.7 * ((1 - kept) / kept) ** 0.5 * (eps - noise) / D
  sure = np.abs(slope) > 1e-4  # far above float32 and Adam's epsilon
  assert sure.mean() > 0.8
  expected = mu - config.learning_rate * np.sign(slope)
  np.testing.assert_allclose(flat(after.x)[sure], expected[sure], atol=1e-4)
  np.testing.assert_allclose(info.sigma, sigma, rtol=1e-6)


@every_operator
def test_reddiff_slope_vanishes_at_the_stationary_point(name, prior):
  """(A^T A / m + lambda (1 - W) / n) x = A^T y / m, for opposite noises."""
  sigma, weight = 0.8, 0.25
  observation = observe(prior, OPERATORS[name]())
  a, y = data(observation)
  m, w = (np.abs(a).sum(1) > 0).sum(), gain(prior, sigma)
  matrix = a.T @ a / m + weight / D * (np.eye(D) - w)
  still = np.linalg.solve(matrix, (y @ a / m)[..., None])[..., 0]
  noise = np.random.default_rng(0).standard_normal((1, D))
  x = jnp.asarray(np.float32(still.reshape(1, 2, *SHAPE)))
  slopes = []
  for e in (noise, -noise):
    x0 = (still + sigma * e) @ w.T
    x0 = jnp.asarray(np.float32(x0.reshape(x.shape)))
    slopes.append(flat(reddiff_sampler.gradient(observation, x, x0, weight)))
  assert np.abs(slopes[0]).max() > 1e-4  # each alone does not
  np.testing.assert_allclose(slopes[0] + slopes[1], 0, atol=2e-7)


def test_reddiff_reaches_the_stationary_point(prior):
  """Of a prior that is one image: every level pulls to the same point.

  Adam with a constant rate ends within its rate, 0.005, of every pixel.
  """
  centre = prior.sample(jax.random.key(9), (1,), channels=1)

  def denoise(x, sigma):
    return jnp.broadcast_to(centre, x.shape)

  observation = observe(prior, OPERATORS["random"]())
  config = baselines.REDDiffConfig(
    levels=1000, learning_rate=0.005, weight=0.25
  )
  found, _ = run(
    baselines.reddiff(config), denoise, observation, jax.random.key(0)
  )
  a, y = data(observation)
  m = (np.abs(a).sum(1) > 0).sum()
  matrix = a.T @ a / m + 0.25 / D * np.eye(D)
  rhs = y @ a / m + 0.25 / D * flat(centre)
  expected = np.linalg.solve(matrix, rhs[..., None])[..., 0]
  np.testing.assert_allclose(flat(found)[0], expected, atol=0.005)


# --- PnP-DM ------------------------------------------------------------------


CHAIN = 24
COUNT = 256


def chain_law(config, spectrum, transfer, y, rho):
  """Mean and variance of every frequency after the chain, in float64.

  The chain is linear and Gaussian: each draw multiplies by a gain and adds a
  variance. Starts at variance 1 about 0.
  """
  nodes = 80 ** (1 / 7) + np.linspace(0, 1, config.nodes) * (
    0.002 ** (1 / 7) - 80 ** (1 / 7)
  )
  nodes = np.append(nodes**7, 0.0)
  mean, variance = np.zeros(spectrum.shape, complex), np.ones(spectrum.shape)
  precision = np.abs(transfer) ** 2 / NOISE**2 + 1 / rho**2
  first = (nodes >= rho).sum()
  for _ in range(config.levels):
    pull = np.conj(transfer) * y / NOISE**2
    mean = (pull + mean / rho**2) / precision
    variance = variance / (rho**2 * precision) ** 2 + 1 / precision
    for i in range(first, config.nodes):
      sigma, following = nodes[i], nodes[i + 1]
      if config.exact_start and i == first:
        sigma = rho
      ratio, w = following / sigma, spectrum / (spectrum + sigma**2)
      if config.solver == "euler":
        step = 1 + 2 * (1 - ratio) * (w - 1)
        added = 2 * sigma**2 * (1 - ratio) * (following > 0)
      else:
        step = w + ratio**2 * (1 - w)
        added = following**2 * (1 - ratio**2)
      mean, variance = step * mean, step**2 * variance + added
  return mean, variance, config.nodes - first


@pytest.mark.parametrize(
  ("solver", "exact_start", "nodes"),
  [
    pytest.param("euler", False, 40, marks=pytest.mark.slow),
    ("ancestral", True, 60),
  ],
)
def test_pnpdm_chain_has_its_law(solver, exact_start, nodes):
  """That of the steps taken, which in the limit is the split posterior's.

  x of p(x) exp(-|y - A z|^2 / 2 s^2 - |x - z|^2 / 2 rho^2), by frequency:
  precision 1 / S + 1 / (rho^2 + s^2 / |a|^2). The spectrum is one whose chain
  mixes: the gain of an iteration is at most S / (S + rho^2) = 0.8.
  """
  rho = 0.3
  spectrum = priors.power_law_spectrum(*SIZE, pixel_std=0.35, exponent=0.8)
  prior = priors.gaussian_prior(spectrum)
  s = np.asarray(spectrum, np.float64)
  assert s.max() / (s.max() + rho**2) < 0.8
  operator = operators.blur(SHAPE, LOPSIDED, boundary="circular")
  observation = observe(prior, operator, count=1)
  config = baselines.PnPDMConfig(
    levels=CHAIN,
    coupling_max=rho,
    coupling_min=rho,
    nodes=nodes,
    solver=solver,
    exact_start=exact_start,
  )
  samples, info = run(
    baselines.pnpdm(config),
    prior.denoise,
    observation,
    jax.random.key(7),
    num_samples=COUNT,
  )
  transfer = np.asarray(operator.transfer, np.complex128)
  y = np.fft.fft2(np.asarray(observation.y, np.float64)[0, ..., 0])
  mean, variance, calls = chain_law(config, s, transfer, y, rho)
  assert (info.calls == calls).all()

  image = jnp.asarray(np.float32(np.fft.ifft2(mean).real[None, ..., None]))
  std = jnp.full(SHAPE, np.sqrt(variance.mean()), jnp.float32)
  error = metrics.normalised_mean_error(samples, image, std)
  assert error.value < 2 * error.floor, error
  ratio = metrics.variance_ratio(
    samples, jnp.asarray(np.float32(variance)), bands=4
  )
  off = np.abs(np.append(ratio.bands, ratio.total) - 1)
  spread = np.append(ratio.bands_error, ratio.total_error)
  assert (off < 5 * spread).all() and spread.max() < 0.03, ratio
  # A thousand nodes are still finite steps: 2 % of the variance.
  finest = dataclasses.replace(config, nodes=1000)
  mean, variance, _ = chain_law(finest, s, transfer, y, rho)
  noise = rho**2 + NOISE**2 / np.abs(transfer) ** 2
  precision = 1 / s + 1 / noise
  np.testing.assert_allclose(variance * precision, 1, atol=0.02)
  np.testing.assert_allclose(mean, y / transfer / noise / precision, atol=0.05)


def test_pnpdm_coupling_falls_to_its_least():
  config = baselines.PnPDMConfig.published()
  sampler = baselines.pnpdm(config)
  operator = operators.random_inpainting(SHAPE)
  observation = Observation(jnp.zeros((1, *SHAPE)), operator, NOISE)

  def denoise(x, sigma):
    return 0.5 * x

  _, info = run(sampler, denoise, observation, jax.random.key(0))
  expected = np.maximum(10 * 0.9 ** np.arange(100), 0.3)
  np.testing.assert_allclose(info.sigma, expected, rtol=1e-5)
  assert int(info.evaluations.sum()) == 3573


def test_pnpdm_refuses_a_coupling_that_grows():
  with oracles.refused(ValueError, r"coupling_min must lie in \[0.004, "):
    baselines.PnPDMConfig(coupling_min=11.0)
  with oracles.refused(ValueError, r"coupling_min must lie in \[0.004, "):
    baselines.PnPDMConfig(coupling_min=0.001)
