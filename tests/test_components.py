"""Bands, wavelet fusion, predictors and the inner target, each on its own."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt

from posterior_jax import NFCConfig, Observation, operators, priors, schedule
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import bands, gaussian
from posterior_jax.linalg import fourier
from posterior_jax.nfc_sampler import fusion
from posterior_jax.nfc_sampler.levels import cosine_blend
from tests import oracles

SHAPE = (8, 8, 1)
NOISE = 0.1


def normal(shape, seed=0):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(np.float32(x))


# Bands


@pytest.mark.parametrize("kind", ["hard", "butterworth", "gaussian"])
def test_radial_band_opens_with_its_cutoff(kind):
  radius = fourier.radial_frequency(12, 10) / np.sqrt(0.5)
  previous = jnp.zeros((12, 10))
  for cutoff in (0.1, 0.4, 1.0):
    band = bands.radial_band((12, 10), jnp.float32(cutoff), kind)
    expected = {
      "hard": radius <= cutoff,
      "butterworth": 1 / np.sqrt(1 + (radius / cutoff) ** 8),
      "gaussian": np.exp(-0.5 * (radius / cutoff) ** 2),
    }[kind]
    np.testing.assert_allclose(band, expected, atol=1e-6)
    assert (band >= previous).all() and band[0, 0] == 1
    previous = band
  if kind == "hard":
    assert (previous == 1).all()


@pytest.mark.parametrize("shape", [(8, 8), (2, 2), (4, 8)])
def test_snr_band_is_the_priors_share(shape):
  """On a reduced measurement, frequency by frequency of the image's grid."""
  spectrum = priors.power_law_spectrum(8, 8)
  band = bands.snr_band(spectrum, shape, jnp.float32(0.3))
  for row, fy in enumerate(np.fft.fftfreq(shape[0]) * shape[0]):
    for column, fx in enumerate(np.fft.fftfreq(shape[1]) * shape[1]):
      power = float(spectrum[int(fy) % 8, int(fx) % 8])
      expected = power / (power + 0.09)
      np.testing.assert_allclose(band[row, column], expected, rtol=1e-5)
  assert (bands.snr_band(spectrum, shape, jnp.float32(1e-4)) > 0.999).all()


def test_blend_weights():
  progress = schedule.progress(np.array([8.0, 4.0, 1.0]), "log_sigma")
  np.testing.assert_allclose(progress, [0, 1 / 3, 1])
  steps = schedule.progress(np.array([8.0, 4.0, 1.0]), "step")
  np.testing.assert_allclose(steps, [0, 0.5, 1])
  assert schedule.progress(np.array([8.0]), "step").tolist() == [1.0]
  blend = cosine_blend(0.35, steps)
  np.testing.assert_allclose(blend, [0.35, 0.175, 0], atol=1e-12)
  band, mix = jnp.asarray([0.0, 0.5, 1.0]), jnp.float32(0.4)
  convex = bands.weight(band, mix, "convex")
  np.testing.assert_allclose(convex, [0.6, 0.7, 1.0], rtol=1e-6)
  additive = bands.weight(band, mix, "additive")
  np.testing.assert_allclose(additive, [1.0, 1.1, 1.4], rtol=1e-6)


# Wavelets

every_wavelet = pytest.mark.parametrize("wavelet", ["haar", "db2", "bior4.4"])
_decompose = jax.jit(fusion.decompose, static_argnums=1)
_reconstruct = jax.jit(fusion.reconstruct, static_argnums=2)
# Weights are data: a program for each wavelet and number of levels.
_fuse = jax.jit(fusion.fuse, static_argnames=("levels", "wavelet"))
_predict = jax.jit(
  predictor.predict,
  static_argnames=("kind", "steps", "sigma_end", "rho"),
)


@every_wavelet
def test_decomposition_is_that_of_pywavelets(wavelet):
  """On images larger and smaller than the filters; and back."""
  for shape in ((2, 16, 12, 3), (1, 4, 2, 1)):
    x = normal(shape)
    low, details = _decompose(x, wavelet)
    a, (h, v, d) = pywt.dwt2(
      np.asarray(x, np.float64), wavelet, mode="periodization", axes=(1, 2)
    )
    np.testing.assert_allclose(low, a, atol=2e-6)
    for i, detail in enumerate((h, v, d)):
      np.testing.assert_allclose(details[:, i], detail, atol=2e-6)
    back = _reconstruct(low, details, wavelet)
    np.testing.assert_allclose(back, x, atol=2e-6)


