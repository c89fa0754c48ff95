"""DDRM and DDNM+ against their rules in dense singular vectors, in float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  Observation,
  baselines,
  metrics,
  operators,
  priors,
  run,
  schedule,
)
from posterior_jax.baselines import ddnm_sampler, ddrm_sampler, diffusion
from posterior_jax.likelihood.bands import Banded
from tests import oracles

SIZE = (8, 8)
SHAPE = (*SIZE, 1)
D = SIZE[0] * SIZE[1]
NOISE = 0.2
SIGMA, FOLLOWING = 0.9, 0.5
# Float32 on numbers of order 1: decompositions, transforms, matrices of 64.
FLOAT32_STEP = 3e-5
LOPSIDED = np.random.default_rng(5).dirichlet(np.ones(25)).reshape(5, 5)
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "circular": lambda: operators.blur(SHAPE, LOPSIDED, boundary="circular"),
  "mirrored": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}
UNDECOMPOSED = operators.blur(SHAPE, LOPSIDED)
every_operator = pytest.mark.parametrize("name", OPERATORS)
LEVEL = diffusion.Level(
  jnp.int32(0), jnp.float32(SIGMA), jnp.float32(FOLLOWING)
)


def flat(x):
  return np.asarray(x, np.float64).reshape(*x.shape[:-3], -1)


def normal(shape, seed):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(np.float32(values))


def measured(operator, truth, seed=1):
  """y of images [N, H, W, 1], nonsense where nothing is observed."""
  clean = operator.forward(truth)
  y = clean + NOISE * normal(clean.shape, seed)
  return Observation(jnp.where(operator.observed == 0, 9.0, y), operator, NOISE)


def dense_svd(operator, observation):
  """U, s padded with zeros, V^T, and y with 0 where nothing is observed."""
  a = oracles.dense_operator(operator)
  u, s, vt = np.linalg.svd(a)
  m = len(s)
  seen = np.broadcast_to(operator.observed, operator.measurement_shape)
  y = flat(seen * observation.y)
  return u[:, :m], np.append(s, np.zeros(D - m)), vt, y


def published(operator, observation, x, x0, noise, eta, eta_data, threshold):
  """Eqs. 7 and 8 of the paper, one singular vector after the other."""
  u, s, vt, y = dense_svd(operator, observation)
  old, clean, white = flat(x) @ vt.T, flat(x0) @ vt.T, flat(noise) @ vt.T
  data, kept = y @ u, (1 - eta**2) ** 0.5
  out, cases = np.empty_like(old), []
  for i in range(D):
    toward = clean[..., i]
    if s[i] <= threshold:
      mean = toward + kept * FOLLOWING * (old[..., i] - toward) / SIGMA
      std, case = eta * FOLLOWING, "unseen"
    elif FOLLOWING < NOISE / s[i]:
      off = data[..., i] / s[i] - toward
      mean = toward + kept * FOLLOWING * off / (NOISE / s[i])
      std, case = eta * FOLLOWING, "noisier"
    else:
      mean = (1 - eta_data) * toward + eta_data * data[..., i] / s[i]
      std = (FOLLOWING**2 - (eta_data * NOISE / s[i]) ** 2) ** 0.5
      case = "less noisy"
    out[..., i] = mean + std * white[..., i]
    cases.append(case)
  return out @ vt, set(cases)


CASES = {
  "resize": {"unseen", "noisier", "less noisy"},
  "random": {"unseen", "less noisy"},
  "circular": {"unseen", "noisier", "less noisy"},
  "mirrored": {"unseen", "noisier", "less noisy"},
}


@every_operator
def test_ddrm_transition_is_the_published_one(name):
  operator = OPERATORS[name]()
  observation = measured(operator, normal((2, *SHAPE), 0))
  x, x0 = normal((2, 3, 2, *SHAPE), 2)
  key, options = jax.random.key(3), dict(eta=0.7, eta_data=0.8, threshold=0.1)
  step = jax.jit(functools.partial(ddrm_sampler.transition, **options))
  found = step(key, operator.svd(), observation, x, x0, LEVEL)
  noise = jax.random.normal(key, x.shape)
  expected, cases = published(operator, observation, x, x0, noise, **options)
  assert cases == CASES[name]
  np.testing.assert_allclose(flat(found), expected, atol=FLOAT32_STEP)


@every_operator
def test_ddrm_starts_at_the_data_where_it_is_less_noisy(name):
  operator, sigma = OPERATORS[name](), 0.5
  observation = measured(operator, normal((2, *SHAPE), 0))
  noise = normal((3, 2, *SHAPE), 2)
  start = oracles.quick_jit(ddrm_sampler.start)
  found = start(operator.svd(), observation, noise, jnp.float32(sigma), 0.1)
  u, s, vt, y = dense_svd(operator, observation)
  seen = (s > 0.1) & (s * sigma > NOISE)
  assert 0 < seen.sum() < D
  inverse = np.where(seen, 1 / np.where(seen, s, 1), 0)
  data = np.zeros((2, D))
  data[:, : u.shape[1]] = y @ u
  spread = (sigma**2 - (NOISE * inverse) ** 2) ** 0.5
  expected = (inverse * data + spread * (flat(noise) @ vt.T)) @ vt
  np.testing.assert_allclose(flat(found), expected, atol=FLOAT32_STEP)


def white_about(truth, draws, variance):
  """Whether [n, D] draws have this mean and variance, and no correlation.

  Five standard errors over D means, variances and D^2 / 2 correlations.
  """
  count = len(draws)
  error = (draws.mean(0) - truth) * (count / variance) ** 0.5
  assert np.abs(error).max() < 5, error
  ratio = draws.var(0, ddof=1) / variance
  assert np.abs(ratio - 1).max() < 5 * (2 / count) ** 0.5, ratio
  pairs = np.corrcoef(draws.T)[np.triu_indices(D, 1)]
  assert np.abs(pairs).max() < 5 / count**0.5


def redraw(operator, step, level=LEVEL):
  """1000 states after a step with the truth for x0, whatever y and x are."""
  count, truth = 1000, normal((1, *SHAPE), 0)
  clean = operator.forward(truth)
  y = clean + NOISE * normal((count, *clean.shape[1:]), 1)
  observation = Observation(y, operator, NOISE)
  x0 = jnp.broadcast_to(truth, (1, count, *SHAPE))
  x = x0 + level.sigma * normal(x0.shape, 2)
  after = oracles.quick_jit(step)(jax.random.key(3), observation, x, x0)
  return flat(truth)[0], flat(after)[0]


@every_operator
def test_ddrm_keeps_the_noise_of_the_level(name):
  """Theorem 1: whatever eta, x' is the truth plus sigma' n over x and y."""
  operator = OPERATORS[name]()

  def step(key, observation, x, x0):
    return ddrm_sampler.transition(
      key,
      observation.operator.svd(),
      observation,
      x,
      x0,
      LEVEL,
      eta=0.6,
      eta_data=0.7,
      threshold=0.1,
    )

  white_about(*redraw(operator, step), FOLLOWING**2)


def ddrm_law(spectrum, transfer, y, config):
  """Mean and variance of every Fourier coefficient of x, in float64.

  With a Gaussian prior each coefficient is multiplied, shifted and noised;
  y is the coefficient of the data, divided by the transfer's phase.
  """
  s, kept = np.abs(transfer), (1 - config.eta**2) ** 0.5
  nodes = schedule.ddpm(config.levels)
  seen = (s > config.threshold) & (s * nodes[0] > NOISE)
  inverse = np.where(seen, 1 / np.where(seen, s, 1), 0)
  mean, variance = inverse * y, nodes[0] ** 2 - (NOISE * inverse) ** 2
  for sigma, following in itertools.pairwise(nodes):
    w = spectrum / (spectrum + sigma**2)
    drift = kept * following / sigma
    cases = [s <= config.threshold, s * following < NOISE]
    safe = np.where(s > 0, s, 1)
    step = np.select(
      cases,
      [w + drift * (1 - w), w * (1 - kept * following * s / NOISE)],
      w * (1 - config.eta_data),
    )
    shift = np.select(
      cases, [0 * y, kept * following * y / NOISE], config.eta_data * y / safe
    )
    fresh = np.where(cases[1], 0, config.eta_data * NOISE / safe) ** 2
    added = np.where(
      cases[0] | cases[1], (config.eta * following) ** 2, following**2 - fresh
    )
    mean, variance = step * mean + shift, step**2 * variance + added
  return mean, variance


def test_samples_have_the_transfer_function_of_the_steps():
  """A whole run with a Gaussian prior and circular blur, by coefficient."""
  spectrum = priors.power_law_spectrum(*SIZE, pixel_std=0.5, exponent=1.5)
  prior = priors.gaussian_prior(spectrum)
  operator = OPERATORS["circular"]()
  observation = measured(operator, prior.sample(jax.random.key(0), (1,), 1))
  config = baselines.DDRMConfig(
    levels=12, eta=0.8, eta_data=0.9, threshold=0.15
  )
  sampler = baselines.ddrm(config)
  samples, info = run(
    sampler, prior.denoise, observation, jax.random.key(1), num_samples=1024
  )
  transfer = np.asarray(operator.transfer, np.complex128)
  y = np.fft.fft2(np.asarray(observation.y, np.float64)[0, ..., 0])
  phase = transfer / np.abs(transfer)
  law = ddrm_law(np.asarray(spectrum, np.float64), transfer, y / phase, config)
  mean = np.fft.ifft2(law[0]).real[None, ..., None]
  std = jnp.full(SHAPE, np.sqrt(law[1].mean()), jnp.float32)
  error = metrics.normalised_mean_error(
    samples, jnp.asarray(np.float32(mean)), std
  )
  assert error.value < 2 * error.floor, error
  ratio = metrics.variance_ratio(
    samples, jnp.asarray(np.float32(law[1])), bands=4
  )
  off = np.abs(np.append(ratio.bands, ratio.total) - 1)
  spread = np.append(ratio.bands_error, ratio.total_error)
  assert (off < 5 * spread).all() and spread.max() < 0.03, ratio
  assert (info.calls == 1).all() and info.sigma.shape == (12,)


# --- DDNM+ -------------------------------------------------------------------


def test_ddnm_is_ddrm_where_there_is_a_decomposition():
  """At eta_b = 1, bit by bit: the two papers' rules are the same."""
  prior = priors.gaussian_prior(priors.power_law_spectrum(*SIZE))
  operator = OPERATORS["mirrored"]()
  observation = measured(operator, prior.sample(jax.random.key(0), (2,), 1))
  key = jax.random.key(4)
  found, expected = (
    run(sampler, prior.denoise, observation, key, num_samples=2)[0]
    for sampler in (
      baselines.ddnm(baselines.DDNMConfig(levels=5, threshold=0.03)),
      baselines.ddrm(baselines.DDRMConfig(levels=5, threshold=0.03)),
    )
  )
  np.testing.assert_array_equal(found, expected)


