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
from posterior_jax.nfc_sampler import (
  Band,
  Exponential,
  Fusion,
  Mean,
  Power,
  Radial,
  Schedule,
  Sigma,
  Snr,
  Spectrum,
)
from tests import oracles

SIZE = (8, 8)
NOISE, LEVELS = 0.1, 5
# Between them every choice of cutoff, shape, blend, unlock and wavelet, one to
# three levels, and weights that are not 1.
CASES = {
  "paper": dict(
    width=Sigma(),
    band=Band(),
    fusion=Fusion(),
    halved_misfit=False,
    inner_noise_std=0.07,
  ),
  "butterworth": dict(
    width=Sigma(),
    band=Band(
      Radial("log_sigma", 0.2, 0.7, shape="butterworth"),
      blend="additive",
      blend_start=0.9,
    ),
    fusion=Fusion(
      "db2", levels=2, low=0.6, high=0.5, unlock="clip", unlock_start=0.1
    ),
  ),
  "gaussian": dict(
    width=Sigma(),
    band=Band(Radial(shape="gaussian"), blend_start=1.0),
    fusion=Fusion(
      "bior4.4",
      levels=3,
      low=0.3,
      high=0.4,
      unlock="base",
      unlock_start=0.2,
      unlock_end=0.8,
    ),
  ),
  "snr": dict(
    width=Spectrum(1.5),
    band=Band(Snr(), blend_start=0.8),
    fusion=Fusion(
      levels=2,
      low=0.9,
      high=0.1,
      unlock="delay",
      unlock_start=0.3,
      unlock_end=0.9,
    ),
  ),
  "authors' draft": dict(
    width=Sigma(),
    band=Band(
      Radial(Exponential(3.0), cutoff_start=0.2),
      blend_start=0.8,
      blend_end=0.3,
      law=Power(2.0),
    ),
    fusion=Fusion(levels=2, high=(1.0, 0.26, 0.2), unlock_start=0.1),
  ),
  "within the band only": dict(
    width=Sigma(),
    band=Band(
      Radial(cutoff_start=0.3, cutoff_end=0.6), blend_start=1.0, blend_end=1.0
    ),
    inner_noise_std=0.3,
  ),
  "share of the spectrum": dict(
    width=Sigma(),
    band=Band(Snr(), power=1, blend_start=1.0, blend_end=0.4),
    fusion=Fusion(
      high=(0.3, 0.5, 0.8), unlock="base", unlock_start=0.1, unlock_end=0.7
    ),
  ),
}


def to_fourier(x):
  return np.fft.fft2(np.asarray(x, np.float64))


def progress(sigmas, law):
  if law == "log_sigma":
    return np.log(sigmas[0] / sigmas) / np.log(sigmas[0] / sigmas[-1])
  return np.arange(len(sigmas)) / (len(sigmas) - 1)


def mask(how, sigmas, number, power):
  """M of a level, [8, 8]."""
  if how == Snr():
    return power / (power + sigmas[number] ** 2)
  if isinstance(how.law, Exponential):
    share = 1 - np.exp(-how.law.rate * progress(sigmas, "step")[number])
  else:
    share = progress(sigmas, how.law)[number]
  cutoff = how.cutoff_start * (1 - share) + how.cutoff_end * share
  f = np.fft.fftfreq(8)
  ratio = np.hypot(f[:, None], f) / np.sqrt(0.5) / cutoff
  return {
    "hard": (ratio < 1 + 1e-6) * 1.0,
    "butterworth": (1 + ratio**8) ** -0.5,
    "gaussian": np.exp(-(ratio**2) / 2),
  }[how.shape]


def weight(band, sigmas, number, power):
  """B of a level, [8, 8]."""
  share = number / (len(sigmas) - 1)
  if isinstance(band.law, Power):
    left = (1 - share) ** band.law.exponent
  else:
    left = np.cos(np.pi * share / 2) ** 2
  blend = band.blend_start * left + band.blend_end * (1 - left)
  weight = mask(band.mask, sigmas, number, power) ** band.power
  if band.blend == "additive":
    return 1 + blend * weight
  return 1 - blend + blend * weight


def detail_weight(fusion, high, share):
  """Of the refined image in one kind of detail of a level."""
  start, end = fusion.unlock_start, fusion.unlock_end
  u = start * (1 - share) + end * share
  return {
    "product": high * u,
    "clip": min(high, u),
    "base": high + (1 - high) * u,
    "delay": np.interp(share, [start, end], [high, 1.0]),
  }[fusion.unlock]


def fused(fusion, x0, z, share):
  if fusion is None:
    return z
  how = dict(wavelet=fusion.wavelet, mode="periodization")
  old, new = (pywt.wavedec2(x, level=fusion.levels, **how) for x in (x0, z))
  each = np.broadcast_to(fusion.high, 3)  # LH, HL, HH, as in cH, cV, cD
  high = [detail_weight(fusion, weight, share) for weight in each]
  merged = [old[0] + fusion.low * (new[0] - old[0])]
  for a, b in zip(old[1:], new[1:]):
    merged.append(tuple(p + w * (q - p) for w, p, q in zip(high, a, b)))
  return pywt.waverec2(merged, **how)


def expected_image(config, x, y, gain, power, sigmas, number):
  """What a level makes of x [8, 8] before fresh noise."""
  square = sigmas[number] ** 2
  x0 = power / (power + square) * to_fourier(x)
  spectral = power * square / (power + square)
  width = square if isinstance(config.width, Sigma) else spectral
  width = config.width.factor * width
  tau = config.inner_noise_std or NOISE
  variance = tau**2 if config.halved_misfit else tau**2 / 2
  b = weight(config.band, sigmas, number, power) / variance
  z = (np.conj(gain) * b * to_fourier(y) + x0 / width) / (
    np.abs(gain) ** 2 * b + 1 / width
  )
  x0, z = np.fft.ifft2(x0).real, np.fft.ifft2(z).real
  return fused(config.fusion, x0, z, number / (len(sigmas) - 1))


@pytest.mark.parametrize("case", CASES)
def test_one_transition(case):
  config = NFCConfig(
    levels=LEVELS,
    schedule=Schedule(sigma_max=4.0),
    inner=Mean(tolerance=1e-6),
    **CASES[case],
  )
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
