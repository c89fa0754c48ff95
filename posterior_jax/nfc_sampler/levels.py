"""What changes from level to level of noise-frequency continuation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import schedule
from posterior_jax.nfc_sampler import bands
from posterior_jax.nfc_sampler.config import NFCConfig


class Levels(NamedTuple):
  """What changes from level to level, [passes * levels] or, of one level, [].

  `following` is the noise of the next level, 0 after the last; `share` the
  weight of the level's image in the average, 0 where the level is not held.
  """

  sigma: jax.Array
  following: jax.Array
  cutoff: jax.Array
  blend: jax.Array
  details: jax.Array
  step_size: jax.Array
  share: jax.Array


def levels(config: NFCConfig) -> Levels:
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
  )
  nodes = np.append(np.tile(sigma[:-1], passes), sigma[-1])
  share = np.zeros((passes, config.levels))
  averaged = np.arange(1, passes * held + 1).reshape(passes, held)
  share[:, config.levels - held :] = 1 / averaged
  by_step = bands.linear_progress(sigma[:-1], "step")
  widening = by_step
  if config.cutoff == "log_sigma":
    widening = bands.linear_progress(sigma[:-1], "log_sigma")

  def ramp(start: float, end: float, progress: np.ndarray) -> np.ndarray:
    return start + (end - start) * progress

  each_pass = (
    ramp(config.cutoff_start, config.cutoff_end, widening),
    bands.cosine_blend(config.blend_start, by_step),
    config.detail_weights(by_step),
    config.step_size * ramp(1.0, config.step_size_decay, by_step),
  )
  parts = (
    nodes[:-1],
    nodes[1:],
    *(np.tile(part, passes) for part in each_pass),
    share.ravel(),
  )
  return Levels(*(jnp.asarray(part, jnp.float32) for part in parts))
