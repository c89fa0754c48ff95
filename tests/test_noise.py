"""Noise that differs: samples against the posterior known by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import operators
from tests import oracles
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIDE = 8
SHAPE = (SIDE, SIDE, 1)
PRIOR = pj.priors.gaussian_prior(
  pj.priors.power_law_spectrum(SIDE, SIDE, pixel_std=0.2)
)
BLUR = operators.gaussian_blur(SHAPE, size=3, std=0.7, boundary="circular")
MATRIX = (
  np.asarray(
    BLUR.forward(np.eye(64, dtype=np.float32).reshape(64, *SHAPE)), np.float64
  )
  .reshape(64, 64)
  .T
)
PRECISION = oracles.fourier_diagonal(1 / np.asarray(PRIOR.spectrum, np.float64))
TRUTH = PRIOR.sample(jax.random.key(3), (1,), channels=1)
PEAK = 200.0


def _drawn(observation, *, levels, samples, **changes):
  sampler = pj.nfc(
    pj.NFCConfig.calibrated(levels=levels, **changes), spectrum=PRIOR.spectrum
  )
  found, _ = pj.run(
    sampler, PRIOR.denoise, observation, jax.random.key(5), num_samples=samples
  )
  return np.asarray(found, np.float64)  # [B, N, H, W, 1]


def _compare(found, mean, covariance):
  """Ratio of variances, and the mean's error in posterior deviations."""
  found = found.reshape(len(found), -1)
  variance = np.trace(covariance)
  ratio = found.var(0, ddof=1).sum() / variance
  error = np.sqrt(((found.mean(0) - mean) ** 2).sum() / variance)
  print(f"variance ratio {ratio:.3f}, mean off by {error:.3f} std")
  return ratio, error


def _levels_of_noise():
  by_pixel = np.geomspace(0.02, 0.3, 64).reshape(SHAPE)
  return np.stack([by_pixel, 2 * by_pixel[::-1]])  # of two observations


def _per_pixel():
  std = _levels_of_noise()
  truth = jnp.concatenate([TRUTH, TRUTH])
  noise = std * np.asarray(jax.random.normal(jax.random.key(4), truth.shape))
  y = BLUR.forward(truth) + jnp.asarray(np.float32(noise))
  return y, pj.noise.per_pixel(y, BLUR, std)


def _dense(y, std):
  inverse = 1 / np.ravel(std) ** 2
  covariance = np.linalg.inv(MATRIX.T * inverse @ MATRIX + PRECISION)
  return covariance @ MATRIX.T @ (inverse * np.ravel(y)), covariance


def test_noise_of_every_pixel_has_the_dense_mean():
  y, given = _per_pixel()
  assert pj.operators.check_operator(
    pj.noise.Weighted(BLUR, given.operator.weight[:1])
  )
  np.testing.assert_allclose(jnp.mean(given.operator.weight**2), 1, rtol=1e-5)
  mean, _ = jax.jit(pj.priors.posterior_mean)(PRIOR, given)
  for i, std in enumerate(_levels_of_noise()):
    expected, _ = _dense(y[i], std)
    np.testing.assert_allclose(np.ravel(mean[i]), expected, atol=2e-4)
  # The truth fits as well as noise does.
  truth = jnp.concatenate([TRUTH, TRUTH])
  residual = pj.base.normalised_residual(given, truth)
  assert (abs(residual - 1) < 0.5).all()


@pytest.mark.slow
def test_noise_of_every_pixel_is_calibrated():
  y, given = _per_pixel()
  found = _drawn(given, levels=15, samples=2048)
  for i, std in enumerate(_levels_of_noise()):
    ratio, error = _compare(found[:, i], *_dense(y[i], std))
    assert abs(ratio - 1) < 0.05
    assert error < 0.05


def _counts():
  rate = PEAK * (np.asarray(BLUR.forward(TRUTH), np.float64) + 1) / 2
  return np.random.default_rng(0).poisson(rate).astype(np.float32)


def _log_density(x, counts):
  """Of Poisson counts and the prior, [...] for x [..., 64]."""
  rate = PEAK * (x @ MATRIX.T + 1) / 2
  good = (rate > 0).all(-1)
  likely = (counts * np.log(np.maximum(rate, 1e-9)) - rate).sum(-1)
  prior = -0.5 * np.einsum("...i,ij,...j->...", x, PRECISION, x)
  return np.where(good, likely + prior, -np.inf)