def correction(key, observation, x, x0, level=LEVEL, **settings):
  config = baselines.DDNMConfig(**({"eta": 0.6} | settings))
  return ddnm_sampler.correction(key, config, observation, x, x0, level)[0]


def test_ddnm_correction_without_a_decomposition():
  observation = measured(UNDECOMPOSED, normal((2, *SHAPE), 0))
  x, x0 = normal((2, 3, 2, *SHAPE), 2)
  key = jax.random.key(3)
  found = oracles.quick_jit(correction)(key, observation, x, x0)
  first, second, third = jax.random.split(key, 3)
  n1, n2, n3 = (
    flat(jax.random.normal(k, x.shape)) for k in (first, second, third)
  )
  a, y = oracles.dense_operator(UNDECOMPOSED), flat(observation.y)
  c2 = (NOISE / FOLLOWING) ** 2
  data = y - flat(x0) @ a.T + NOISE * n1 + FOLLOWING * n2 @ a.T
  rest = 0.8 * (flat(x) - flat(x0)) / SIGMA + 0.6 * n3
  rhs = data @ a + c2 * FOLLOWING * rest
  shift = np.linalg.solve(a.T @ a + c2 * np.eye(D), rhs[..., None])[..., 0]
  np.testing.assert_allclose(flat(found), flat(x0) + shift, atol=FLOAT32_STEP)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_ddnm_correction_keeps_the_noise_of_the_level(scale):
  """At the largest noise too, where float32 hardly sees the data."""
  level = LEVEL._replace(
    sigma=jnp.float32(scale * SIGMA), following=jnp.float32(scale * FOLLOWING)
  )
  step = functools.partial(correction, level=level)
  draws = redraw(UNDECOMPOSED, step, level)
  white_about(*draws, (scale * FOLLOWING) ** 2)


