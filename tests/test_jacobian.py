"""The width from the denoiser: its products, square root, draws and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import NFCConfig, Observation, nfc, operators, priors, run
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import bands
from posterior_jax.likelihood import covariance as by_products
from posterior_jax.likelihood import gaussian as by_spectrum
from posterior_jax.linalg import fourier, krylov
from posterior_jax.nfc_sampler import (
  Exact,
  Jacobian,
  Langevin,
  Mean,
  Ode,
  Probed,
  Sigma,
)
from posterior_jax.nfc_sampler.width import corrected_variance
from tests import oracles
from tests.small_gaussian import NOISE, SHAPE, SIGMA, normal, width


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SHAPE[:2]))


def test_products_are_those_of_the_closed_form(prior):
  x0, covariance = predictor.linearise(
    prior.denoise, normal((2, 3, *SHAPE)), jnp.float32(SIGMA)
  )
  assert x0.shape == (2, 3, *SHAPE)
  v = normal((2, 3, *SHAPE), 1)
  expected = fourier.apply_transfer(v, width(prior))
  np.testing.assert_allclose(covariance(v), expected, atol=1e-5)


def test_products_are_the_covariance_of_a_mixture():
  """sigma^2 J = Cov[x0 | x], from the exact posterior of a denoising."""
  keys = jax.random.split(jax.random.key(0), 2)
  means = 0.3 * jax.random.normal(keys[0], (4, 2, 3, 1))
  prior = priors.gaussian_mixture(
    jnp.ones(4), means, jnp.array([0.3, 0.5, 0.4, 0.2])
  )
  x = 0.5 * jax.random.normal(keys[1], (1, 2, 3, 1))
  exact = priors.mixture_posterior(prior, jnp.eye(6), x.ravel(), SIGMA)
  offset = exact.means - exact.mean
  between = jnp.einsum("k,ki,kj->ij", exact.weights, offset, offset)
  within = jnp.einsum("k,kij->ij", exact.weights, exact.covariances)

  @oracles.quick_jit
  def linearised(x):
    x0, covariance = predictor.linearise(prior.denoise, x, jnp.float32(SIGMA))
    basis = jnp.eye(6).reshape(6, *x.shape)
    return x0, jax.lax.map(covariance, basis).reshape(6, 6)

  x0, columns = linearised(x)
  np.testing.assert_allclose(x0.ravel(), exact.mean, atol=1e-5)
  np.testing.assert_allclose(columns, between + within, atol=1e-5)


def rooted(covariance, x, steps):
  return oracles.quick_jit(lambda x: krylov.root(covariance, x, steps))(x)


def test_root_is_the_square_root(prior):
  """Eigenvalues down to 1/500 of the largest; the error falls with steps."""
  variance = width(prior)
  x = normal((2, 3, *SHAPE))
  expected = fourier.apply_transfer(x, jnp.sqrt(variance))

  def error(steps):
    found = rooted(lambda v: fourier.apply_transfer(v, variance), x, steps)
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())

  errors = [error(steps) for steps in (3, 6, 12, 24)]
  assert errors[0] > 3 * errors[1] > 9 * errors[2], errors
  assert errors[-1] < 1e-5


def test_root_of_what_has_few_eigenvalues():
  """Exact at their number, and nothing breaks once the space is exhausted."""
  gains = jnp.tile(jnp.array([0.0, 1.0, 0.01, 9.0]), 16).reshape(SHAPE)
  x = normal((3, *SHAPE))
  for steps in (4, 12):
    found = rooted(lambda v: gains * v, x, steps)
    # Half the digits of float32: the root of what rounding leaves of a zero.
    np.testing.assert_allclose(found, jnp.sqrt(gains) * x, atol=4e-3)
  found = rooted(lambda v: 4.0 * v, x, 5)
  np.testing.assert_allclose(found, 2.0 * x, atol=1e-5)
  found = rooted(lambda v: 0.0 * v, x, 5)
  np.testing.assert_array_equal(found, jnp.zeros_like(x))


OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


def observe(name, banded):
  operator = OPERATORS[name]()
  y = normal((1, *operator.measurement_shape), 3)
  observation = Observation(y, operator, jnp.float32(NOISE))
  if not banded:
    return observation
  band = bands.radial_band(y.shape[1:3], jnp.float32(0.5), "butterworth")
  weight = bands.weight(band, jnp.float32(0.9), "convex")
  return bands.apply_band(observation, weight)


CASES = [
  pytest.param("resize", False, marks=pytest.mark.slow),
  ("random", True),
]


@pytest.mark.parametrize(("name", "banded"), CASES)
def test_draws_are_those_of_the_spectral_target(name, banded, prior):
  """Against the exact law of the target with the same width in Fourier space.

  Its mean by `by_spectrum.mean`, its covariance dense in float64.
  """
  count = 1500
  observation = observe(name, banded)
  centre = jnp.tile(normal((1, 1, *SHAPE), 4), (count, 1, 1, 1, 1))
  variance = width(prior)
  z, info, products = jax.jit(
    lambda key: by_products.draw(
      key,
      observation,
      centre,
      lambda v: fourier.apply_transfer(v, variance),
      root_steps=24,
      tolerance=1e-5,
      max_iterations=200,
    )
  )(jax.random.key(0))
  assert info.relative_residual < 1e-4
  assert int(products) == 24 + int(info.iterations)
  target = by_spectrum.Target(observation, centre[:1], variance)
  mean, _ = by_spectrum.mean(target, tolerance=1e-6, max_iterations=500)
  a = oracles.dense(
    lambda x: np.asarray(
      observation.operator.forward(jnp.asarray(np.float32(x))[..., None]),
      np.float64,
    ),
    SHAPE[:2],
  )
  tie = oracles.fourier_diagonal(1 / np.asarray(variance, np.float64))
  white = np.linalg.cholesky(a.T @ a / NOISE**2 + tie).T
  draws = np.asarray(z - mean, np.float64).reshape(count, -1)
  unit = draws @ white.T  # standard normal if the draw is exact
  # Largest of 64 means and of 64 x 64 moments, at 5 standard errors.
  assert np.abs(unit.mean(0)).max() < 5 / np.sqrt(count)
  moments = unit.T @ unit / count - np.eye(len(white))
  assert np.abs(moments).max() < 5 * np.sqrt(2 / count)


def test_mean_is_that_of_the_spectral_target(prior):
  observation = observe("blur", False)
  centre, variance = normal((2, 1, *SHAPE), 4), width(prior)
  found, info, products = by_products.mean(
    observation,
    centre,
    lambda v: fourier.apply_transfer(v, variance),
    tolerance=1e-6,
    max_iterations=200,
  )
  target = by_spectrum.Target(observation, centre, variance)
  expected, _ = by_spectrum.mean(target, tolerance=1e-6, max_iterations=500)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert int(products) == int(info.iterations)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_one_probe_puts_a_width_right(factor, prior):
  """Exact in every half octave, whatever its factor; bounded beyond 8."""
  shape = (2, 1, *SHAPE)
  radius = fourier.radial_frequency(*SHAPE[:2]) * SHAPE[0]
  wrong = width(prior) * jnp.where(jnp.asarray(radius) < 2, factor, 2.0)

  def covariance(v):
    return fourier.apply_transfer(v, width(prior))

  found = corrected_variance(
    jax.random.key(0), covariance, wrong, jnp.zeros(shape)
  )
  np.testing.assert_allclose(found[0, ..., 0], width(prior), rtol=1e-4)
  channels = jnp.stack([wrong, wrong], -1)
  found = corrected_variance(
    jax.random.key(0), covariance, channels, jnp.zeros((3, 1, *SHAPE[:2], 2))
  )
  np.testing.assert_allclose(found[0, ..., 1], width(prior), rtol=1e-4)
  far = corrected_variance(
    jax.random.key(0), lambda v: -v, wrong, jnp.zeros(shape)
  )
  np.testing.assert_allclose(far[0, ..., 0], wrong / 8, rtol=1e-6)


def test_a_probe_is_for_one_observation_alone(prior):
  """Two observations of different widths, three samples each."""
  true = width(prior)
  factors = jnp.array([0.5, 3.0]).reshape(2, 1, 1, 1)

  def covariance(v):
    return factors * fourier.apply_transfer(v, true)

  found = corrected_variance(
    jax.random.key(0), covariance, true, jnp.zeros((3, 2, *SHAPE))
  )
  assert found.shape == (2, *SHAPE)
  np.testing.assert_allclose(found, factors * true[..., None], rtol=1e-4)


def _nearly_positive(kind):
  """[3, 16, 16] matrices; what stands for a network's Jacobian is "skewed"."""
  rng = np.random.default_rng(0)
  a = rng.standard_normal((3, 16, 16))
  positive = a @ a.transpose(0, 2, 1) / 16 + 0.1 * np.eye(16)
  return {
    "positive": positive,
    "skewed": positive + 0.3 * (a - a.transpose(0, 2, 1)),
    "indefinite": a + a.transpose(0, 2, 1),
    "unsymmetric": a,
    "zero": 0 * a,
  }[kind]