def _poisson_posterior(counts, draws=400_000):
  """Mean and covariance by importance sampling about the mode."""
  counts, x = np.ravel(counts).astype(np.float64), np.zeros(64)
  for _ in range(30):  # Newton's iterations: the density is log-concave
    rate = PEAK * (MATRIX @ x + 1) / 2
    slope = PEAK / 2 * MATRIX.T @ (counts / rate - 1) - PRECISION @ x
    weight = (PEAK / 2) ** 2 * counts / rate**2
    curvature = MATRIX.T * weight @ MATRIX + PRECISION
    x = x + np.linalg.solve(curvature, slope)
  rng = np.random.default_rng(1)
  white = rng.standard_normal((draws, 64))
  y = x + np.linalg.solve(np.linalg.cholesky(curvature).T, white.T).T
  log = _log_density(y, counts) + 0.5 * (white**2).sum(1)
  weight = np.exp(log - log.max())
  weight /= weight.sum()
  assert 1 / (weight**2).sum() > 0.2 * draws  # so many draws' worth
  mean = weight @ y
  return mean, (y - mean).T * weight @ (y - mean)


@pytest.mark.slow
def test_counts_are_calibrated():
  counts = _counts()
  given = pj.noise.poisson(jnp.asarray(counts), BLUR, peak=PEAK)
  found = _drawn(given, levels=15, samples=2048)
  ratio, error = _compare(found, *_poisson_posterior(counts))
  assert abs(ratio - 1) < 0.05
  assert error < 0.05


def test_square_roots_of_counts_have_noise_of_one():
  rng = np.random.default_rng(0)
  for rate in (4.0, 20.0, 500.0):
    counts = rng.poisson(rate, (1, 400, 400, 1)).astype(np.float32)
    operator = operators.inpainting((400, 400, 1), np.ones((400, 400)))
    given = pj.noise.poisson(jnp.asarray(counts), operator, peak=1000.0)
    flat = jnp.full(counts.shape, 2 * rate / 1000 - 1)
    r = np.asarray(given.y - given.operator.forward(flat), np.float64)
    # 160,000 counts: the mean is known to 0.0025, the variance to 0.0035.
    assert abs(r.mean()) < 0.01 + 0.03 / rate
    assert abs(r.var() - 1) < 0.02 + 0.2 / rate


def test_a_dark_draw_has_a_slope():
  given = pj.noise.poisson(jnp.zeros((1, *SHAPE)), BLUR, peak=30)
  dark = jnp.full((1, *SHAPE), -1.5)  # fewer than no photons
  tangent = given.operator.tangent(dark)
  assert jnp.isfinite(given.operator.forward(dark)).all()
  assert (tangent.weight > 0).all()


def test_counts_come_nearer_than_square_errors():
  """The fast twin: a few draws of counts, by their mean."""
  counts = _counts()
  given = pj.noise.poisson(jnp.asarray(counts), BLUR, peak=PEAK)
  found = _drawn(given, levels=8, samples=64)
  mean, covariance = _poisson_posterior(counts, draws=20_000)
  ratio, error = _compare(found, mean, covariance)
  # 64 draws know a mean to 1/8 of a deviation.
  assert error < 0.25
  assert abs(ratio - 1) < 0.2


def test_counts_are_not_for_who_needs_a_matrix():
  given = pj.noise.poisson(jnp.zeros((1, *SHAPE)), BLUR, peak=30)
  sampler = pj.baselines.pigdm(pj.baselines.PiGDMConfig(levels=2))
  with refused(ValueError, "operator must be linear here"):
    pj.run(sampler, PRIOR.denoise, given, jax.random.key(0))


@pytest.mark.slow
def test_noise_of_every_pixel_is_taken_by_all_but_two():
  """Who takes which, as the docstrings and the guide say."""
  configs = pj.NFCConfig.calibrated, pj.NFCConfig.restoration, pj.NFCConfig.fast
  samplers = {
    make.__name__: pj.nfc(make(), spectrum=PRIOR.spectrum) for make in configs
  } | {"paper": pj.nfc(pj.NFCConfig.paper())}
  baselines = [name for name in pj.baselines.__all__ if name.islower()]
  samplers |= {name: getattr(pj.baselines, name)() for name in baselines}
  _, given = _per_pixel()
  taken = set()
  for name, sampler in samplers.items():
    try:
      jax.eval_shape(
        lambda key, sampler=sampler: pj.run(sampler, PRIOR.denoise, given, key),
        jax.random.key(0),
      )
    except ValueError:
      continue
    taken.add(name)
  assert taken == {*samplers} - {"paper", "fgps", "ddrm"}


