"""One transition of the sampler, written again in NumPy and PyWavelets.

Under a circular blur and a Gaussian prior every verb of a level is known: the
denoiser and the target's mean in Fourier space, the fusion by PyWavelets. The
laws of band, blend and unlocking are written here a second time, in float64.
`tests/mutants.py` breaks the sampler in every way that this must notice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt

from posterior_jax import (
  NFCConfig,
  Observation,
  SamplerState,
  nfc,
  operators,
  priors,
  schedule,
)
from posterior_jax.likelihood import bands, gaussian
from tests import oracles

SIZE = (8, 8)
NOISE, LEVELS = 0.1, 5
# Between them every choice of cutoff, shape, blend, unlock and wavelet, one to
# three levels, and weights that are not 1.
CASES = {
  "paper": dict(
    tie="sigma",
    blend_start=0.35,
    haar_high=0.2,
    unlock_start=0.05,
    halved_misfit=False,
    inner_noise_std=0.07,
  ),
  "butterworth": dict(
    tie="sigma",
    cutoff="log_sigma",
    cutoff_start=0.2,
    cutoff_end=0.7,
    band_shape="butterworth",
    blend="additive",
    blend_start=0.9,
    wavelet="db2",
    haar_levels=2,
    haar_low=0.6,
    haar_high=0.5,
    unlock="clip",
    unlock_start=0.1,
  ),
  "gaussian": dict(
    tie="sigma",
    band_shape="gaussian",
    blend_start=1.0,
    wavelet="bior4.4",
    haar_levels=3,
    haar_low=0.3,
    haar_high=0.4,
    unlock="base",
    unlock_start=0.2,
    unlock_end=0.8,
  ),
  "snr": dict(
    tie="spectrum",
    cutoff="snr",
    blend_start=0.8,
    haar_levels=2,
    haar_low=0.9,
    haar_high=0.1,
    unlock="delay",
    unlock_start=0.3,
    unlock_end=0.9,
    width_factor=1.5,
  ),
}


def to_fourier(x):
  return np.fft.fft2(np.asarray(x, np.float64))


def progress(sigmas, law):
  if law == "log_sigma":
    return np.log(sigmas[0] / sigmas) / np.log(sigmas[0] / sigmas[-1])
  return np.arange(len(sigmas)) / (len(sigmas) - 1)


def mask(config, sigmas, number, power):
  """M of a level, [8, 8]."""
  if config.cutoff == "snr":
    return power / (power + sigmas[number] ** 2)
  share = progress(sigmas, config.cutoff)[number]
  cutoff = config.cutoff_start * (1 - share) + config.cutoff_end * share
  f = np.fft.fftfreq(8)
  ratio = np.hypot(f[:, None], f) / np.sqrt(0.5) / cutoff
  return {
    "hard": (ratio < 1 + 1e-6) * 1.0,
    "butterworth": (1 + ratio**8) ** -0.5,
    "gaussian": np.exp(-(ratio**2) / 2),
  }[config.band_shape]


def weight(config, sigmas, number, power):
  """B of a level, [8, 8]."""
  share = number / (len(sigmas) - 1)
  blend = config.blend_start * np.cos(np.pi * share / 2) ** 2
  square = mask(config, sigmas, number, power) ** 2
  if config.blend == "additive":
    return 1 + blend * square
  return 1 - blend + blend * square


def detail_weight(config, share):
  """Of the refined image in the details of a level."""
  high, start, end = config.haar_high, config.unlock_start, config.unlock_end
  u = start * (1 - share) + end * share
  return {
    "product": high * u,
    "clip": min(high, u),
    "base": high + (1 - high) * u,
    "delay": np.interp(share, [start, end], [high, 1.0]),
  }[config.unlock]


def fused(config, x0, z, share):
  how = dict(wavelet=config.wavelet, mode="periodization")
  old, new = (
    pywt.wavedec2(x, level=config.haar_levels, **how) for x in (x0, z)
  )
  high = detail_weight(config, share)
  merged = [old[0] + config.haar_low * (new[0] - old[0])]
  for a, b in zip(old[1:], new[1:]):
    merged.append(tuple(p + high * (q - p) for p, q in zip(a, b)))
  return pywt.waverec2(merged, **how)


def expected_image(config, x, y, gain, power, sigmas, number):
  """What a level makes of x [8, 8] before fresh noise."""
  square = sigmas[number] ** 2
  x0 = power / (power + square) * to_fourier(x)
  width = square if config.tie == "sigma" else power * square / (power + square)
  width = config.width_factor * width
  tau = config.inner_noise_std or NOISE
  variance = tau**2 if config.halved_misfit else tau**2 / 2
  b = weight(config, sigmas, number, power) / variance
  z = (np.conj(gain) * b * to_fourier(y) + x0 / width) / (
    np.abs(gain) ** 2 * b + 1 / width
  )
  x0, z = np.fft.ifft2(x0).real, np.fft.ifft2(z).real
  return fused(config, x0, z, number / (len(sigmas) - 1))


@pytest.mark.parametrize("case", CASES)
def test_one_transition(case):
  config = NFCConfig(levels=LEVELS, inner="mean", sigma_max=4.0, **CASES[case])
  power = priors.power_law_spectrum(*SIZE)
  prior = priors.gaussian_prior(power)
  operator = operators.gaussian_blur(
    (*SIZE, 1), size=3, std=0.8, boundary="circular"
  )
  keys = jax.random.split(jax.random.key(0), 2)
  y = jax.random.normal(keys[0], (1, *SIZE, 1))
  x = jax.random.normal(keys[1], (1, 1, *SIZE, 1))
  observation = Observation(y, operator, jnp.float32(NOISE))
  sampler = nfc(config, spectrum=power)

  @oracles.quick_jit
  def step(x, number, key):
    state = SamplerState(x, number)
    return sampler.step(state, prior.denoise, observation, key)[0].x

  delta = jnp.zeros((*SIZE, 1)).at[0, 0].set(1)
  gain = to_fourier(operator.forward(delta)[..., 0])
  sigmas = schedule.karras(LEVELS, sigma_max=4.0)
  for number in range(LEVELS):
    key = jax.random.key(number)
    noisy = float(sigmas[number]) * x
    found = step(noisy, jnp.int32(number), key)
    fresh = jax.random.normal(jax.random.split(key)[1], found.shape)
    image = expected_image(
      config,
      noisy[0, 0, ..., 0],
      y[0, ..., 0],
      gain,
      np.asarray(power, np.float64),
      sigmas[:-1],
      number,
    )
    expected = image + sigmas[number + 1] * np.asarray(fresh[0, 0, ..., 0])
    np.testing.assert_allclose(found[0, 0, ..., 0], expected, atol=1e-4)


def test_the_tie_of_the_spectrum_is_a_band_at_full_strength():
  """U with B = S / (S + sigma^2) and tie sigma^2 has the same minimiser.

  Multiply its normal equations by 1 / B, which commutes with a circular A.
  """
  sigma = 0.6
  power = priors.power_law_spectrum(*SIZE)
  operator = operators.gaussian_blur(
    (*SIZE, 1), size=3, std=0.8, boundary="circular"
  )
  keys = jax.random.split(jax.random.key(3), 2)
  y = jax.random.normal(keys[0], (1, *SIZE, 1))
  centre = jax.random.normal(keys[1], (1, 1, *SIZE, 1))
  observation = Observation(y, operator, jnp.float32(NOISE))
  share = bands.snr_band(power, SIZE, jnp.float32(sigma))

  @oracles.quick_jit
  def means():
    banded = bands.apply_band(observation, share)
    targets = (
      gaussian.Target(observation, centre, sigma**2 * share),
      gaussian.Target(banded, centre, jnp.float32(sigma**2)),
      gaussian.Target(observation, centre, jnp.float32(sigma**2)),
    )
    return [
      gaussian.mean(t, tolerance=1e-7, max_iterations=100)[0] for t in targets
    ]

  by_width, by_band, by_neither = means()
  np.testing.assert_allclose(by_band, by_width, atol=2e-5)
  assert np.abs(by_neither - by_width).max() > 0.1