@oracles.quick_jit
def _solved(matrices, b, steps):
  """Image, iterations and residual; one program for all matrices and steps."""

  def matrix(x):
    return jnp.einsum("bij,bj->bi", matrices, x.reshape(3, 16)).reshape(b.shape)

  lead, x, iterations = krylov.minimal_residual(
    lambda v: (matrix(v), 2 * v), b, b, tolerance=1e-5, max_iterations=steps
  )
  return x, iterations, b - matrix(x), lead


@pytest.mark.parametrize(
  "kind", ["positive", "skewed", "indefinite", "unsymmetric", "zero"]
)
def test_residuals_never_grow(kind):
  """Whatever the matrix; and a positive one is solved."""
  matrices = jnp.asarray(np.float32(_nearly_positive(kind)))
  b = normal((3, 4, 4, 1))
  last = np.linalg.norm(b.reshape(3, 16), axis=1)
  for steps in (1, 2, 3, 5, 8, 16, 40):
    x, iterations, left, lead = _solved(matrices, b, steps)
    assert np.isfinite(x).all() and iterations <= steps
    np.testing.assert_allclose(lead, 2 * x, rtol=1e-4, atol=1e-4)
    size = np.linalg.norm(np.reshape(left, (3, 16)), axis=1)
    assert (size <= last * (1 + 1e-4) + 1e-6).all()
    last = size
  if kind == "positive":
    assert (last < 1e-4 * np.linalg.norm(b.reshape(3, 16), axis=1)).all()


