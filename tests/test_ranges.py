"""Pixels of another unit, and numbers that are none: named, never sampled."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import sampling
from posterior_jax.base import Info, check_observation
from posterior_jax.nfc_sampler import Sigma, levels_of
from tests.oracles import refused

RNG = np.random.default_rng(0)
SHAPE = (16, 16, 3)
PHOTOGRAPH = RNG.uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
OPERATORS = {
  "blur": pj.operators.gaussian_blur(SHAPE, size=5, std=1.0),
  "scene": pj.operators.gaussian_blur(
    (20, 20, 3), size=5, std=1.0, boundary="valid"
  ),
  "inpainting": pj.operators.random_inpainting(SHAPE, fraction=0.5),
}


def _observed(y, operator="inpainting", noise_std=0.05):
  return pj.Observation(jnp.asarray(y), OPERATORS[operator], noise_std)


@pytest.mark.parametrize("operator", OPERATORS)
def test_levels_of_255_are_refused(operator):
  """Gave 3.19 dB in place of 24.81, without a word."""
  check_observation(_observed(PHOTOGRAPH, operator))
  with refused(ValueError, r"y must hold pixels in \[-1, 1\], it reaches 25"):
    check_observation(_observed(127.5 * (PHOTOGRAPH + 1), operator))


@pytest.mark.parametrize("noise_std", [0.0, 0.02, 0.05, 0.1])
def test_shares_of_white_are_doubted(noise_std):
  """Gave 8.81 dB: deepinv/deepinv#1413 has the same two units."""
  noise = noise_std * RNG.standard_normal(PHOTOGRAPH.shape)
  y = ((PHOTOGRAPH + 1) / 2 + noise).astype(np.float32)
  with pytest.warns(UserWarning, match="as if its pixels were in \\[0, 1\\]"):
    check_observation(_observed(y, noise_std=max(noise_std, 0.01)))


@pytest.mark.parametrize(
  "y",
  [
    PHOTOGRAPH,
    PHOTOGRAPH + 0.5,
    np.full_like(PHOTOGRAPH, 0.7),
    np.zeros_like(PHOTOGRAPH),
    2.5 * RNG.standard_normal(PHOTOGRAPH.shape).astype(np.float32),
  ],
  ids=("photograph", "bright", "constant", "black", "strong"),
)
def test_what_is_right_is_not_doubted(y):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    check_observation(_observed(y))
    # What stands at dropped pixels is not looked at.
    hidden = np.asarray(OPERATORS["inpainting"].mask == 0)
    check_observation(_observed(np.where(hidden, 255, y)))
    # A measurement that is no picture may have any size.
    matrix = 1e4 * RNG.standard_normal((5, 16))
    operator = pj.operators.dense((4, 4, 1), matrix)
    y = jnp.full((1, 5, 1, 1), 1e5)
    check_observation(pj.Observation(y, operator, 0.1))


@pytest.mark.parametrize(
  "metric", [pj.metrics.psnr, pj.metrics.ssim, pj.metrics.flip]
)
@pytest.mark.parametrize("data_range", [(0, 1), (0, 255), (0, 65535)])
def test_metrics_know_the_range(metric, data_range):
  noisy = PHOTOGRAPH + 0.1 * RNG.standard_normal(PHOTOGRAPH.shape)
  low, high = data_range
  x, truth = (
    jnp.asarray(np.float32(low + (high - low) * (a + 1) / 2))
    for a in (noisy, PHOTOGRAPH)
  )
  found = metric(x, truth, data_range=data_range)
  expected = metric(jnp.asarray(np.float32(noisy)), jnp.asarray(PHOTOGRAPH))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  if high > 1:  # was infinite: everything is clipped to white
    with refused(ValueError, r"truth must hold pixels in \[-1, 1\]"):
      metric(x, truth)
  with refused(ValueError, r"data_range must be \(low, high\), finite and asc"):
    metric(x, truth, data_range=(high, low))


def _distances():
  """Every metric of pictures, those of networks without their weights."""
  none = (jnp.zeros(3),) * 2
  return {
    "psnr": pj.metrics.psnr,
    "ssim": pj.metrics.ssim,
    "flip": pj.metrics.flip,
    "lpips": pj.metrics.LPIPS(*none, (), (), (), "vgg"),
    "dists": pj.metrics.DISTS(*none, (), (), *none),
  }


@pytest.mark.parametrize("metric", _distances())
def test_levels_beside_pixels_are_refused(metric):
  """Clipped to white they had a value, whichever of the two they were."""
  distance, ones = _distances()[metric], jnp.ones((32, 32, 3))
  words = r"must hold pixels in \[-1, 1\], they lie from"
  for x, truth, name in (
    (200 * ones, ones, "x"),
    (ones, 200 * ones, "truth"),
    (ones, -200 * ones, "truth"),
  ):
    with refused(ValueError, f"{name} {words}"):
      distance(x, truth)


@pytest.mark.parametrize(
  "metric", [pj.metrics.psnr, pj.metrics.ssim, pj.metrics.flip]
)
def test_a_truth_is_known_inside_a_compiled_function(metric):
  """As the truth of a loss is; it ended in an error of tracing."""
  x, truth = jnp.asarray(0.9 * PHOTOGRAPH), jnp.asarray(PHOTOGRAPH)
  found = jax.jit(lambda x: metric(x, truth))(x)
  np.testing.assert_allclose(found, metric(x, truth), rtol=1e-4)
  jax.grad(lambda x: metric(x, truth).sum())(x)
  jax.vmap(lambda x: metric(x, truth[0]))(x)
  levels = 127.5 * (truth + 1)
  with refused(ValueError, r"truth must hold pixels in \[-1, 1\]"):
    jax.jit(lambda x: metric(x, levels))(x)


@pytest.mark.parametrize(
  "metric", [pj.metrics.psnr, pj.metrics.ssim, pj.metrics.flip]
)
def test_an_image_that_ran_away_has_a_score(metric):
  away = 1e6 * RNG.standard_normal((32, 32, 3)).astype(np.float32)
  assert np.isfinite(metric(jnp.asarray(away), jnp.zeros((32, 32, 3))))


def test_a_denoiser_that_fails_is_an_error():
  """By the level at which it does; jina-ai/discoart#100: a black picture."""
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(*SHAPE[:2]))

  config = pj.NFCConfig.calibrated(levels=4, width=Sigma())
  limit = 1.01 * float(levels_of(config).sigma[2])

  def failing(x, sigma):
    clean = prior.denoise(x, sigma)
    return jnp.where(sigma[:, None, None, None] < limit, jnp.nan, clean)

  with refused(FloatingPointError, "are not finite from step 2 on: denoise"):
    pj.run(pj.nfc(config), failing, _observed(PHOTOGRAPH), jax.random.key(0))


def test_a_residual_that_is_none_is_an_error():
  """An operator may fail where the prior's samples are fine."""
  info = Info(*[None] * len(Info._fields))._replace(
    residual=jnp.array([[1.0], [jnp.nan]])
  )
  with refused(FloatingPointError, "the residual is not finite: what the oper"):
    sampling._check_finite(jnp.zeros((1, *SHAPE)), info)
