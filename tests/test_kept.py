"""Means by one product under a guess, and noise that is kept beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  NFCConfig,
  Observation,
  nfc,
  operators,
  priors,
  run,
)
from posterior_jax.likelihood import covariance as by_products
from posterior_jax.linalg import fourier, krylov
from posterior_jax.nfc_sampler import (
  Exact,
  Jacobian,
  Langevin,
  Mean,
  Schedule,
  Sigma,
  Spectrum,
  compose,
  levels_of,
  parts_of,
  states,
)
from tests import oracles
from tests.small_gaussian import NOISE, SHAPE, normal, width

OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SHAPE[:2]))


def _problem(name):
  """An observation, A on vectors and the misfit of a centre, float64."""
  operator = OPERATORS[name]()
  y = normal((1, *operator.measurement_shape), 3) * operator.observed
  a = oracles.dense_operator(operator)
  centre = normal((1, 1, *SHAPE), 4)
  r = np.asarray(y, np.float64).ravel() - a @ np.asarray(centre).ravel()
  return Observation(y, operator, jnp.float32(NOISE)), centre, a, r


def _guessed(observation, centre, variance, guess, iterations):
  return by_products.guessed_mean(
    observation,
    centre,
    lambda v: fourier.apply_transfer(v, variance),
    jnp.float32(guess),
    tolerance=1e-7,
    max_iterations=iterations,
    guess_tolerance=1e-6,
  )


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("guess", [0.02, 0.5])
def test_one_product_goes_as_far_as_is_best(name, guess, prior):
  """z = c + t C A^T p, p = (A G A^T + s^2)^-1 r, where the target is least."""
  observation, centre, a, r = _problem(name)
  z, _, products = _guessed(observation, centre, width(prior), guess, 1)
  # F^-1 C F as a matrix, whose inverse the tie of the target is.
  c = oracles.fourier_diagonal(np.asarray(width(prior), np.float64))
  eye = np.eye(len(r))
  p = np.linalg.solve(guess * a @ a.T + NOISE**2 * eye, r)
  k = a @ c @ a.T + NOISE**2 * eye
  lead = (p @ r) / (p @ k @ p) * c @ a.T @ p
  assert int(products) == 1
  np.testing.assert_allclose(
    np.ravel(z - centre), lead, atol=1e-4 * np.abs(lead).max()
  )


@pytest.mark.parametrize("name", OPERATORS)
def test_many_products_are_the_mean(name, prior):
  observation, centre, a, r = _problem(name)
  z, info, products = _guessed(observation, centre, width(prior), 0.1, 60)
  c = oracles.fourier_diagonal(np.asarray(width(prior), np.float64))
  k = a @ c @ a.T + NOISE**2 * np.eye(len(r))
  shift = c @ a.T @ np.linalg.solve(k, r)
  np.testing.assert_allclose(np.ravel(z - centre), shift, atol=1e-4)
  assert int(products) == int(info.iterations) < 60
  assert info.relative_residual < 1e-5


def test_the_guess_is_solved_under_little_noise():
  """A mirrored motion blur has no closed form, and (r - A d) / s^2 is small."""
  noise, guess = 0.01, 0.06
  operator = operators.motion_blur((12, 12, 1), np.eye(5, dtype="f") / 5)
  a = oracles.dense_operator(operator)
  truth = np.cumsum(np.random.default_rng(0).normal(size=(12, 12)), 1) / 3
  r = a @ truth.ravel()
  observation = Observation(
    jnp.float32(r).reshape(1, 12, 12, 1), operator, jnp.float32(noise)
  )
  z, *_ = by_products.guessed_mean(
    observation,
    jnp.zeros((1, 1, 12, 12, 1)),
    lambda v: 0.5 * v,
    jnp.float32(guess),
    tolerance=1e-7,
    max_iterations=1,
  )
  gram = a @ a.T
  p = np.linalg.solve(guess * gram + noise**2 * np.eye(len(r)), r)
  k = 0.5 * gram + noise**2 * np.eye(len(r))
  lead = (p @ r) / (p @ k @ p) * 0.5 * a.T @ p
  off = np.linalg.norm(np.ravel(z) - lead) / np.linalg.norm(lead)
  assert off < 0.02, off


def test_a_guess_that_is_right_needs_one_product():
  observation, centre, *_ = _problem("blur")
  white = jnp.full(SHAPE[:2], 0.3)
  z, info, _ = _guessed(observation, centre, white, 0.3, 1)
  exact, *_ = _guessed(observation, centre, white, 0.1, 60)
  np.testing.assert_allclose(z, exact, atol=1e-4)
  assert info.relative_residual < 1e-4


def test_a_direction_of_no_variance_is_no_long_one():
  """Of a Jacobian that is no covariance: no longer than s^-2 would be."""
  observation, centre, a, r = _problem("random")
  size = int(np.prod(SHAPE))
  near = -(NOISE**2) * (1 - 1e-3)  # K + s^2 all but vanishes
  z, *_ = by_products.guessed_mean(
    observation,
    centre,
    lambda v: near * v,
    jnp.float32(0.1),
    tolerance=1e-7,
    max_iterations=1,
  )
  # p is r over 0.1 + s^2, the longest shift |near| / s^2 of it.
  seen = np.linalg.norm(a.T @ r)
  assert np.linalg.norm(z - centre) <= seen * (1 + 1e-4)
  assert size == 64


def test_elements_stop_on_their_own():
  """Whatever else is in the batch; 0 has nothing to solve."""
  gains = jnp.linspace(0.1, 4.0, 64).reshape(SHAPE)
  b = jnp.stack([normal(SHAPE), jnp.zeros(SHAPE), 1e3 * normal(SHAPE, 1)])

  def solved(b):
    return krylov.carrying(
      lambda v: ((gains + 0.01) * v, gains * v),
      b,
      b,
      least=0.01,
      tolerance=1e-3,
      max_iterations=50,
    )[0]

  together = solved(b)
  np.testing.assert_array_equal(together[1], 0)
  for i in (0, 2):
    np.testing.assert_allclose(
      together[i], solved(b[i : i + 1])[0], rtol=1e-4, atol=1e-4
    )


def _config(**schedule):
  return NFCConfig(
    levels=4,
    schedule=Schedule(sigma_max=2.0, sigma_min=0.1, noise="kept", **schedule),
    width=Jacobian(guess=Sigma(1.0, most=0.5)),
    inner=Mean(),
  )


def test_a_level_keeps_the_state_s_noise(prior):
  """x' = z + sigma' / sigma (x - z), z further than the mean."""
  observation, *_ = _problem("blur")
  config = _config(renewal=0.0).replace(levels=2, schedule={"relaxation": 2.0})
  sampler = compose(parts_of(config), levels_of(config))
  levels = levels_of(config)

  @oracles.quick_jit
  def both(state, level):
    """What a step should make of a state, and what it makes."""
    x0 = prior.denoise(state.x[:, 0], jnp.full(3, level.sigma))[:, None]
    own = prior.spectrum / (prior.spectrum + level.sigma**2) * level.sigma**2
    z, *_ = by_products.guessed_mean(
      observation,
      x0,
      lambda v: fourier.apply_transfer(v, own),
      jnp.minimum(level.sigma**2, 0.25),
      tolerance=1e-2,
      max_iterations=1,
    )
    z = jnp.where(level.following > 0, x0 + 2 * (z - x0), z)
    expected = z + level.following / level.sigma * (state.x - z)
    key = jax.random.key(1)
    return expected, sampler.step(state, prior.denoise, observation, key)

  state = sampler.init(jax.random.key(0), observation, 3)
  for number in range(2):
    level = jax.tree.map(lambda entry, i=number: entry[i], levels)
    expected, (state, info) = both(state, level)
    np.testing.assert_allclose(state.x, expected, atol=2e-4)
    assert int(info.products) == 1 and int(info.calls) == 1


@pytest.mark.parametrize("renewal", [0.0, 1.0, 1.5])
def test_what_is_drawn_does_not_depend_on_the_levels_between(renewal):
  """k = (sigma' / sigma)^(r^2) of the noise is kept, in one step or in two."""
  x = 2.0 * normal((40_000, 1, 1, 1))
  part = states.keeping(renewal)
  level = jax.tree.map(lambda entry: entry[0], levels_of(_config()))

  def step(x, sigma, following, seed):
    now = level._replace(sigma=sigma, following=following)
    return part(jax.random.key(seed), x, jnp.zeros_like(x), now)

  once = step(x, 2.0, 0.5, 0)
  twice = step(step(x, 2.0, 1.0, 1), 1.0, 0.5, 2)
  for found in (once, twice):
    moments = np.cov(np.ravel(x) / 2.0, np.ravel(found) / 0.5)
    # Five standard errors of 40 000 draws.
    np.testing.assert_allclose(moments[1, 1], 1, atol=0.035)
    np.testing.assert_allclose(moments[0, 1], 0.25**renewal**2, atol=0.035)


@pytest.mark.parametrize("renewal", [0.0, 1.5])
@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_another_pass_begins_anew(sigma, renewal):
  """All of its noise is drawn, be it no more than a pass of one level had."""
  part = states.keeping(renewal)
  level = jax.tree.map(lambda entry: entry[0], levels_of(_config()))
  level = level._replace(sigma=sigma, following=3.0, anew=1.0)
  image = normal((2000, 1, 1, 1), 5)
  found, other = (
    part(jax.random.key(0), x, image, level) for x in (image, image + 9.0)
  )
  np.testing.assert_array_equal(found, other)
  # Five standard errors of 2000 draws.
  np.testing.assert_allclose(jnp.std(found - image), 3.0, rtol=0.08)


def test_passes_are_runs_whose_predictions_are_averaged(prior):
  """Twelve know nothing of each other: the spread is sqrt(12) smaller."""
  observation, *_ = _problem("blur")
  spreads, means = [], []
  for passes in (1, 12):
    config = _config(renewal=1.0).replace(
      levels=30,
      schedule={
        "sigma_max": 10.0,
        "sigma_min": 0.1,
        "passes": passes,
        "held": 0.001,
        "averaged": "predicted",
      },
    )
    sampler = nfc(config)
    key = jax.random.key(1)
    x, _ = run(sampler, prior.denoise, observation, key, num_samples=16)
    assert sampler.num_steps == 30 * passes
    spreads.append(np.asarray(x).std(axis=0).mean())
    means.append(np.asarray(x).mean(axis=0))
  np.testing.assert_allclose(spreads[0] / spreads[1], 12**0.5, rtol=0.1)
  # Both to the same image, within three standard errors.
  off = np.sqrt(((means[0] - means[1]) ** 2).mean())
  assert off < 3 * spreads[0] / 16**0.5, off


def test_passes_of_one_level_are_not_one_pass(prior):
  """Each takes another noise; all of them made the image of the first."""
  observation, *_ = _problem("random")
  found = []
  for passes in (1, 2):
    config = NFCConfig.guided(levels=1, schedule={"passes": passes})
    sampler = nfc(config, spectrum=prior.spectrum)
    key = jax.random.key(1)
    found.append(run(sampler, prior.denoise, observation, key)[0])
  assert np.abs(found[1] - found[0]).max() > 1e-3


def test_held_levels_that_tell_nothing_apart_are_refused():
  """Their state is one, and so is its prediction, unless it is turned."""
  with oracles.refused(
    ValueError,
    "held must hold at most one level of a pass .*, got 0.6, which holds 6",
  ):
    NFCConfig.guided(levels=10, schedule={"held": 0.6})
  turned = NFCConfig.guided(
    levels=10, schedule={"held": 0.6}, predictor={"turned": True}
  )
  assert turned.held_levels == 6


@pytest.mark.slow
def test_samples_are_of_the_posterior():
  """Under a Gaussian prior, to what 200 levels leave."""
  size = (8, 8)
  prior = priors.gaussian_prior(priors.power_law_spectrum(*size))
  operator = operators.gaussian_blur(
    SHAPE, size=5, std=1.0, boundary="circular"
  )
  truth = prior.sample(jax.random.key(0), (1,), 1)
  y = operator.forward(truth) + NOISE * normal(truth.shape)
  observation = Observation(y, operator, NOISE)
  mean, covariance = oracles.gaussian_posterior(prior, observation)
  variance = oracles.coefficient_variances(covariance, size)
  for renewal in (0.3, 1.0):
    config = _config(renewal=renewal).replace(
      levels=200, schedule={"sigma_max": 20.0, "sigma_min": 0.02}
    )
    x, _ = run(
      nfc(config),
      prior.denoise,
      observation,
      jax.random.key(1),
      num_samples=500,
    )
    error = np.asarray(x)[:, 0, ..., 0] - np.reshape(mean, size)
    off = np.sqrt((error.mean(0) ** 2).sum() / variance.sum())
    ratio = (np.abs(np.fft.fft2(error, norm="ortho")) ** 2).mean(0) / variance
    assert off < 0.15, off
    assert 0.85 < np.median(ratio) < 1.1, np.median(ratio)


def test_a_factor_is_less_noise_of_the_measurement(prior):
  """f C under s moves as far as C under s / sqrt(f)."""
  observation, *_ = _problem("resize")
  found = []
  for config in (
    _config(renewal=0.5).replace(width={"factor": 4.0}),
    _config(renewal=0.5).replace(inner_noise_std=NOISE / 2),
  ):
    found.append(
      run(nfc(config), prior.denoise, observation, jax.random.key(0))[0]
    )
  np.testing.assert_allclose(*found, atol=2e-3)


def test_a_run_starts_under_all_of_the_noise():
  """Whatever share of it is drawn anew between levels."""
  observation, *_ = _problem("random")
  spectrum = priors.power_law_spectrum(*SHAPE[:2])
  parts = parts_of(_config(renewal=0.1, start="measurement"), spectrum)
  level = jax.tree.map(lambda entry: entry[0], levels_of(_config(renewal=0.1)))
  x = parts.start(jax.random.key(0), observation, (2000, 1, *SHAPE), level)
  np.testing.assert_allclose(jnp.std(x, axis=0), 2.0, rtol=0.12)


def test_how_far_a_level_goes_may_be_traced(prior):
  """As the other numbers of a sweep in one program."""
  observation, *_ = _problem("blur")

  def sample(relaxation):
    config = _config(relaxation=relaxation)
    key = jax.random.key(0)
    return run(nfc(config), prior.denoise, observation, key)[0]

  found = jax.jit(sample)(1.5)
  # Two programs, which round otherwise.
  np.testing.assert_allclose(found, sample(1.5), atol=1e-4)
  assert np.abs(found - sample(1.0)).max() > 0.01


def test_runs_depend_on_their_key_alone(prior):
  observation, *_ = _problem("blur")
  sampler = nfc(_config(renewal=0.5))

  def sample(observation, seed):
    key = jax.random.key(seed)
    return run(sampler, prior.denoise, observation, key)[0]

  first = sample(observation, 0)
  np.testing.assert_array_equal(first, sample(observation, 0))
  assert np.abs(first - sample(observation, 1)).max() > 0.01


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (dict(inner=Exact()), "inner must be Mean with a guess of the width"),
    (dict(inner=Langevin()), "inner must be Mean with a guess of the width"),
    (
      dict(inner=Langevin(), width=Spectrum()),
      "inner must be Mean with noise kept, got Langevin",
    ),
    (
      dict(predictor={"discrepancy": 0.5}),
      "discrepancy must be 0.0 with noise kept, got 0.5",
    ),
    (
      dict(schedule={"noise": "added", "renewal": 1.5}),
      r"must lie in \[0, 1\]",
    ),
    (
      dict(schedule={"relaxation": -1.0}),
      r"relaxation must lie in \[0.1, 10\]",
    ),
    (
      dict(schedule={"noise": "filled", "relaxation": 2.0}, width=Sigma()),
      "relaxation must be 1.0 with noise filled, got 2.0",
    ),
    (dict(width={"guess": 0.3}), "guess must be one of Sigma, None; got 0.3"),
  ],
)
def test_bad_settings_are_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    _config().replace(**changes)
