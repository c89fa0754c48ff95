"""How one level moves its prediction towards the measurement."""

from typing import Any, NamedTuple

import jax
import numpy as np

from posterior_jax.base import Denoiser, Observation, SolveInfo
from posterior_jax.denoising import predictor
from posterior_jax.nfc_sampler import bands, jacobian, likelihood
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.inflation import inflated
from posterior_jax.nfc_sampler.levels import Levels


class Moved(NamedTuple):
  """A level's prediction, its refinement, and what that took."""

  x0: jax.Array
  z: jax.Array
  solve: SolveInfo
  products: jax.Array | int


def refined(
  config: NFCConfig,
  spectrum: jax.Array | None,
  key: jax.Array,
  denoise: Denoiser,
  x: jax.Array,
  observation: Observation,
  now: Levels,
) -> Moved:
  """One level before its fusion.

  Args:
    config: of the sampler.
    spectrum: the prior's, or None where no width needs it.
    key: of the inner draw.
    denoise: the prior's denoiser.
    x: [B, N, H, W, C] at the level's noise.
    observation: as measured.
    now: the level.

  Returns:
    The prediction, its refinement, and what that took.
  """
  believed = _believed(config, observation)
  observation = _banded(config, spectrum, believed, now)
  if config.tie == "jacobian":
    return _by_jacobian(config, key, denoise, x, observation, now.sigma)
  variance = now.sigma**2
  if config.tie != "sigma":
    assert spectrum is not None  # checked_spectrum refused that
    variance = spectrum * variance / (spectrum + variance)
  if config.tie == "probed":
    key, key_probe = jax.random.split(key)
    x0, covariance = jacobian.linearise(denoise, x, now.sigma)
    variance = jacobian.corrected(key_probe, covariance, variance, x)
  else:
    x0 = predictor.predict(
      denoise,
      x,
      now.sigma,
      kind=config.predictor,
      steps=config.predictor_steps,
      sigma_end=config.predictor_sigma_min,
      rho=config.rho,
    )
  if config.inflation > 1:
    key, key_probe = jax.random.split(key)
    variance = inflated(key_probe, believed, x0, variance, config.inflation)
  z, solve = likelihood.refine(
    key,
    likelihood.Target(observation, x0, config.width_factor * variance),
    config.inner,
    steps=config.inner_steps,
    step_size=now.step_size,
    tolerance=config.tolerance,
    max_iterations=config.max_iterations,
  )
  return Moved(x0, z, solve, int(config.tie == "probed"))


def _believed(config: NFCConfig, observation: Observation) -> Observation:
  """The observation with the noise that the likelihood assumes."""
  if config.inner_noise_std is None and config.halved_misfit:
    return observation
  noise = config.inner_noise_std or observation.noise_std
  noise = noise if config.halved_misfit else noise / np.sqrt(2)
  return Observation(observation.y, observation.operator, noise)


def _banded(
  config: NFCConfig,
  spectrum: jax.Array | None,
  observation: Observation,
  now: Levels,
) -> Observation:
  """The observation in the level's band."""
  if config.blend_start == 0:
    return observation
  shape = observation.operator.measurement_shape[:2]
  if config.cutoff == "snr":
    assert spectrum is not None
    band = bands.snr_band(spectrum, shape, now.sigma)
  else:
    band = bands.radial_band(shape, now.cutoff, config.band_shape)
  weight = bands.weight(band, now.blend, config.blend)
  return likelihood.apply_band(observation, weight)


def _by_jacobian(
  config: NFCConfig,
  key: jax.Array,
  denoise: Denoiser,
  x: jax.Array,
  observation: Observation,
  sigma: jax.Array,
) -> Moved:
  """The level under the width of the denoiser's Jacobian at x."""
  x0, own = jacobian.linearise(denoise, x, sigma)

  def covariance(v: jax.Array) -> jax.Array:
    return config.width_factor * own(v)

  stop: dict[str, Any] = {
    "tolerance": config.tolerance,
    "max_iterations": config.max_iterations,
  }
  if config.inner == "mean":
    return Moved(x0, *jacobian.mean(observation, x0, covariance, **stop))
  return Moved(
    x0,
    *jacobian.draw(
      key,
      observation,
      x0,
      covariance,
      root_steps=config.root_steps,
      **stop,
    ),
  )
