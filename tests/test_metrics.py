"""Image metrics against scikit-image; calibration on known Gaussians."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.optimize
import scipy.stats
import skimage.metrics

from posterior_jax import metrics, operators
from posterior_jax.base import Observation
from posterior_jax.linalg import fourier
from tests import oracles

# Bounds in standard errors: on one normal deviate, and on the largest of up to
# a few hundred.
ONE, MANY = 4.5, 5.0


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def f32(x):
  return jnp.asarray(np.float32(x))


# Compiled whole: op by op it would take seconds.
ssim = jax.jit(metrics.ssim)


def unit(x):
  return np.clip(np.asarray(x, np.float64) / 2 + 0.5, 0, 1)


def pictures(level, shape=(3, 21, 30, 3)):
  """Smooth images that leave [-1, 1] here and there, and noisy ones."""
  truth = scipy.ndimage.gaussian_filter(normal(shape), (0, 2, 2, 0)) * 4
  return truth + level * normal(shape, 1), truth


@pytest.mark.parametrize("level", [0.02, 0.2, 1.0])
def test_psnr_is_skimages(level):
  x, truth = pictures(level)
  assert np.abs(truth).max() > 1  # clipping is at work
  found = metrics.psnr(f32(x), f32(truth))
  expected = [
    skimage.metrics.peak_signal_noise_ratio(unit(b), unit(a), data_range=1)
    for a, b in zip(x, truth)
  ]
  # Errors of 0.01 on [0, 1] in units of 2^-24 give 1e-5 of the mean square.
  np.testing.assert_allclose(found, expected, atol=10 / np.log(10) * 1e-5)


def test_psnr_in_closed_form():
  truth = np.zeros((2, 4, 4, 1))
  x = f32(truth + np.array([0.2, -0.02]).reshape(2, 1, 1, 1))
  np.testing.assert_allclose(metrics.psnr(x, f32(truth)), [20, 40], atol=1e-4)
  # A truth broadcasts; out of range counts as the end of the range.
  np.testing.assert_allclose(
    metrics.psnr(x, f32(truth[0])), [20, 40], atol=1e-4
  )
  ones = jnp.ones((4, 4, 1))
  assert float(metrics.psnr(3 * ones, ones)) == np.inf
  assert float(metrics.psnr(-3 * ones, ones)) == 0


@pytest.mark.parametrize(("bits", "level"), [(32, 0.02), (32, 1.0), (64, 0.2)])
def test_ssim_is_skimages_inside(bits, level):
  x, truth = pictures(level)
  expected = []
  for a, b in zip(x, truth):
    _, full = skimage.metrics.structural_similarity(
      unit(a),
      unit(b),
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=1,
      channel_axis=-1,
      full=True,
    )
    expected.append(full[5:-5, 5:-5].mean())
  with jax.enable_x64(bits == 64):
    dtype = {32: jnp.float32, 64: jnp.float64}[bits]
    found = ssim(jnp.asarray(x, dtype), jnp.asarray(truth, dtype))
  assert found.dtype == dtype and found.shape == (3,)
  # Variances of pixels below 1/2 err by a unit of 1/4, over C2 = 9e-4 at least.
  atol = {32: 2.0**-24 / 4 / 9e-4 * 2, 64: 1e-12}[bits]
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_ssim_in_closed_form():
  """Constant images have the luminance term alone; 11 x 11 is one window."""
  a, b = jnp.full((11, 11, 2), -0.6), jnp.full((11, 11, 2), 0.4)  # 0.2 and 0.7
  expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
  np.testing.assert_allclose(ssim(a, b), expected, atol=1e-4)
  x, truth = pictures(0.2)
  np.testing.assert_allclose(ssim(f32(x), f32(x)), 1, atol=1e-4)
  together = ssim(f32(x), f32(truth[2]))  # a truth broadcasts
  one = ssim(f32(x[2]), f32(truth[2]))
  np.testing.assert_allclose(together[2], one, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "box", "resize"])
def test_measurement_residual_counts_what_was_observed(name):
  shape, noise = (16, 24, 3), 0.2
  operator = {
    "random": lambda: operators.random_inpainting(shape),
    "box": lambda: operators.box_inpainting(shape, size=8),
    "resize": lambda: operators.super_resolution(shape, factor=2),
  }[name]()
  truth = normal((2, *shape))
  y = np.asarray(operator.forward(f32(truth)), np.float64)
  y = y + noise * normal(y.shape, 1)
  keep = np.broadcast_to(np.asarray(operator.observed) != 0, y.shape)
  x = truth + 0.1 * normal((4, 2, *shape), 2)
  image = x
  if name == "resize":
    rows, columns = (oracles.resizer_matrix(n, 2) for n in shape[:2])
    image = np.einsum("hH,wW,...HWc->...hwc", rows, columns, x)
  else:
    assert 0 < keep.mean() < 1
  expected = np.where(keep, (y - image) ** 2, 0).sum((-3, -2, -1))
  expected = expected / (keep[0].sum() * noise**2)
  shown = np.where(keep, y, 1e4)  # no data there
  observation = Observation(f32(shown), operator, noise)
  found = metrics.measurement_residual(f32(x), observation)
  np.testing.assert_allclose(found, expected, rtol=2e-6)
  # Of the truth: chi-squared over its degrees of freedom.
  error = (2 / keep[0].sum()) ** 0.5
  found = metrics.measurement_residual(f32(truth), observation)
  assert (np.abs(found - 1) <= ONE * error).all()


# --- Calibration -------------------------------------------------------------


def spectrum(size=(24, 24)):
  """Even, falling with frequency, [H, W]."""
  return 1 / (0.02 + fourier.radial_frequency(*size) ** 2)


def draws(shape, seed=0, gain=1.0):
  """Samples [..., H, W, C] of that spectrum times gain^2, float64."""
  size = shape[-3:-1]
  transfer = (np.sqrt(spectrum(size)) * gain)[..., None]
  f = np.fft.fft2(normal(shape, seed), axes=(-3, -2))
  return np.fft.ifft2(f * transfer, axes=(-3, -2)).real


def test_normalised_mean_error_formula():
  samples, mean = normal((5, 4, 6)), normal((4, 6), 1)
  std = np.exp(normal((4, 1), 2))
  found = metrics.normalised_mean_error(f32(samples), f32(mean), f32(std))
  error = np.sqrt(((samples.mean(0) - mean) ** 2).mean())
  rms = np.sqrt((np.broadcast_to(std, (4, 6)) ** 2).mean())
  np.testing.assert_allclose(found.value, error / rms, rtol=2e-6)
  np.testing.assert_allclose(found.floor, 5**-0.5, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_normalised_mean_error_of_gaussians(shift):
  """Mean square over sets: shift^2 + 1 / B, within its Monte Carlo error."""
  count, sets = 16, 300
  std = np.exp(0.5 * normal(50, 1))
  rms = np.sqrt((std**2).mean())
  z = std * normal((sets, count, 50)) + shift * rms
  found = jax.vmap(
    lambda s: metrics.normalised_mean_error(s, jnp.zeros(50), f32(std)).value
  )(f32(z))
  square = np.asarray(found, np.float64) ** 2
  floor = metrics.normalised_mean_error(f32(z[0]), f32(std), f32(std)).floor
  error = square.std() / sets**0.5
  assert abs(square.mean() - shift**2 - floor**2) <= ONE * error
  assert error <= 0.02 * square.mean()


def test_coefficient_variance_is_numpys():
  x = normal((5, 3, 7, 6, 2))
  f = np.fft.fft2(x, axes=(-3, -2), norm="ortho")
  found = metrics.coefficient_variance(f32(x))
  np.testing.assert_allclose(found, f.var(0, ddof=1), rtol=1e-4, atol=1e-6)
  pixel = x.var(0, ddof=1).mean()
  np.testing.assert_allclose(np.mean(found), pixel, rtol=1e-5)


@pytest.mark.parametrize(
  ("size", "least"), [((8, 8), 1), ((8, 8), 8), ((9, 16), 40), ((8, 8), 99)]
)
def test_variance_ratio_by_its_definition(size, least):
  x, exact = normal((5, 2, *size, 3)), np.exp(normal((2, *size, 3), 1))
  found = metrics.variance_ratio(f32(x), f32(exact), least=least)
  power = np.abs(np.fft.fft2(x - x.mean(0), axes=(-3, -2), norm="ortho")) ** 2
  radius = fourier.radial_frequency(*size)
  # Bands are rings between the stated radii, of at least so many, all told.
  lower = np.concatenate([[-1], found.upper[:-1]])
  rings = [
    (radius > a) & (radius <= b + 1e-9) for a, b in zip(lower, found.upper)
  ]
  np.testing.assert_array_equal(found.coefficients, [r.sum() for r in rings])
  assert found.coefficients.sum() == radius.size
  assert len(rings) == 1 or min(found.coefficients) >= least
  assert least > 1 or len(rings) >= 6
  expected = [
    power[..., ring, :].sum() / 4 / exact[..., ring, :].sum() for ring in rings
  ]
  np.testing.assert_allclose(found.bands, expected, rtol=1e-5)
  np.testing.assert_allclose(
    found.total, power.sum() / 4 / exact.sum(), rtol=1e-5
  )


@pytest.mark.parametrize("changed", [None, 0, 3, 7])
def test_variance_ratio_sees_the_band_that_is_wrong(changed):
  """Variance times 1.5 in one ring: there 1.5, elsewhere 1, in the errors."""
  size = (24, 24)
  ring = fourier.radial_bands(*size, 8) == changed
  gain = np.where(ring, 1.5, 1.0) ** 0.5
  x = draws((400, *size, 1), gain=gain)
  found = metrics.variance_ratio(f32(x), f32(spectrum(size)))
  expected = np.ones(8)
  if changed is not None:
    expected[changed] = 1.5
  z = (np.asarray(found.bands) - expected) / found.bands_error
  assert np.abs(z).max() <= ONE
  assert found.bands_error.max() < 0.5 / (2 * ONE)  # 1 and 1.5 are told apart
  s = spectrum(size)
  total = (s * gain**2).sum() / s.sum()
  assert abs(float(found.total) - total) <= ONE * float(found.total_error)


@pytest.mark.parametrize("count", [4, 16])
def test_variance_ratio_standard_errors(count):
  """Over 1500 sets: mean 1, and a spread that is the stated one.

  The variance over n sets has relative error (2 / n)^(1/2) or, from a total
  that is a sum of few strong coefficients, somewhat more: taken from halves.
  """
  sets, size = 1500, (6, 6)
  x = draws((sets, count, *size, 1))
  measure = jax.jit(
    jax.vmap(
      lambda s: metrics.variance_ratio(s, f32(spectrum(size)), bands=2)[:4]
    )
  )
  total, total_error, bands, bands_error = (
    np.asarray(a) for a in measure(f32(x))
  )
  assert bands.shape[1] == 2
  values = np.c_[total, bands].astype(np.float64)
  errors = np.c_[total_error, bands_error].astype(np.float64)
  mean_error = values.std(0) / sets**0.5
  assert (np.abs(values.mean(0) - 1) <= ONE * mean_error).all()
  # Variance of (value - 1)^2 - error^2, whose mean is 0 if the error is right.
  difference = (values - 1) ** 2 - errors**2
  noise = difference.std(0) / sets**0.5
  excess = difference.mean(0) / (errors**2).mean(0)
  assert (np.abs(difference.mean(0)) <= ONE * noise).all(), excess


def test_variance_ratio_of_two_samples_does_not_claim_to_be_exact():
  x = draws((2, 8, 8, 1))
  found = metrics.variance_ratio(f32(x), f32(spectrum((8, 8))))
  assert not (np.asarray(found.total_error) <= 0.01)  # NaN would do


@pytest.mark.parametrize(
  ("samples", "level"), [(10, 0.9), (19, 0.5), (99, 0.8), (99, 0.9)]
)
def test_coverage_of_exact_and_wrong_samples(samples, level):
  """Scaled or shifted samples, against an integral over the truth's law."""
  entries = 20000
  truth = normal(entries)
  white = normal((samples, entries), 1)
  tail = round((1 - level) / 2 * (samples + 1))
  for scale, shift in ((1.0, 0.0), (0.7, 0.0), (1.4, 0.0), (1.0, 1.0)):
    found = metrics.coverage(
      f32(scale * white + shift), f32(truth), level=level
    )

    def inside(z, scale=scale, shift=shift):
      rank = scipy.stats.binom(
        samples, scipy.stats.norm.cdf((z - shift) / scale)
      )
      return scipy.stats.norm.pdf(z) * (
        rank.cdf(samples - tail) - rank.cdf(tail - 1)
      )

    grid = np.linspace(-8, 8, 801)
    expected = scipy.integrate.simpson(inside(grid), x=grid)
    error = (expected * (1 - expected) / entries) ** 0.5
    assert abs(float(found.value) - expected) <= ONE * error
    if scale == 1 and shift == 0:
      np.testing.assert_allclose(found.expected, expected, atol=1e-9)
    else:  # the wrongness shows
      assert abs(float(found.value) - found.expected) > 6 * error