@every_wavelet
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("low", "high"), [(1.0, 0.2), (0.3, 0.0), (1.0, 1.0)])
def test_fusion_is_that_of_pywavelets(wavelet, levels, low, high):
  x0, z = normal((16, 24, 1)), normal((16, 24, 1), 1)
  fused = _fuse(x0, z, low=low, high=high, levels=levels, wavelet=wavelet)
  how = dict(wavelet=wavelet, mode="periodization")
  tree = [
    pywt.wavedec2(np.asarray(x, np.float64)[..., 0], level=levels, **how)
    for x in (x0, z)
  ]
  merged = [tree[0][0] + low * (tree[1][0] - tree[0][0])]
  for first, second in zip(tree[0][1:], tree[1][1:]):
    pairs = zip(first, second)
    merged.append(tuple(a + high * (b - a) for a, b in pairs))
  expected = pywt.waverec2(merged, **how)
  np.testing.assert_allclose(fused[..., 0], expected, atol=4e-6)
  if low == high == 1:
    np.testing.assert_allclose(fused, z, atol=4e-6)


@pytest.mark.parametrize(
  ("law", "expected"),
  [
    ("product", [0.01, 0.105, 0.2]),
    ("clip", [0.05, 0.2, 0.2]),
    ("base", [0.24, 0.62, 1.0]),
    ("delay", [0.2, 0.2 + 0.8 * 0.45 / 0.95, 1.0]),
  ],
)
def test_details_unlock_by_each_law(law, expected):
  progress = np.array([0.0, 0.5, 1.0])
  found = fusion.unlocked(law, 0.2, 0.05, 1.0, progress)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  config = NFCConfig.paper(fusion={"unlock": law})
  np.testing.assert_allclose(config.detail_weights(progress), expected)
  assert config.fuses
  same = {"unlock": law, "high": 1.0, "unlock_start": 1.0}
  assert not NFCConfig.paper(fusion=same).fuses


# Predictors

SIGMA, END = 4.0, 0.05


def _ode_error(kind, steps):
  """Against the closed form of a Gaussian prior's probability flow.

  A coefficient of power S moves as sqrt((S + end^2) / (S + sigma^2)).
  """
  spectrum = priors.power_law_spectrum(8, 8)
  prior = priors.GaussianPrior(spectrum, jnp.zeros(()))
  x = SIGMA * normal((3, *SHAPE))
  found = _predict(
    prior.denoise,
    x,
    jnp.float32(SIGMA),
    kind=kind,
    steps=steps,
    sigma_end=END,
    rho=7.0,
  )
  gain = jnp.sqrt((spectrum + END**2) / (spectrum + SIGMA**2))
  expected = fourier.apply_transfer(x, gain)
  return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize(
  ("kind", "order"), [("euler", 1), ("heun", 2), ("dpm_solver_2m", 2)]
)
def test_predictor_converges_at_its_order(kind, order):
  errors = [_ode_error(kind, steps) for steps in (10, 20, 40)]
  slope = np.log2(errors[-2] / errors[-1])
  assert abs(slope - order) < 0.35, errors
  assert errors[-1] < {1: 0.1, 2: 0.02}[order]


def test_denoise_predictor_is_the_denoiser():
  prior = priors.GaussianPrior(priors.power_law_spectrum(8, 8), jnp.zeros(()))
  x = normal((2, 3, *SHAPE))
  found = predictor.predict(
    prior.denoise,
    x,
    jnp.float32(0.7),
    kind="denoise",
    steps=1,
    sigma_end=END,
    rho=7.0,
  )
  flat = prior.denoise(x.reshape(6, *SHAPE), jnp.full(6, 0.7))
  np.testing.assert_array_equal(found.reshape(6, *SHAPE), flat)


@pytest.mark.parametrize("kind", ["euler", "heun", "dpm_solver_2m"])
def test_a_level_below_the_end_takes_no_step(kind):
  prior = priors.GaussianPrior(priors.power_law_spectrum(8, 8), jnp.zeros(()))
  x = normal((1, *SHAPE))
  found = _predict(
    prior.denoise,
    x,
    jnp.float32(END / 2),
    kind=kind,
    steps=3,
    sigma_end=END,
    rho=7.0,
  )
  np.testing.assert_allclose(found, x, atol=1e-6)


# The inner target

OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)
# Every operator, with a band or without.
DRAWN = (("resize", True), ("random", False), ("blur", True))
drawn = pytest.mark.parametrize(
  ("name", "banded"),
  [
    pytest.param(*case, marks=[] if case in DRAWN else pytest.mark.slow)
    for case in itertools.product(OPERATORS, (False, True))
  ],
)


def _target(name, banded, count=1):
  """U on `count` equal centres; spectral width, and a band where asked for."""
  operator = OPERATORS[name]()
  y = normal((1, *operator.measurement_shape), 3)
  observation = Observation(y, operator, jnp.float32(NOISE))
  if banded:
    shape = operator.measurement_shape[:2]
    band = bands.radial_band(shape, jnp.float32(0.5), "butterworth")
    weight = bands.weight(band, jnp.float32(0.9), "convex")
    observation = bands.apply_band(observation, weight)
  centre = jnp.tile(normal((1, 1, *SHAPE), 4), (count, 1, 1, 1, 1))
  spectrum = priors.power_law_spectrum(*SHAPE[:2])
  return gaussian.Target(observation, centre, spectrum * 0.5 / (spectrum + 0.5))


