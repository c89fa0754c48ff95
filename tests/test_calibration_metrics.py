"""Metrics of calibration on Gaussians that are known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.optimize
import scipy.stats

from posterior_jax import metrics
from posterior_jax.linalg import fourier
from tests.deviates import ONE, f32, normal


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