def test_a_solve_does_not_depend_on_its_batch():
  matrices = jnp.asarray(np.float32(_nearly_positive("skewed")))
  b = normal((3, 4, 4, 1))

  def solved(number):
    def matrix(x):
      rows = jnp.einsum("bij,bj->bi", matrices[number], x.reshape(-1, 16))
      return rows.reshape(x.shape), x

    own = b[number]
    return krylov.minimal_residual(
      matrix, own, own, tolerance=1e-3, max_iterations=30
    )[0]

  together = solved(np.array([0, 1, 2]))
  for i in range(3):
    np.testing.assert_allclose(
      together[i], solved(np.array([i]))[0], atol=1e-4, rtol=1e-4
    )


def test_who_meets_no_curvature_stays_where_it_is():
  """However many iterations others take, as under a baseline's solver."""
  gains = np.where(np.arange(16) % 3 == 0, -0.3, 1.0) / (1 + np.arange(16))
  gains = jnp.asarray(np.float32(gains.reshape(4, 4, 1)))
  b = normal((3, 4, 4, 1))

  def solved(steps):
    return krylov.carrying(
      lambda v: ((gains + 0.0025) * v, gains * v),
      b,
      b,
      tolerance=1e-6,
      max_iterations=steps,
    )[0]

  many = solved(200)
  assert np.isfinite(many).all()
  np.testing.assert_array_equal(many, solved(100))


def test_the_residual_is_that_of_the_answer():
  """Where float32 has run out the solver's own goes on to fall."""
  operator = operators.random_inpainting(SHAPE, fraction=0.3)
  y = normal((1, *operator.measurement_shape), 3)
  observation = Observation(y, operator, jnp.float32(1e-2))
  rank = np.float32(np.random.default_rng(1).standard_normal((64, 5)))
  spread = jnp.asarray(rank @ rank.T)

  def covariance(v):
    return (v.reshape(1, 1, 64) @ spread).reshape(v.shape)

  centre = jnp.zeros((1, 1, *SHAPE))
  _, info, _ = by_products.mean(
    observation,
    centre,
    covariance,
    tolerance=1e-6,
    max_iterations=300,
    restrained=False,
  )
  assert info.iterations < 300  # its own residual came to 1e-6
  assert 5e-6 < info.relative_residual < 1e-3


