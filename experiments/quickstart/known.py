"""How right the spread of samples is, where the posterior is known exactly.

A stationary Gaussian prior with the spectrum of photographs under circular
blur: Fourier space diagonalises both, so that the posterior variance of every
coefficient is 1 / (|H|^2 / s^2 + 1 / S).
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

import posterior_jax
from experiments.data import degradations
from experiments.harness.settings import Checked, setting
from posterior_jax import NFCConfig, Observation, metrics, operators
from posterior_jax.nfc_sampler import Ode, Sigma

CALIBRATED = "NFC calibrated()"
PUBLISHED = "published centre and width"


@dataclasses.dataclass(frozen=True)
class KnownSettings(Checked):
  """What is sampled."""

  seed: int = 0  # of images, noise and samplers
  # More than one: calibrated() widens where a measurement is a rare surprise.
  # how many are drawn of the prior and measured
  images: int = setting(8, at_least=1)
  size: int = setting(32, at_least=16)  # their side
  # of the measurement, pixels in [-1, 1]
  noise_std: float = setting(0.05, above=0)
  # of either sampler, for every image
  num_samples: int = setting(32, at_least=3)
  levels: int = setting(20, at_least=1)  # of their noise


class BandRow(NamedTuple):
  """Variance of samples over the exact one in a radial band of frequency."""

  method: str  # CALIBRATED or PUBLISHED
  upper: float  # largest radius in the band, cycles per pixel
  coefficients: int  # in it, of each channel
  ratio: float  # 1 for exact samples
  error: float  # its Monte Carlo standard error


def study(settings: KnownSettings) -> list[BandRow]:
  """A row for each of 8 bands and both samplers."""
  shape = (settings.size, settings.size, 3)
  prior = degradations.build_prior(settings.size)
  operator = operators.gaussian_blur(
    shape, size=9, std=1.5, boundary="circular"
  )
  image, noise, draws = jax.random.split(jax.random.key(settings.seed), 3)
  clean = operator.forward(prior.sample(image, (settings.images,), channels=3))
  y = clean + settings.noise_std * jax.random.normal(noise, clean.shape)
  observation = Observation(y, operator, settings.noise_std)
  gain = operator.gram_gain / settings.noise_std**2  # [H, W]
  variance = 1 / (gain + 1 / prior.spectrum)
  rows = []
  for method, config in _configs(settings.levels).items():
    sampler = posterior_jax.nfc(config, spectrum=prior.spectrum)
    samples, _ = posterior_jax.run(
      sampler,
      prior.denoise,
      observation,
      draws,
      num_samples=settings.num_samples,
    )
    found = _variance_ratio(samples, variance)
    bands = (found.upper, found.coefficients, found.bands, found.bands_error)
    rows += [
      BandRow(method, float(upper), int(count), float(ratio), float(error))
      for upper, count, ratio, error in zip(*map(np.asarray, bands))
    ]
  return rows


# One program for both samplers.
_variance_ratio = jax.jit(metrics.variance_ratio)


def _configs(levels: int) -> dict[str, NFCConfig]:
  """The second is the first but for what moves an image, as published."""
  ours = NFCConfig.calibrated(levels=levels)
  # Left open, the last noise would follow the width and be the larger.
  ends = {"sigma_min": ours.sigma_min}
  published = ours.replace(predictor=Ode(), width=Sigma(), schedule=ends)
  return {CALIBRATED: ours, PUBLISHED: published}
