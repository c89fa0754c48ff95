"""What changes from level to level of noise-frequency continuation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import schedule
from posterior_jax.nfc_sampler.config import NFCConfig


class Level(NamedTuple):
  """Everything of one noise level that is a number, each a float32 scalar.

  `levels_of` makes all levels of a run at once, every entry [passes * levels].

  Attributes:
    sigma: noise of the state.
    following: noise of the next level's state, 0 after the last.
    cutoff: of the band, fraction of the largest radius.
    blend: weight l of the banded misfit.
    details: weight of the refined image's wavelet details.
    step_size: of Langevin updates.
    share: weight of the level's image in the running average, 0 where the
      level is not held.
  """

  sigma: jax.Array
  following: jax.Array
  cutoff: jax.Array
  blend: jax.Array
  details: jax.Array
  step_size: jax.Array
  share: jax.Array


def levels_of(config: NFCConfig) -> Level:
  """Every level of a run, each entry [config.passes * config.levels]."""
  held, passes = config.held_levels, config.passes
  ramp_down = schedule.karras(
    config.levels - held,
    sigma_max=config.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.rho,
  )
  sigma = np.concatenate(
    [ramp_down[:-1], np.full(held, config.sigma_min), ramp_down[-1:]]
  )  # [levels + 1]
  # Only the last pass ends in 0: the others go on at the first level's noise.
  nodes = np.append(np.tile(sigma[:-1], passes), sigma[-1])
  # Weights 1, 1/2, 1/3, ... make a running mean of all held levels so far.
  share = np.zeros((passes, config.levels))
  averaged = np.arange(1, passes * held + 1).reshape(passes, held)
  share[:, config.levels - held :] = 1 / averaged
  by_step = schedule.progress(sigma[:-1], "step")
  by_noise = schedule.progress(sigma[:-1], "log_sigma")
  widening = by_noise if config.cutoff == "log_sigma" else by_step
  each_pass = (
    schedule.ramp(config.cutoff_start, config.cutoff_end, widening),
    cosine_blend(config.blend_start, by_step),
    config.detail_weights(by_step),
    config.step_size * schedule.ramp(1.0, config.step_size_decay, by_step),
  )
  parts = (
    nodes[:-1],
    nodes[1:],
    *(np.tile(part, passes) for part in each_pass),
    share.ravel(),
  )
  # Ramps are made in float64 and rounded once.
  return Level(*(jnp.asarray(part, jnp.float32) for part in parts))


def cosine_blend(start: float, progress: np.ndarray) -> np.ndarray:
  """l = start (1 + cos(pi p)) / 2: from `start` to 0, flat at both ends."""
  return start * 0.5 * (1 + np.cos(np.pi * progress))