def test_coverage_says_how_many_samples_it_needs():
  for level in (0.5, 0.8, 0.9, 0.95, 0.99):
    enough = round(1 / (1 - level))
    metrics.coverage(jnp.zeros((enough, 3)), jnp.zeros(3), level=level)
    with pytest.raises(ValueError, match="level") as caught:
      metrics.coverage(jnp.zeros((enough - 1, 3)), jnp.zeros(3), level=level)
    assert re.findall(r"at least (\d+)", str(caught.value)) == [str(enough)]


@pytest.mark.parametrize(("samples", "level"), [(9, 0.5), (49, 0.9)])
def test_hpd_coverage_of_exact_and_wrong_samples(samples, level):
  """Gaussians of 3 dimensions of another scale, against an integral."""
  entries = 20000
  truth, white = normal((entries, 3)), normal((samples, entries, 3), 1)

  def log_density(x):
    return f32(-(x**2).sum(-1) / 2)

  inner = round(level * (samples + 1))
  for scale in (1.0, 0.8, 1.3):
    found = metrics.hpd_coverage(
      log_density(scale * white), log_density(truth), level=level
    )
    # Of the truth's squared length: so many samples are shorter.
    square = np.linspace(1e-6, 50, 50001)
    shorter = scipy.stats.chi2.cdf(square / scale**2, 3)
    inside = scipy.stats.binom.cdf(inner - 1, samples, shorter)
    law = scipy.stats.chi2.pdf(square, 3)
    expected = scipy.integrate.simpson(inside * law, x=square)
    error = (expected * (1 - expected) / entries) ** 0.5
    assert abs(float(found.value) - expected) <= ONE * error
    if scale == 1:
      np.testing.assert_allclose(found.expected, expected, atol=1e-4)
    else:  # the wrongness shows
      assert abs(float(found.value) - found.expected) > 6 * error


