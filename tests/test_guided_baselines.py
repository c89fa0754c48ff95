"""DPS, FGPS, PiGDM and MMPS against closed forms, in float64 and VP variables.

With a Gaussian prior the denoiser is a matrix, D(x) = C (C + sigma^2)^-1 x, so
that every step is a formula.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  Observation,
  SamplerState,
  baselines,
  operators,
  priors,
  run,
  schedule,
)
from tests import oracles

SIZE = (8, 6)
SHAPE = (*SIZE, 1)
D = SIZE[0] * SIZE[1]
NOISE = 0.1
# One step in float32 on numbers of order 1 (transforms, matrices of 48), after
# the root (1 + sigma^2) of the middle levels, at most 5, has scaled it.
FLOAT32_STEP = 2e-5
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


class Problem(NamedTuple):
  """Two samples of two observations, flattened in float64."""

  prior: priors.GaussianPrior
  observation: Observation
  x: jax.Array  # [2, 2, H, W, 1]
  a: np.ndarray  # [m, D]
  y: np.ndarray  # [2, m], zero where nothing is observed
  c: np.ndarray  # [D, D] covariance of the prior


def problem(name, sigma, spectrum=None, seed=0):
  rng = np.random.default_rng(seed)
  if spectrum is None:
    spectrum = priors.power_law_spectrum(*SIZE, pixel_std=0.6)
  prior = priors.gaussian_prior(spectrum)
  operator = OPERATORS[name]()
  truth = prior.sample(jax.random.key(seed), (2,), channels=1)
  clean = np.asarray(operator.forward(truth))
  y = clean + NOISE * rng.standard_normal(clean.shape)
  seen = np.asarray(operator.observed)
  held = np.where(seen == 0, 9.0, y)  # dropped pixels must not be read
  x = np.asarray(truth) + sigma * rng.standard_normal((2, 2, *SHAPE))
  return Problem(
    prior,
    Observation(jnp.asarray(np.float32(held)), operator, NOISE),
    jnp.asarray(np.float32(x)),
    oracles.dense_operator(operator),
    (seen * y).reshape(2, -1),
    oracles.fourier_diagonal(np.asarray(prior.spectrum, np.float64)),
  )


def flat(x):
  return np.asarray(x, np.float64).reshape(*x.shape[:2], -1)


def step(sampler, p, level, key):
  """(x', info) of one step; x' flattened [2, 2, D]."""
  state, info = oracles.quick_jit(
    lambda state, observation, key: sampler.step(
      state, p.prior.denoise, observation, key
    )
  )(SamplerState(p.x, jnp.int32(level)), p.observation, key)
  assert int(state.level) == level + 1
  return flat(state.x), info


def gain(c, sigma):
  return np.linalg.solve(c + sigma**2 * np.eye(len(c)), c)


def ancestral(x, x0, noise, sigma, following):
  """Ho et al. 2020, eq. 6 and 7, on the VP state; returns the VP next state."""
  kept, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
  alpha = kept / after
  mean = after**0.5 * (1 - alpha) / (1 - kept) * x0
  mean = mean + alpha**0.5 * (1 - after) / (1 - kept) * (kept**0.5 * x)
  spread = (1 - after) / (1 - kept) * (1 - alpha)
  return mean + spread**0.5 * noise


def dps_step(p, key, sigma, following, scale, clip=False, band=None):
  """The published step, on images [2, 2, D]."""
  kept, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
  x, noise = flat(p.x), flat(jax.random.normal(key, p.x.shape))
  w = gain(p.c, sigma)
  raw = x @ w.T
  x0 = np.clip(raw, -1, 1) if clip else raw
  inside = (np.abs(raw) < 1) if clip else np.ones_like(raw)
  r = p.y - x0 @ p.a.T
  f = np.eye(r.shape[-1]) if band is None else oracles.fourier_diagonal(band)
  norm = np.linalg.norm(r @ f.T, axis=-1, keepdims=True)
  slope = -((r @ f.T @ f @ p.a) * inside) @ w / norm / kept**0.5  # / dx_vp
  moved = ancestral(x, x0, noise, sigma, following) - scale * slope
  return moved / after**0.5


@pytest.mark.parametrize(
  ("name", "clip"), [("resize", False), ("random", True), ("blur", True)]
)
def test_dps_step_is_the_published_one(name, clip):
  """Every image is guided by its own norm; the gradient stops at the clip."""
  levels, at = 20, 12
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  wide = priors.power_law_spectrum(*SIZE, pixel_std=2.0 if clip else 0.6)
  p = problem(name, sigma, wide)
  saturated = np.abs(flat(p.x) @ gain(p.c, sigma).T) > 1
  assert not clip or saturated.any(-1).all()
  config = baselines.DPSConfig(levels=levels, scale=0.4, clip=clip)
  key = jax.random.key(5)
  found, info = step(baselines.dps(config), p, at, key)
  expected = dps_step(p, key, sigma, following, 0.4, clip)
  np.testing.assert_allclose(found, expected, atol=FLOAT32_STEP)
  np.testing.assert_allclose(info.sigma, sigma, rtol=1e-6)


def test_adamdps_keeps_moments_from_step_to_step():
  """Two steps as published, in the variables of the paper's code."""
  levels, decays = 20, (0.6, 0.8)
  nodes = schedule.ddpm(levels)
  wide = priors.power_law_spectrum(*SIZE, pixel_std=200.0)
  p = problem("blur", nodes[0], wide)
  config = baselines.AdamDPSConfig(levels=levels, scale=0.1)
  config = dataclasses.replace(
    config, first_decay=decays[0], second_decay=decays[1]
  )
  sampler = baselines.adamdps(config)
  state = sampler.init(jax.random.key(0), p.observation, 2)
  state = state._replace(x=p.x)

  @oracles.quick_jit
  def step(state, key):
    return sampler.step(state, p.prior.denoise, p.observation, key)

  x, mean, square = flat(p.x), 0.0, 0.0
  for number in range(2):
    sigma, following = nodes[number : number + 2]
    kept, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
    key = jax.random.key(5 + number)
    w = gain(p.c, sigma)
    raw = x @ w.T
    assert (np.abs(raw) > 1).any()
    r = p.y - raw @ p.a.T
    norm = np.linalg.norm(r, axis=-1, keepdims=True)
    slope = -(r @ p.a) @ w / norm / kept**0.5  # / dx_vp
    mean = decays[0] * mean + (1 - decays[0]) * slope
    square = decays[1] * square + (1 - decays[1]) * slope**2
    size = np.sqrt(square / (1 - decays[1] ** (number + 1))) + 1e-8
    to = mean / (1 - decays[0] ** (number + 1)) / size
    noise = flat(jax.random.normal(key, p.x.shape))
    moved = ancestral(x, np.clip(raw, -1, 1), noise, sigma, following)
    x = (moved - 0.1 * to / (kept / after) ** 0.5) / after**0.5
    state, info = step(state, key)
    # Of noise of 157, with its rounding.
    np.testing.assert_allclose(flat(state.x), x, rtol=1e-4, atol=2e-3)
    assert info.evaluations == 2


@pytest.mark.parametrize("law", ["linear", "exponential"])
def test_fgps_step_is_that_of_dps_on_a_disc(law):
  """Half way: scale by a cosine, cutoff by its law."""
  levels, at = 21, 10
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  p = problem("blur", sigma)
  config = baselines.FGPSConfig(
    levels=levels,
    scale_start=0.9,
    scale_end=0.3,
    cutoff_start=0.2,
    cutoff_end=0.9,
    cutoff_law=law,
    clip=False,
  )
  cutoff = {"linear": 0.55, "exponential": 0.9 - 0.7 * np.exp(-2.5)}[law]
  fy, fx = np.fft.fftfreq(SIZE[0])[:, None], np.fft.fftfreq(SIZE[1])
  band = (np.hypot(fy, fx) <= cutoff * 0.5**0.5).astype(float)
  assert 0.2 < band.mean() < 0.95
  key = jax.random.key(6)
  found, _ = step(baselines.fgps(config), p, at, key)
  expected = dps_step(p, key, sigma, following, 0.6, band=band)
  np.testing.assert_allclose(found, expected, atol=FLOAT32_STEP)


def test_fgps_with_a_full_band_is_dps():
  levels, at = 20, 12
  p = problem("random", schedule.ddpm(levels)[at])
  fgps = baselines.FGPSConfig(
    levels=levels, scale_start=0.4, scale_end=0.4, cutoff_start=1, cutoff_end=1
  )
  dps = baselines.DPSConfig(levels=levels, scale=0.4)
  key = jax.random.key(0)
  expected, _ = step(baselines.dps(dps), p, at, key)
  found, _ = step(baselines.fgps(fgps), p, at, key)
  np.testing.assert_allclose(found, expected, atol=FLOAT32_STEP)


def exact_mean(p, sigma):
  """E[x0 | x, y] of a Gaussian prior: precisions add."""
  precision = np.linalg.inv(p.c) + p.a.T @ p.a / NOISE**2
  rhs = p.y @ p.a / NOISE**2 + flat(p.x) / sigma**2
  return np.linalg.solve(precision + np.eye(D) / sigma**2, rhs[..., None])[
    ..., 0
  ]


@pytest.mark.parametrize(
  "method, name",
  [
    *(("pigdm", "random"), ("pigdm", "blur"), ("mmps", "resize")),
    pytest.param("pigdm", "resize", marks=pytest.mark.slow),
    pytest.param("mmps", "random", marks=pytest.mark.slow),
    pytest.param("mmps", "blur", marks=pytest.mark.slow),
  ],
)
def test_guidance_is_exact_for_a_gaussian_prior(method, name):
  """White of any variance for PiGDM, coloured for MMPS; a middle level."""
  levels, at = 20, 13
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  if method == "pigdm":
    p = problem(name, sigma, spectrum=np.full(SIZE, 0.36))
    config = baselines.PiGDMConfig(
      levels=levels, eta=0.0, data_std=0.6, weight="score"
    )
  else:
    p = problem(name, sigma)
    config = baselines.MMPSConfig(
      levels=levels, eta=0.0, iterations=60, tolerance=1e-6
    )
  found, info = step(
    getattr(baselines, method)(config), p, at, jax.random.key(0)
  )
  x0 = exact_mean(p, sigma)
  expected = x0 + following / sigma * (flat(p.x) - x0)
  # The solves stop at a relative residual of 1e-5, 1e-6.
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert float(info.solve.relative_residual) < 2e-5
  # The reported residual is that of E[x0 | x, y].
  r = p.y - x0 @ p.a.T
  m = np.asarray(p.observation.operator.observed).sum() * r.shape[-1]
  m = m / np.asarray(p.observation.operator.observed).size
  np.testing.assert_allclose(
    info.residual, (r**2).sum(-1) / (m * NOISE**2), rtol=1e-3
  )


def test_pigdm_published_step():
  """Algorithm 1 of the paper in VP variables, r^2 sqrt(alpha_bar) dlog p."""
  levels, at = 20, 11
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  p = problem("resize", sigma)
  kept, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
  w = gain(p.c, sigma)
  x, key = flat(p.x), jax.random.key(1)
  x0 = x @ w.T
  r2 = sigma**2 / (1 + sigma**2)
  spread = r2 * p.a @ p.a.T + NOISE**2 * np.eye(len(p.a))
  score = (p.y - x0 @ p.a.T) @ np.linalg.inv(spread) @ p.a @ w / kept**0.5
  noise = flat(jax.random.normal(key, p.x.shape))
  moved = ancestral(x, x0, noise, sigma, following)
  # sqrt(alpha_bar') carries the increment to the scaled state, as in the codes.
  expected = (moved + (after * kept) ** 0.5 * r2 * score) / after**0.5
  config = baselines.PiGDMConfig.published(levels=levels)
  found, _ = step(baselines.pigdm(config), p, at, key)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mmps_takes_one_iteration_where_one_is_allowed():
  """v = (r.r / r.K r) r, by one Jacobian product."""
  levels, at = 20, 13
  sigma = schedule.ddpm(levels)[at]
  p = problem("blur", sigma)
  config = baselines.MMPSConfig(levels=levels, eta=0.0, iterations=1)
  found, info = step(baselines.mmps(config), p, at, jax.random.key(0))
  c = sigma**2 * gain(p.c, sigma)
  r = p.y - flat(p.x) @ gain(p.c, sigma).T @ p.a.T
  k = p.a @ c @ p.a.T + NOISE**2 * np.eye(len(p.a))
  width = (r * r).sum(-1) / (r * (r @ k)).sum(-1)
  x0 = flat(p.x) @ gain(p.c, sigma).T + width[..., None] * (r @ p.a @ c)
  following = schedule.ddpm(levels)[at + 1]
  expected = x0 + following / sigma * (flat(p.x) - x0)
  np.testing.assert_allclose(found, expected, atol=FLOAT32_STEP)
  assert (int(info.calls), int(info.products)) == (1, 1)


def test_mmps_covariance_is_that_of_a_mixture():
  """Where the denoiser bends: its dense Jacobian, by finite differences."""
  rng = np.random.default_rng(3)
  means = rng.uniform(-1, 1, (3, *SHAPE)).astype(np.float32)
  prior = priors.gaussian_mixture(jnp.ones(3), jnp.asarray(means), 0.3)
  levels, at = 20, 13
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  p = problem("random", sigma)
  p = p._replace(prior=prior)

  def clean(x):  # [n, D] float64
    spread = 0.09 + sigma**2
    offset = x[:, None] - means.reshape(3, D)
    score = -0.5 * (offset**2).sum(-1) / spread
    share = np.exp(score - score.max(-1, keepdims=True))
    share = share / share.sum(-1, keepdims=True)
    to = means.reshape(3, D) + 0.09 / spread * offset
    return np.einsum("nk,nkd->nd", share, to)

  x = flat(p.x).reshape(4, D)
  nudge = 1e-5 * np.eye(D)
  expected = []
  for one, y in zip(x, np.concatenate([p.y, p.y])):
    jacobian = (clean(one + nudge) - clean(one - nudge)).T / 2e-5
    x0 = clean(one[None])[0]
    c = sigma**2 * jacobian
    k = p.a @ c @ p.a.T + NOISE**2 * np.eye(len(p.a))
    x0 = x0 + c @ p.a.T @ np.linalg.solve(k, y - p.a @ x0)
    expected.append(x0 + following / sigma * (one - x0))
  config = baselines.MMPSConfig(
    levels=levels, eta=0.0, iterations=60, tolerance=1e-6
  )
  found, _ = step(baselines.mmps(config), p, at, jax.random.key(0))
  np.testing.assert_allclose(found.reshape(4, D), expected, atol=2e-4)


def law_of_steps(p, sigmas):
  """Mean [2, D] and covariance of what exact E[x0 | x, y] and DDIM make.

  Every step is affine in x, so the law stays Gaussian. It is not the posterior:
  a step takes x0 as known, and lacks its variance.
  """
  mean, covariance = np.zeros((2, D)), sigmas[0] ** 2 * np.eye(D)
  precision = np.linalg.inv(p.c) + p.a.T @ p.a / NOISE**2
  for sigma, following in itertools.pairwise(sigmas):
    to_x0 = np.linalg.inv(precision + np.eye(D) / sigma**2)
    kept = (following / sigma) ** 2
    matrix = (1 - kept) * to_x0 / sigma**2 + kept * np.eye(D)
    mean = (1 - kept) * (p.y @ p.a / NOISE**2) @ to_x0 + mean @ matrix.T
    covariance = matrix @ covariance @ matrix.T
    covariance += following**2 * (1 - kept) * np.eye(D)
  return mean, covariance


def test_the_law_of_steps_tends_to_the_posterior():
  p = problem("blur", 1.0)
  exact = np.linalg.inv(np.linalg.inv(p.c) + p.a.T @ p.a / NOISE**2)
  short = []
  for levels in (100, 1000):
    mean, covariance = law_of_steps(p, schedule.ddpm(levels))
    off = mean - p.y @ p.a / NOISE**2 @ exact
    assert np.sqrt((off**2).mean() / np.diag(exact).mean()) < 0.02
    short.append(1 - np.trace(covariance) / np.trace(exact))
  assert 0 < short[1] < 0.03 < 0.1 < short[0] < 0.2, short


@pytest.mark.parametrize(
  "method", ["pigdm", pytest.param("mmps", marks=pytest.mark.slow)]
)
def test_samples_follow_the_law_of_steps(method):
  """And thereby the posterior, as far as the steps go."""
  p = problem("random", 1.0, np.full(SIZE, 0.36) if method == "pigdm" else None)
  levels = 100
  config = {
    "pigdm": baselines.PiGDMConfig(levels=levels, data_std=0.6, weight="score"),
    "mmps": baselines.MMPSConfig.tuned(levels=levels, iterations=20),
  }[method]
  count = 512
  samples, _ = run(
    getattr(baselines, method)(config),
    p.prior.denoise,
    p.observation,
    jax.random.key(2),
    num_samples=count,
  )
  found = flat(samples)  # [512, 2, D]
  mean, covariance = law_of_steps(p, schedule.ddpm(levels))
  # Coordinates in which the law is white: 96 independent numbers a sample.
  root = np.linalg.inv(np.linalg.cholesky(covariance))
  white = (found - mean) @ root.T
  # Five standard errors of each mean and variance, and of their average.
  assert np.abs(white.mean(0)).max() < 5 * count**-0.5
  variance = (white**2).mean(0)
  assert np.abs(variance - 1).max() < 5 * (2 / count) ** 0.5, variance
  assert abs(variance.mean() - 1) < 5 * (2 / count / white[0].size) ** 0.5


def test_mmps_stays_where_the_jacobian_is_not_positive():
  """A denoiser -x has no covariance: the solve stops before its first step."""
  p = problem("random", 1.0)
  levels, at = 20, 13
  sigma, following = schedule.ddpm(levels)[at : at + 2]
  config = baselines.MMPSConfig(levels=levels, eta=0.0, iterations=5)
  sampler = baselines.mmps(config)
  state, info = oracles.quick_jit(
    lambda state, observation, key: sampler.step(
      state, lambda x, sigma: -x, observation, key
    )
  )(SamplerState(p.x, jnp.int32(at)), p.observation, jax.random.key(0))
  expected = -p.x + following / sigma * (2 * p.x)
  np.testing.assert_allclose(state.x, expected, atol=FLOAT32_STEP)
  assert np.isfinite(np.asarray(info.residual)).all()