@pytest.mark.parametrize("name", ["negative", "turned", "indefinite"])
def test_what_is_no_covariance_adds_to_no_misfit(name):
  """Networks' Jacobians are not quite symmetric or positive."""
  observation = observe("random", False)
  size = int(np.prod(SHAPE))
  near = -(NOISE**2) * (1 + 1e-3)  # K + s^2 all but vanishes
  turn = np.kron(np.eye(size // 2), [[0, 1], [-1, 0]])
  signs = np.where(np.arange(size) % 4 < 2, 1, -1)
  wrong = {
    "negative": near * np.eye(size),
    "turned": near * np.eye(size) + 1e-3 * turn,
    "indefinite": near * np.diag(signs),
  }[name]

  def covariance(v):
    return (v.reshape(1, 1, size) @ jnp.asarray(wrong, v.dtype)).reshape(
      v.shape
    )

  def misfit(z):
    return float(
      jnp.linalg.norm(observation.operator.forward(z) - observation.y)
    )

  centre = jnp.zeros((1, 1, *SHAPE))
  before, after = misfit(centre), {}
  for restrained in (True, False):
    z, _, _ = by_products.mean(
      observation,
      centre,
      covariance,
      tolerance=1e-6,
      max_iterations=3,
      restrained=restrained,
    )
    after[restrained] = misfit(z)
  assert after[True] <= before * (1 + 1e-6)
  assert after[False] > 1.05 * before


def test_products_that_are_not_finite_show():
  z, _, _ = by_products.mean(
    observe("random", False),
    jnp.ones((1, 1, *SHAPE)),
    lambda v: v * jnp.nan,
    tolerance=1e-6,
    max_iterations=3,
  )
  assert not np.isfinite(z).all()


@pytest.mark.parametrize(
  "inner", [pytest.param(Exact, marks=pytest.mark.slow), Mean]
)
def test_info_counts_the_products_that_are_made(inner, prior):
  """The denoiser counts its own backward passes on the host."""
  counted = []

  @jax.custom_vjp
  def denoise(x, sigma):
    return prior.denoise(x, sigma)

  def backward(sigma, g):
    jax.debug.callback(lambda: counted.append(1))
    return prior.denoise(g, sigma), jnp.zeros_like(sigma)

  denoise.defvjp(lambda x, sigma: (denoise(x, sigma), sigma), backward)
  config = NFCConfig.calibrated(width=Jacobian(), inner=inner(), levels=2)
  _, info = run(nfc(config), denoise, observe("blur", False), jax.random.key(0))
  jax.effects_barrier()
  assert int(info.products.sum()) == len(counted)
  root = 6 if inner is Exact else 0
  assert int(info.products.max()) <= config.stop.max_iterations + root
  np.testing.assert_array_equal(info.evaluations, 1 + info.products)


@pytest.mark.slow
def test_mixture_posterior_is_sampled_without_a_spectrum():
  """Two modes that the measurement cannot tell apart, and one that it can.

  The exact posterior is known: mode weights and the spread within modes.
  """
  means = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
  prior = priors.gaussian_mixture(
    jnp.array([0.3, 0.5, 0.2]), means.reshape(3, 1, 2, 1), 0.1
  )
  operator = operators.inpainting((1, 2, 1), np.array([[1, 0]]))
  observation = Observation(
    jnp.array([0.95, 0.0]).reshape(1, 1, 2, 1), operator, 0.1
  )
  config = NFCConfig.calibrated(
    width=Jacobian(), levels=60, schedule={"sigma_min": 0.03}
  )
  samples, _ = run(
    nfc(config), prior.denoise, observation, jax.random.key(0), num_samples=4000
  )
  x = np.asarray(samples).reshape(-1, 2)
  upper = x[:, 1] > 0
  # 0.3 : 0.5 by the weights of the two modes that the measurement leaves.
  assert abs(upper.mean() - 0.375) < 0.05
  exact = priors.mixture_posterior(
    prior, jnp.array([[1.0, 0.0]]), jnp.array([0.95]), 0.1
  )
  np.testing.assert_allclose(exact.weights, [0.375, 0.625, 0], atol=1e-6)
  for inside, mode in ((upper, 0), (~upper, 1)):
    error = x[inside].mean(0) - exact.means[mode]
    assert np.abs(error).max() < 0.01
    variance = x[inside].var(0) / np.diag(exact.covariances[mode])
    assert np.abs(variance - 1).max() < 0.12


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (dict(inner=Langevin()), "inner must be Exact or Mean with width Jacobian"),
    (dict(predictor=Ode("heun")), "predictor must be Denoise with width Jaco"),
    (
      dict(width=Probed(), predictor=Ode()),
      "Denoise with width Probed",
    ),
    (dict(inner={"root_steps": 0}), r"must lie in \[1, 1000\] or None, got 0"),
    (
      dict(width=Sigma(), inner={"root_steps": 4}),
      "root_steps must be None unless width is Jacobian, got 4 with Sigma",
    ),
  ],
)
def test_bad_settings_are_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    NFCConfig(width=Jacobian()).replace(**changes)