def test_hpd_coverage_says_how_many_samples_it_needs():
  for level in (0.01, 0.1, 0.5, 0.9, 0.95, 0.99):
    enough = next(
      n for n in range(1, 200) if 0.5 <= level * (n + 1) + 1e-9 < n + 0.5
    )
    metrics.hpd_coverage(jnp.zeros((enough, 3)), jnp.zeros(3), level=level)
    if enough > 1:
      with pytest.raises(ValueError, match=f"at least {enough} samples"):
        metrics.hpd_coverage(
          jnp.zeros((enough - 1, 3)), jnp.zeros(3), level=level
        )


@pytest.mark.parametrize("cover", [metrics.coverage, metrics.hpd_coverage])
def test_coverage_of_what_is_undefined_is_undefined(cover):
  """NaN has no rank: it would be inside a region, or outside."""
  samples, truth = f32(normal((19, 4))), f32(normal(4, 1))
  assert np.isfinite(cover(samples, truth).value)
  assert np.isnan(cover(samples, truth.at[2].set(np.nan)).value)
  assert np.isnan(cover(samples.at[7, 2].set(np.nan), truth).value)
  # An impossible truth has the lowest density there is.
  assert np.isfinite(cover(samples, truth.at[2].set(-np.inf)).value)


# --- Continuous ranked probability score --------------------------------------


