"""A whole run against its closed form, wavelets included.

Under a circular blur and a Gaussian prior a level is affine in the state: all
but the fusion is diagonal in Fourier space, and Haar couples the four aliases
of a frequency. Mean and covariance of the chain are propagated as matrices on
the 64 pixels of an image in float64, by the laws of `test_transition`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import NFCConfig, Observation, nfc, operators, priors, run
from posterior_jax import schedule as schedules
from posterior_jax.nfc_sampler import (
  Band,
  Exact,
  Fusion,
  Langevin,
  Mean,
  Ode,
  Power,
  Radial,
  Schedule,
  Sigma,
  Snr,
  Spectrum,
)
from tests import oracles, test_transition

SIZE, NOISE = (8, 8), 0.1
CASES = {
  "paper": NFCConfig.paper(),
  "exact draws": NFCConfig(width=Spectrum()),
  "a band that stays": NFCConfig(
    width=Sigma(),
    inner=Mean(tolerance=1e-6),
    band=Band(Snr(), power=1, blend_start=1.0, blend_end=0.5, law=Power(2.0)),
  ),
  "two levels of db2": NFCConfig(
    width=Sigma(),
    inner=Exact(),
    predictor=Ode("euler", steps=3),
    fusion=Fusion("db2", levels=2, low=0.8, high=(1.0, 0.3, 0.2)),
  ),
  "plug and play": NFCConfig(
    schedule=Schedule(start="measurement", renewal=0.0, sigma_max=1.0),
    width=Spectrum(3.0),
    inner=Mean(tolerance=1e-6),
  ),
  "half of the noise": NFCConfig(
    schedule=Schedule(start="measurement", renewal=0.5, sigma_max=2.0),
    width=Spectrum(),
    inner=Exact(),
  ),
  "a large tau": NFCConfig.paper(
    inner=Langevin(steps=50, step_size=1e-3, decay=0.5),
    band=Band(Radial(shape="gaussian"), blend="additive"),
    fusion={"unlock": "base"},
    inner_noise_std=0.1,
  ),
}


def predicted(config, power, sigma):
  """Fourier diagonal of the predictor."""
  if not isinstance(config.predictor, Ode):
    return power / (power + sigma**2)
  steps, rho = config.predictor.steps, config.schedule.rho
  end = min(config.predictor.sigma_end, sigma)
  nodes = np.linspace(sigma ** (1 / rho), end ** (1 / rho), steps + 1) ** rho
  gain = np.ones_like(power)
  for now, following in itertools.pairwise(nodes):
    slope = (1 - power / (power + now**2)) / now
    gain = gain * (1 + (following - now) * slope)
  return gain


def moved(config, number, sigmas, power, gain):
  """Fourier diagonals of z on x0 and on y, and the variance of its noise."""
  inner, renewal = config.inner, config.schedule.renewal
  # Where no noise is added the next level's denoiser is what a width is for.
  ahead = sigmas[min(number + 1, len(sigmas) - 1)]
  sigma = np.hypot(renewal * sigmas[number], (1 - renewal**2) ** 0.5 * ahead)
  width = sigma**2
  if isinstance(config.width, Spectrum):
    width = config.width.factor * power * sigma**2 / (power + sigma**2)
  tau = config.inner_noise_std or NOISE
  weight = 1 / tau**2 if config.halved_misfit else 2 / tau**2
  if config.band is not None:
    weight = weight * test_transition.weight(config.band, sigmas, number, power)
  precision = np.abs(gain) ** 2 * weight + 1 / width
  of_x0, of_y = 1 / width / precision, np.conj(gain) * weight / precision
  if not isinstance(inner, Langevin):
    drawn = isinstance(inner, Exact) / precision
    return of_x0, of_y, drawn
  share = number / (len(sigmas) - 1)
  step = inner.step_size * (1 + (inner.decay - 1) * share)
  decay = 1 - step * precision
  left = decay**inner.steps
  noise = 2 * step * (1 - left**2) / (1 - decay**2)
  return left + (1 - left) * of_x0, (1 - left) * of_y, noise


def closed_form(config, y, power, gain):
  """Mean [64] and covariance [64, 64] of the last image, given y."""
  how = config.schedule
  last = schedules.karras(config.levels, sigma_max=how.sigma_max)
  sigmas = last[:-1]
  identity = np.eye(64)
  mean = np.zeros(64)
  covariance = (how.renewal * sigmas[0]) ** 2 * identity
  if how.start == "measurement":
    wide = config.width.factor * power / (1 + power / sigmas[0] ** 2)
    pull = np.conj(gain) / (np.abs(gain) ** 2 + NOISE**2 / wide)
    # From the blurred image itself.
    moved_to = 1 + pull * (1 - gain)
    mean = np.fft.ifft2(moved_to * np.fft.fft2(y)).real.ravel()
  for number, following in enumerate(last[1:]):
    share = number / (len(sigmas) - 1)
    of_x0, of_y, noise = moved(config, number, sigmas, power, gain)
    x0 = oracles.fourier_diagonal(predicted(config, power, sigmas[number]))
    # The fusion of a correction z - x0, column by column.
    fuse = oracles.dense(
      lambda z, share=share: test_transition.fused(
        config.fusion, np.zeros(SIZE), z, share
      ),
      SIZE,
    )
    stay = identity + fuse @ (oracles.fourier_diagonal(of_x0) - identity)
    step = stay @ x0
    pull = np.fft.ifft2(of_y * np.fft.fft2(y)).real.ravel()
    mean = step @ mean + fuse @ pull
    spread = fuse @ oracles.fourier_diagonal(noise + 0 * power) @ fuse.T
    covariance = step @ covariance @ step.T + spread
    covariance = covariance + (how.renewal * following) ** 2 * identity
  return mean, covariance


# The fast ones have between them fusion, band, both predictors and starts.
FAST = ("paper", "plug and play")
RUNS = [
  pytest.param(
    case,
    levels,
    marks=() if levels == 3 and case in FAST else pytest.mark.slow,
  )
  for case in CASES
  for levels in (3, 20, 200)
]


@pytest.mark.parametrize(("case", "levels"), RUNS)
def test_a_run_is_its_closed_form(case, levels):
  config = CASES[case].replace(levels=levels)
  power = priors.power_law_spectrum(*SIZE)
  prior = priors.gaussian_prior(power)
  operator = operators.gaussian_blur(
    (*SIZE, 1), size=3, std=0.8, boundary="circular"
  )
  keys = jax.random.split(jax.random.key(0), 2)
  y = jax.random.normal(keys[0], (1, *SIZE, 1))
  count = 300 if levels == 3 else 1000
  x, _ = run(
    nfc(config, spectrum=power),
    prior.denoise,
    Observation(y, operator, NOISE),
    keys[1],
    num_samples=count,
  )
  samples = np.asarray(x, np.float64).reshape(count, 64)
  delta = jnp.zeros((*SIZE, 1)).at[0, 0].set(1)
  gain = np.fft.fft2(np.asarray(operator.forward(delta)[..., 0], np.float64))
  mean, covariance = closed_form(
    config,
    np.asarray(y[0, ..., 0], np.float64),
    np.asarray(power, np.float64),
    gain,
  )
  if config.schedule.renewal == 0:
    np.testing.assert_allclose(samples, np.tile(mean, (count, 1)), atol=1e-3)
    return
  spread = np.sqrt(np.diag(covariance))
  error = np.abs(samples.mean(0) - mean) / spread
  # The largest of 64 means, at five standard errors; float32 beside it.
  assert error.max() < 5 / np.sqrt(count) + 1e-3 / spread.min(), error.max()
  found = samples.var(0).sum() / np.trace(covariance)
  # Var of a sum of squares: 2 tr(C^2) / n, relative to tr(C)^2.
  chance = np.sqrt(2 * np.sum(covariance**2) / count) / np.trace(covariance)
  assert abs(found - 1) < 4 * chance + 2e-3, (found, chance)