@pytest.mark.slow
def test_outliers_do_not_move_the_image():
  noise_std = 0.05
  noise = noise_std * jax.random.normal(jax.random.key(4), TRUTH.shape)
  y = BLUR.forward(TRUTH) + noise
  wrong = y.at[0, ::3, ::3, 0].set(1.5)  # 9 of 64 pixels
  errors = {}
  for name, given in (
    ("square", pj.Observation(wrong, BLUR, noise_std)),
    ("huber", pj.noise.huber(wrong, BLUR, noise_std)),
    ("clean", pj.Observation(y, BLUR, noise_std)),
  ):
    found = _drawn(given, levels=8, samples=32).mean(0)
    errors[name] = np.sqrt(np.mean((found - np.asarray(TRUTH)) ** 2))
  print(errors)
  assert errors["huber"] < 0.5 * errors["square"]
  assert errors["huber"] < 2 * errors["clean"]


def test_loss_is_that_of_huber():
  y = jnp.zeros((1, 1, 1, 1))
  operator = operators.inpainting((1, 1, 1), np.ones((1, 1)))
  given = pj.noise.huber(y, operator, 0.1, threshold=2.0)
  for r in (1e-4, 0.1, 3.0):
    h = float(given.operator.forward(jnp.full((1, 1, 1, 1), r)).squeeze())
    expected = 0.2**2 * (np.sqrt(1 + (r / 0.2) ** 2) - 1)
    np.testing.assert_allclose(0.5 * h**2, expected, rtol=1e-3)


def _one_pixel_of(noise_std):
  """Among pixels of a noise of .3."""
  return np.where(np.arange(64).reshape(SHAPE) == 26, noise_std, 0.3)


@pytest.mark.parametrize("contrast", [10, 1000])
def test_one_clear_pixel_does_not_hide_the_others(contrast):
  std = _one_pixel_of(0.3 / contrast)
  white = np.asarray(jax.random.normal(jax.random.key(4), TRUTH.shape))
  y = BLUR.forward(TRUTH) + jnp.float32(std * white)
  given = pj.noise.per_pixel(y, BLUR, std)
  found, _ = jax.jit(pj.priors.posterior_mean)(PRIOR, given)
  expected, covariance = _dense(y, std)
  error = np.ravel(found) - expected
  assert np.sqrt((error**2).sum() / np.trace(covariance)) < 0.05


@pytest.mark.parametrize(
  "made",
  [
    lambda y: pj.noise.per_pixel(y, BLUR, np.full(SHAPE, 0.1)),
    lambda y: pj.noise.huber(y, BLUR, 0.1),
  ],
  ids=["per_pixel", "huber"],
)
def test_measurements_are_checked_as_those_of_one_noise(made):
  y = jnp.zeros((1, *SHAPE))
  for bad, kind, words in (
    (y.at[0, 2, 3, 0].set(jnp.nan), ValueError, "y must be finite everywhere"),
    (y + 128, ValueError, r"y must hold pixels in \[-1, 1\], it reaches 128"),
    (y[0], ValueError, r"y must have shape \[N, 8, 8, 1\]"),
    (y.astype(jnp.uint8), TypeError, "y must be floating point"),
  ):
    # A plain one says of levels of 255 how they become pixels.
    with pytest.raises(kind, match=words):
      made(bad)
  assert made(y + 1).y.shape == y.shape


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (
      lambda y: pj.noise.per_pixel(y, BLUR, np.zeros(SHAPE)),
      "noise_std must be positive and finite everywhere",
    ),
    (
      lambda y: pj.noise.per_pixel(y, BLUR, np.ones((5, 1))),
      r"noise_std must broadcast to the shape of y, \(1, 8, 8, 1\)",
    ),
    (
      lambda y: pj.noise.per_pixel(
        y, operators.nonlinear(jnp.tanh, SHAPE), np.ones(SHAPE)
      ),
      "operator must be linear for a noise of every pixel",
    ),
    (
      lambda y: pj.noise.per_pixel(y, BLUR, np.ones(SHAPE, bool)),
      "noise_std must be an array of numbers, got one of bool",
    ),
    (
      lambda y: pj.noise.per_pixel(y, BLUR, _one_pixel_of(1e-5)),
      "noise_std must not differ by more than 1000 times between the pixels",
    ),
    (
      lambda y: pj.noise.per_pixel(y, BLUR, np.full(SHAPE, 1e-30)),
      r"noise_std must lie in \[1e-18, 1e18\], whose squares",
    ),
    (
      lambda y: pj.noise.poisson(y + 3001, BLUR, peak=30),
      "counts must reach about peak = 30, of a white pixel, they reach 3e",
    ),
    (
      lambda y: pj.noise.poisson(y, BLUR, peak=np.ones(SHAPE)),
      r"peak must be a number, got an array \(8, 8, 1\)$",
    ),
    (
      lambda y: pj.noise.huber(y, BLUR, jnp.ones(SHAPE)),
      r"noise_std must be a number, got an array \(8, 8, 1\)$",
    ),
    (
      lambda y: pj.base.check_observation(
        pj.Observation(y, BLUR, jnp.ones(SHAPE))
      ),
      r"noise_std must be a positive, finite scalar, got an array \(8, 8, 1\)$",
    ),
    (
      lambda y: pj.noise.poisson(y - 1, BLUR, peak=3),
      "counts must be finite and not negative",
    ),
    (
      lambda y: pj.noise.poisson(y, BLUR, peak=-1),
      "peak must be positive and finite, got -1",
    ),
    (
      lambda y: pj.noise.huber(y, BLUR, -0.1),
      "noise_std must be positive and finite, got -0.1",
    ),
    (
      lambda y: pj.noise.huber(y, BLUR, 0.1, threshold=0),
      "threshold must be positive and finite, got 0",
    ),
  ],
)
def test_refusals(call, words):
  with refused(ValueError, words):
    call(jnp.zeros((1, *SHAPE)))