@pytest.mark.parametrize("samples", [2, 5, 400])
def test_crps_of_gaussian_samples_is_the_closed_form(samples):
  """Gneiting and Raftery 2007, equation 21; unbiased for any B."""
  # Scores of many samples hardly vary: fewer of them are as sharp, see below.
  entries = 40000 if samples < 400 else 2000
  for mean, scale, truth in ((0.0, 1.0, 0.0), (100.0, 2.0, 103.0)):
    white = normal((samples, entries))
    scores = metrics.crps(
      f32(mean + scale * white), jnp.full(entries, truth, jnp.float32)
    )
    z, law = (truth - mean) / scale, scipy.stats.norm
    expected = scale * (z * (2 * law.cdf(z) - 1) + 2 * law.pdf(z) - np.pi**-0.5)
    scores = np.asarray(scores, np.float64)
    error = scores.std() / entries**0.5
    assert abs(scores.mean() - expected) <= ONE * error
    assert error < 0.02 * expected


def test_crps_is_least_for_the_truths_own_law():
  truth, white = normal(20000, 2), normal((20, 20000), 3)
  own = float(metrics.crps(f32(white), f32(truth)).mean())
  for scale, shift in ((0.6, 0.0), (1.6, 0.0), (1.0, 0.5)):
    other = metrics.crps(f32(scale * white + shift), f32(truth)).mean()
    assert float(other) > own + 0.02
  point = metrics.crps(jnp.zeros((3, 20000)), f32(truth))
  np.testing.assert_allclose(point, np.abs(truth), rtol=1e-6)