def test_ddnm_correction_becomes_the_pseudo_inverse():
  """c -> 0: A x' is y plus noise, and the rest is that of DDIM."""
  operator = OPERATORS["resize"]()
  observation = measured(operator, normal((2, *SHAPE), 0))
  observation = dataclasses.replace(observation, noise_std=3e-3)
  x, x0 = normal((2, 1, 2, *SHAPE), 2)
  exact = functools.partial(correction, eta=0.0, threshold=1e-3)
  found = oracles.quick_jit(exact)(jax.random.key(3), observation, x, x0)
  a = oracles.dense_operator(operator)
  inverse = np.linalg.pinv(a)
  null = np.eye(D) - inverse @ a
  noise = jax.random.normal(jax.random.split(jax.random.key(3), 3)[1], x.shape)
  start = flat(x0) + (flat(observation.y) - flat(x0) @ a.T) @ inverse.T
  fresh = FOLLOWING * flat(noise) @ (inverse @ a).T
  kept = FOLLOWING / SIGMA * (flat(x) - flat(x0)) @ null.T
  # What is left of the noise, 3e-3 over singular values of at least 0.3.
  np.testing.assert_allclose(flat(found), start + fresh + kept, atol=0.05)


def test_ddnm_correction_ends_in_the_clean_image():
  observation = measured(UNDECOMPOSED, normal((2, *SHAPE), 0))
  x, x0 = normal((2, 1, 2, *SHAPE), 2)
  last = LEVEL._replace(following=jnp.float32(0))
  ended = functools.partial(correction, level=last)
  found = oracles.quick_jit(ended)(jax.random.key(0), observation, x, x0)
  np.testing.assert_array_equal(found, x0)