def _by_mask():
  operator = operators.random_inpainting(SHAPE, fraction=0.5)
  seen = np.broadcast_to(np.asarray(operator.observed), SHAPE) > 0
  return operator, np.where(seen, 0.1, 0.005)[None]


def _by_row():
  rows = np.linspace(0.02, 0.6, SIDE)[:, None, None]
  operator = operators.linear(lambda x: jnp.cumsum(x, 0) / 4, SHAPE)
  return operator, np.broadcast_to(rows, (1, *SHAPE))


DECLARED = {
  "pictures": lambda: (
    BLUR,
    np.ones((4, *SHAPE)) * np.reshape([0.02, 0.1, 0.3, 1.0], (4, 1, 1, 1)),
  ),
  "mask": _by_mask,
  "rows": _by_row,
}


def _matrix(operator):
  pixels = np.eye(SIDE**2, dtype=np.float32).reshape(-1, *SHAPE)
  columns = np.asarray(operator.forward(pixels), np.float64)
  return columns.reshape(len(pixels), -1).T


@pytest.mark.slow
@pytest.mark.parametrize("name", DECLARED)
def test_declared_noise_is_calibrated(name):
  """The fast twin is `test_inflation`'s, of the width alone."""
  operator, std = DECLARED[name]()
  truth = PRIOR.sample(jax.random.key(3), (len(std),), channels=1)
  white = jax.random.normal(jax.random.key(4), truth.shape)
  y = operator.forward(truth) + jnp.float32(std) * white
  found = _drawn(pj.noise.per_pixel(y, operator, std), levels=15, samples=1024)
  matrix = _matrix(operator)
  for i, one in enumerate(std):
    inverse = 1 / np.ravel(one) ** 2
    covariance = np.linalg.inv(matrix.T * inverse @ matrix + PRECISION)
    mean = covariance @ matrix.T @ (inverse * np.ravel(y[i]))
    ratio, error = _compare(found[:, i], mean, covariance)
    assert abs(ratio - 1) < 0.06
    assert error < 0.07


@pytest.mark.slow
def test_counts_do_not_depend_on_the_pictures_beside_them():
  dark_to_bright = jnp.reshape(
    jnp.asarray([-0.9, -0.6, 0.0, 0.9]), (4, 1, 1, 1)
  )
  truth = dark_to_bright + 0.3 * PRIOR.sample(
    jax.random.key(3), (4,), channels=1
  )
  rate = 1000 * np.maximum((np.asarray(BLUR.forward(truth)) + 1) / 2, 0)
  counts = np.random.default_rng(0).poisson(rate).astype(np.float32)

  def drawn(counts):
    given = pj.noise.poisson(jnp.asarray(counts), BLUR, peak=1000.0)
    return _drawn(given, levels=15, samples=1024)

  together = drawn(counts)
  for i in range(4):
    alone = drawn(counts[i : i + 1])[:, 0]
    assert abs(together[:, i].var(0).sum() / alone.var(0).sum() - 1) < 0.07


def test_what_is_not_seen_may_declare_any_noise():
  operator, std = _by_mask()
  y = jnp.zeros((1, *SHAPE))
  given, other = (
    pj.noise.per_pixel(y, operator, np.where(std == 0.1, 0.1, unseen))
    for unseen in (0.005, 5.0)
  )
  assert given.noise_std == other.noise_std
  assert (given.operator.weight == other.operator.weight).all()