# --- Sliced Wasserstein ------------------------------------------------------


def test_sliced_wasserstein_on_a_line_is_the_optimal_assignment():
  x, y = normal((60, 1)), 0.3 + 2 * normal((60, 1), 1)
  cost = (x - y.T) ** 2
  expected = np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
  found = metrics.sliced_wasserstein(f32(x), f32(y), jax.random.key(0))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # W_2 of N(0, 1) and N(m, s^2) squared: m^2 + (s - 1)^2, at quantiles.
  z = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
  found = metrics.sliced_wasserstein(
    f32(z), f32(0.5 + 3 * z[::-1]), jax.random.key(1)
  )
  np.testing.assert_allclose(found**2, 0.25 + 4 * (z**2).mean(), rtol=1e-5)


def test_sliced_wasserstein_of_a_shift():
  """|shift|^2 / d; a squared cosine has variance 2 (d - 1) / (d^2 (d + 2))."""
  d, directions = 8, 4096
  x, shift = normal((50, d)), 3 * normal(d, 1)
  expected = (shift**2).sum() / d
  error = expected * np.sqrt(2 * (d - 1) / (d + 2) / directions)
  found = metrics.sliced_wasserstein(
    f32(x), f32(x + shift), jax.random.key(0), directions=directions
  )
  assert abs(float(found) ** 2 - expected) <= ONE * error
  assert error < 0.02 * expected


def test_sliced_wasserstein_stands_out_of_its_floor():
  def distance(a, b):
    return float(metrics.sliced_wasserstein(a, b, jax.random.key(0)))

  def cloud(seed):
    return f32(normal((500, 12), seed))

  floor = [distance(cloud(2 * i), cloud(2 * i + 1)) for i in range(12)]
  low, spread = np.mean(floor), np.std(floor, ddof=1)
  a, b = cloud(50), cloud(51)
  assert abs(distance(a, b) - low) <= 5 * spread
  for wrong in (1.2 * b, 0.8 * b, b + 0.2, b.at[:, 0].mul(3.0)):
    assert distance(a, wrong) > low + 8 * spread
  assert distance(a, b) == distance(b, a) == distance(a, b[::-1])
  assert distance(a, a) == 0


