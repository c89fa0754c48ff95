"""Image metrics against scikit-image; distances of known laws."""

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
from tests import oracles
from tests.deviates import ONE, f32, normal

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
  with pytest.raises(TypeError, match="x must be floating point, got dtype"):
    metrics.psnr(x, y)
  with pytest.raises(TypeError, match=r"samples must be floating .*got uint8"):
    metrics.crps(x, jnp.zeros((8, 3)))
  a = jnp.linspace(-1, 1, 192).reshape(8, 8, 3)
  b = (a + 0.01).astype(jnp.bfloat16)
  expected = metrics.psnr(b.astype(jnp.float32), a)
  np.testing.assert_array_equal(metrics.psnr(b, a), expected)