def _exact(name, banded):
  """Mean [64] and covariance [64, 64] of exp(-U) in float64, from U itself."""
  operator = OPERATORS[name]()
  size = operator.measurement_shape[:2]
  a = oracles.dense(
    lambda x: np.asarray(
      operator.forward(jnp.asarray(np.float32(x))[..., None]), np.float64
    ),
    SHAPE[:2],
  )
  weight = np.eye(len(a))
  if banded:
    radius = fourier.radial_frequency(*size) / np.sqrt(0.5)
    square = 1 / (1 + (radius / 0.5) ** 8)
    weight = oracles.fourier_diagonal(0.1 + 0.9 * square)
  if name == "random":  # dropped pixels carry nothing to filter
    y = np.asarray(operator.mask * normal((1, *SHAPE), 3), np.float64).ravel()
  else:
    y = np.asarray(normal((1, *size, 1), 3), np.float64).ravel()
  s = np.asarray(priors.power_law_spectrum(*SHAPE[:2]), np.float64)
  tie = oracles.fourier_diagonal((s + 0.5) / (0.5 * s))
  centre = np.asarray(normal((1, 1, *SHAPE), 4), np.float64).ravel()
  hessian = a.T @ weight @ a / NOISE**2 + tie
  covariance = np.linalg.inv(hessian)
  mean = covariance @ (a.T @ weight @ y / NOISE**2 + tie @ centre)
  return mean, covariance


@drawn
def test_mean_is_the_minimiser(name, banded):
  expected, _ = _exact(name, banded)
  target = _target(name, banded)
  solve = functools.partial(gaussian.mean, tolerance=1e-6, max_iterations=500)
  z, info = jax.jit(solve)(target)
  np.testing.assert_allclose(z.ravel(), expected, atol=2e-5)
  assert info.relative_residual < 1e-5
  # Where the gradient is zero: its size is that of float32 rounding.
  slope = jax.jit(gaussian.gradient)
  scale = np.abs(slope(target, target.centre)).max()
  assert np.abs(slope(target, z)).max() < 1e-4 * scale


@drawn
def test_draw_has_mean_and_covariance_of_the_target(name, banded):
  count = 4000
  mean, covariance = _exact(name, banded)
  draw = functools.partial(gaussian.draw, tolerance=1e-5, max_iterations=500)
  z, _ = jax.jit(draw)(jax.random.key(0), _target(name, banded, count))
  draws = np.asarray(z, np.float64).reshape(count, -1)
  white = np.linalg.inv(np.linalg.cholesky(covariance))
  unit = (draws - mean) @ white.T  # standard normal if the draw is exact
  # Largest of 64 means and of 64 x 64 moments, at 5 standard errors.
  assert np.abs(unit.mean(0)).max() < 5 / np.sqrt(count)
  moments = unit.T @ unit / count - np.eye(len(mean))
  assert np.abs(moments).max() < 5 * np.sqrt(2 / count)


@every_operator
def test_descent_reaches_the_minimiser(name):
  expected, _ = _exact(name, False)
  descend = jax.jit(gaussian.descend, static_argnames="steps")
  z = descend(_target(name, False), steps=400)
  np.testing.assert_allclose(z.ravel(), expected, atol=3e-3)
  nearer = descend(_target(name, False), steps=5)
  far = np.abs(nearer.ravel() - expected).max()
  assert np.abs(z.ravel() - expected).max() < 0.2 * far


@pytest.mark.slow
@every_operator
def test_langevin_has_the_variance_of_its_step(name):
  """Unadjusted Langevin: covariance C (1 - h H / 2)^-1 in H's eigenvectors."""
  step, count = 1e-3, 1000
  mean, covariance = _exact(name, False)
  z = gaussian.langevin(
    jax.random.key(1),
    _target(name, False, count),
    steps=600,
    step_size=jnp.float32(step),
  )
  values, vectors = np.linalg.eigh(covariance)
  values = np.clip(values, 1e-12, None)
  decay = (1 - step / values) ** 600  # what is left of the start
  stationary = values / (1 - step / (2 * values))
  start = vectors.T @ (np.asarray(_target(name, False).centre).ravel() - mean)
  unit = (np.asarray(z, np.float64).reshape(count, -1) - mean) @ vectors
  expected = stationary * (1 - decay**2)
  found = unit.var(0)
  assert np.abs(found / expected - 1).max() < 5 * np.sqrt(2 / count)
  bias = np.abs(unit.mean(0) - start * decay) / np.sqrt(expected)
  assert bias.max() < 5 / np.sqrt(count)