def zeros(*shape):
  return f32(np.zeros(shape))


KEY = jax.random.key(0)
OPTIONS = {"variance_ratio": ("bands", "least"), "coverage": ("level",)}
OPTIONS["hpd_coverage"] = ("level",)


@pytest.mark.parametrize(
  ("name", "args", "sentence"),
  [
    ("psnr", [zeros(8, 8, 1), zeros(8, 9, 1)], "of one size"),
    ("psnr", [zeros(8, 8, 1), zeros(8, 8, 3)], "of one size"),
    ("psnr", [zeros(8, 8), zeros(8, 8)], r"\[..., H, W, C\]"),
    ("psnr", [zeros(2, 8, 8, 1), zeros(3, 8, 8, 1)], "x and truth"),
    ("ssim", [zeros(16, 16, 1), zeros(16, 12, 1)], "of one size"),
    ("ssim", [zeros(10, 16, 1), zeros(10, 16, 1)], "at least 11 pixels"),
    ("ssim", [zeros(16, 10, 1), zeros(16, 10, 1)], "at least 11 pixels"),
    ("normalised_mean_error", [zeros(4, 8), zeros(7), zeros(8)], "mean must"),
    ("variance_ratio", [zeros(4, 8, 8), zeros(8, 8)], "samples must have"),
    ("variance_ratio", [zeros(1, 8, 8, 1), zeros(8, 8)], "B at least"),
    ("variance_ratio", [zeros(4, 8, 8, 1), zeros(8, 9)], "variance must have"),
    ("variance_ratio", [zeros(4, 8, 8, 1), zeros(8)], "variance must have"),
    ("variance_ratio", [zeros(4, 8, 8, 3), zeros(8, 8, 2)], "variance must"),
    ("variance_ratio", [zeros(4, 8, 8, 1), zeros(8, 8), 0, 8], "bands and le"),
    ("variance_ratio", [zeros(4, 8, 8, 1), zeros(8, 8), 8, 0], "bands and le"),
    ("sliced_wasserstein", [zeros(4, 8), zeros(5, 8), KEY], "both have shape"),
    ("coverage", [zeros(99, 8), zeros(7)], "truth must have the shape"),
    ("coverage", [zeros(99, 8), zeros(8), 1.0], "level must lie in"),
    ("coverage", [zeros(99, 8), zeros(8), 0.0], "level must lie in"),
    ("coverage", [zeros(99, 8), zeros(8), np.nan], "level must lie in"),
    ("coverage", [zeros(5, 8), zeros(8)], "level 0.9 needs"),
    ("hpd_coverage", [zeros(99, 8), zeros(7)], "truth must have the shape"),
    ("hpd_coverage", [zeros(99, 8), zeros(8), 1.0], "level must lie in"),
    ("hpd_coverage", [zeros(4, 8), zeros(8)], "level 0.9 needs"),
    ("crps", [zeros(4, 8), zeros(7)], "truth must have the shape"),
    ("crps", [zeros(1, 8), zeros(8)], "samples must number at least 2"),
  ],
)
def test_bad_input_is_one_sentence(name, args, sentence):
  """Options follow the positional arguments in their order."""
  options = dict(zip(OPTIONS.get(name, ()), args[2:]))
  with pytest.raises(ValueError, match=sentence) as caught:
    getattr(metrics, name)(*(args[:2] if options else args), **options)
  assert "\n" not in str(caught.value)


def test_integers_are_refused_and_narrow_images_widened():
  x, y = np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 90, np.uint8)
  with pytest.raises(TypeError, match="x must be floating point, pixels in"):
    metrics.psnr(x, y)
  with pytest.raises(TypeError, match=r"samples must be floating .*got uint8"):
    metrics.crps(x, jnp.zeros((8, 3)))
  a = jnp.linspace(-1, 1, 192).reshape(8, 8, 3)
  b = (a + 0.01).astype(jnp.bfloat16)
  expected = metrics.psnr(b.astype(jnp.float32), a)
  np.testing.assert_array_equal(metrics.psnr(b, a), expected)
