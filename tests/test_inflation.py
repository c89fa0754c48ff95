"""The width that a misfit widens: its factor, its chances, what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  NFCConfig,
  Observation,
  metrics,
  nfc,
  noise,
  operators,
  priors,
  run,
)
from posterior_jax.nfc_sampler import Jacobian, Sigma, Spectrum
from posterior_jax.nfc_sampler.width import inflated_variance
from tests.oracles import quick_jit

SHAPE = (32, 32, 1)
NOISE, SIGMA = 0.05, 0.5
OPERATORS = {
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "resize": lambda: operators.super_resolution(SHAPE, factor=2),
  "mirrored blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SHAPE[:2]))


def variance(prior):
  return prior.spectrum * SIGMA**2 / (prior.spectrum + SIGMA**2)


def factors(prior, name, scale, count=200):
  """Of predictions whose true width is `scale` times the assumed one."""
  operator = OPERATORS[name]()
  wide = priors.gaussian_prior(scale * variance(prior))
  keys = jax.random.split(jax.random.key(0))
  truth = wide.sample(keys[0], (count,), channels=1)
  clean = operator.forward(truth)
  y = clean + NOISE * jax.random.normal(keys[1], clean.shape)
  found = quick_jit(inflated_variance, static_argnums=4)(
    jax.random.key(9),
    Observation(y, operator, jnp.float32(NOISE)),
    jnp.zeros((1, count, *SHAPE)),
    variance(prior),
    4.0,
  )
  assert found.shape == (1, count, *SHAPE)
  ratio = found[0] / variance(prior)[..., None]
  np.testing.assert_allclose(
    ratio, jnp.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5
  )
  return np.asarray(ratio[:, 0, 0, 0])


@pytest.mark.parametrize("name", OPERATORS)
def test_a_right_width_stays(name, prior):
  """Outside two standard deviations lie 4.6 % of a normal; chi^2 is near."""
  found = factors(prior, name, 1.0)
  changed = found != 1.0
  assert changed.mean() < 0.12, changed.mean()
  assert np.abs(found - 1).max() < 0.5


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scale", [0.4, 2.5])
def test_a_wrong_width_is_put_right(name, scale, prior):
  """Up to the two standard deviations that are left to chance."""
  found = factors(prior, name, scale)
  between = (found >= min(scale, 1.0) * 0.8) & (found <= max(scale, 1.0) * 1.25)
  assert between.mean() > 0.97
  assert abs(np.median(found) - 1) > 0.45 * abs(scale - 1)


def test_the_factor_is_bounded_and_an_images_own(prior):
  operator = OPERATORS["random"]()
  y = jnp.stack([jnp.zeros(SHAPE), 100 * jnp.ones(SHAPE)])
  observation = Observation(y, operator, jnp.float32(NOISE))
  centre = jnp.zeros((3, 2, *SHAPE)).at[1, 0].set(100.0)
  found = inflated_variance(
    jax.random.key(9), observation, centre, variance(prior), 4.0
  )
  ratio = (found / variance(prior)[..., None])[:, :, 0, 0, 0]
  np.testing.assert_allclose(ratio, [[0.25, 4], [4, 4], [0.25, 4]], rtol=1e-5)


def test_channels_share_a_width(prior):
  """[H, W] for three channels is [H, W, 3] of the same."""
  shape = (*SHAPE[:2], 3)
  operator = operators.gaussian_blur(shape, size=5, std=1.0)
  y = jax.random.normal(jax.random.key(0), (1, *shape))
  observation = Observation(y, operator, jnp.float32(NOISE))
  one = variance(prior)
  three = jnp.stack([one, one, one], -1)
  centre = jnp.zeros((1, 1, *shape))
  found = inflated_variance(jax.random.key(9), observation, centre, one, 100.0)
  assert found.shape == (1, 1, *SHAPE)
  expected = inflated_variance(
    jax.random.key(9), observation, centre, three, 100.0
  )
  np.testing.assert_allclose(
    jnp.broadcast_to(found, expected.shape), expected, rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "mirrored blur"])
def test_a_denoiser_that_is_too_sure(name, prior):
  """It assumes a ninth of the power: the measurement puts that right.

  Evaluated against the posterior of the prior that the truth was drawn from.
  """
  operator = OPERATORS[name]()
  truth = prior.sample(jax.random.key(1), (2,), channels=1)
  clean = operator.forward(truth)
  y = clean + NOISE * jax.random.normal(jax.random.key(2), clean.shape)
  observation = Observation(y, operator, NOISE)
  exact, _ = priors.posterior_mean(prior, observation)
  sure = priors.gaussian_prior(prior.spectrum / 9)
  errors, residuals = {}, {}
  for inflation in (1.0, 4.0):
    config = NFCConfig.calibrated(levels=30, width={"inflation": inflation})
    sampler = nfc(config, spectrum=sure.spectrum)
    draw = quick_jit(
      lambda key, s=sampler: run(
        s, sure.denoise, observation, key, num_samples=8
      )
    )
    samples, _ = draw(jax.random.key(3))
    errors[inflation] = float(
      jnp.sqrt(jnp.mean((samples.mean(0) - exact) ** 2))
    )
    residual = metrics.measurement_residual(samples, observation)
    residuals[inflation] = float(residual.mean())
  assert errors[4.0] < 0.8 * errors[1.0], errors
  assert abs(residuals[4.0] - 1) < 0.5 * abs(residuals[1.0] - 1), residuals


def test_refusals():
  with pytest.raises(ValueError, match=r"inflation must lie in \[1, 100\]"):
    Spectrum(inflation=0.5)
  for width in (Sigma(), Jacobian()):
    with pytest.raises(ValueError, match="inflation is no field of"):
      NFCConfig(width=width).replace(width={"inflation": 2.0})
  assert NFCConfig.calibrated(width=Jacobian()).width == Jacobian()
  assert NFCConfig.calibrated().width.inflation > 1


SMALL = (8, 8, 1)
MIXED = np.array([0.02, 0.1, 0.3, 1.0])[:, None, None, None]


def small_prior():
  return priors.gaussian_prior(
    priors.power_law_spectrum(*SMALL[:2], pixel_std=0.25)
  )


def _by_mask():
  operator = operators.random_inpainting(SMALL, fraction=0.5)
  seen = np.broadcast_to(np.asarray(operator.observed), SMALL) > 0
  return operator, np.where(seen, 0.1, 0.005)


def _by_row():
  rows = np.linspace(0.02, 0.6, 8)[:, None, None]
  return operators.linear(lambda x: jnp.cumsum(x, 0) / 4, SMALL), rows


# Noise that is declared: of pictures, of pixels that are not seen, of rows
# that see more than others.
DECLARED = {
  "pictures": lambda: (
    operators.gaussian_blur(SMALL, size=3, std=1.0, boundary="circular"),
    MIXED,
  ),
  "mask": _by_mask,
  "rows": _by_row,
}


def _right_factors(operator, std, count=400):
  """Of every picture, where its width and its noise are as declared."""
  wide = priors.gaussian_prior(variance(small_prior()))
  keys = jax.random.split(jax.random.key(0))
  count *= len(MIXED)
  truth = wide.sample(keys[0], (count,), channels=1)
  clean = operator.forward(truth)
  std = np.float32(np.resize(std, (count, *std.shape[1:])))
  y = clean + std * jax.random.normal(keys[1], clean.shape)
  found = quick_jit(inflated_variance, static_argnums=4)(
    jax.random.key(9),
    noise.per_pixel(y, operator, std),
    jnp.zeros((1, count, *SMALL)),
    wide.spectrum,
    4.0,
  )
  ratio = np.asarray(found / wide.spectrum[..., None])[0, :, 0, 0, 0]
  return ratio.reshape(-1, len(MIXED))  # one column a picture


@pytest.mark.parametrize("name", DECLARED)
def test_declared_noise_leaves_a_right_width(name):
  operator, std = DECLARED[name]()
  std = np.broadcast_to(std, (len(MIXED), *operator.measurement_shape))
  found = _right_factors(operator, std)
  changed = (found != 1.0).mean(0)
  # 0.03 to 0.09 here; a few large eigenvalues of A C A^T skew |r|^2, so that
  # what is changed is widened: under one plain noise the mean is 1.02 to 1.05.
  assert (changed < 0.12).all(), changed
  assert (abs(found.mean(0) - 1) < 0.12).all(), found.mean(0)


BLURRED = operators.gaussian_blur(SMALL, size=3, std=1.0, boundary="circular")
SQUARED = operators.nonlinear(lambda x: (x + 1.2) ** 2, SMALL)
# By the observation of some of four pictures, their numbers.
OF_PICTURES = {
  "pictures": lambda y, which: noise.per_pixel(y, BLURRED, MIXED[which]),
  "counts": lambda y, which: noise.poisson(
    jnp.round(500 * jnp.abs(y)), BLURRED, peak=1000.0
  ),
  "square": lambda y, which: Observation(y, SQUARED, 0.1),
}


@pytest.mark.parametrize("name", OF_PICTURES)
def test_a_picture_has_the_width_that_it_has_alone(name):
  """Whatever stands beside it; a probe's first picture is the same in any."""
  level = jnp.asarray([0.05, 0.3, 0.8, 1.8])[:, None, None, None]
  y = level + 0.1 * jax.random.normal(jax.random.key(0), (4, *SMALL))

  @quick_jit
  def width(observation, centre):
    return inflated_variance(
      jax.random.key(9),
      observation.linearised(centre),
      centre,
      variance(small_prior()),
      100.0,
    )

  # So far off that the factor is no matter of chance, yet below its limit.
  centre = jnp.sqrt(level) - 1.2 + jnp.zeros((1, 4, *SMALL))
  for first in range(4):
    turned = np.roll(np.arange(4), -first)
    alone = turned[:1]
    together = width(OF_PICTURES[name](y[turned], turned), centre[:, turned])
    found = width(OF_PICTURES[name](y[alone], alone), centre[:, alone])
    np.testing.assert_allclose(together[:, :1], found, rtol=1e-4)