# --- Refusals and traces -----------------------------------------------------


def refused_before_compiling(operator, sentence):
  def denoise(x, sigma):
    raise AssertionError("reached")

  y = jnp.zeros((1, *operator.measurement_shape))
  with oracles.refused(ValueError, sentence):
    run(
      baselines.ddrm(),
      denoise,
      Observation(y, operator, NOISE),
      jax.random.key(0),
    )


def test_ddrm_refuses_what_has_no_decomposition():
  refused_before_compiling(
    UNDECOMPOSED, "ddrm cannot use this operator: svd needs boundary"
  )
  banded = Banded(OPERATORS["circular"](), jnp.ones(SIZE))
  refused_before_compiling(
    banded, "ddrm needs an operator with a singular value .* got Banded"
  )


@pytest.mark.parametrize("name", ["mirrored", "circular"])
def test_a_new_kernel_does_not_retrace(name):
  traces = []

  def denoise(x, sigma):
    traces.append(x.shape)
    return x / (1 + sigma[:, None, None, None] ** 2)

  sampler = baselines.ddrm(baselines.DDRMConfig(levels=2))
  operator = OPERATORS[name]()
  scaled = jax.tree.map(lambda leaf: 0.9 * leaf, operator)
  found = [
    run(
      sampler, denoise, measured(a, normal((1, *SHAPE), 0)), jax.random.key(0)
    )
    for a in (operator, scaled)
  ]
  assert len(traces) == 1
  assert np.abs(found[0][0] - found[1][0]).max() > 1e-3
