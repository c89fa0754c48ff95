"""What changes from level to level of noise-frequency continuation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import bands, schedule
from posterior_jax.config import NFCConfig


class Levels(NamedTuple):
  """What changes from level to level, each [levels] or, of one level, [].

  `following` is the noise of the next level, 0 after the last; `share` the
  weight of the level's image in the average, 0 before the held levels.
  """

  sigma: jax.Array
  following: jax.Array
  cutoff: jax.Array
  blend: jax.Array
  details: jax.Array
  step_size: jax.Array
  share: jax.Array


def levels(config: NFCConfig) -> Levels:
  """Every level of a run, each entry [config.levels]."""
  held = config.held_levels
  ramp_down = schedule.karras(
    config.levels - held,
    sigma_max=config.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.rho,
  )
  sigma = np.concatenate(
    [ramp_down[:-1], np.full(held, config.sigma_min), ramp_down[-1:]]
  )
  share = np.concatenate(
    [np.zeros(config.levels - held), 1 / np.arange(1, held + 1)]
  )
  by_step = bands.linear_progress(sigma[:-1], "step")
  widening = by_step
  if config.cutoff == "log_sigma":
    widening = bands.linear_progress(sigma[:-1], "log_sigma")

  def ramp(start: float, end: float, progress: np.ndarray) -> np.ndarray:
    return start + (end - start) * progress

  parts = (
    sigma[:-1],
    sigma[1:],
    ramp(config.cutoff_start, config.cutoff_end, widening),
    bands.cosine_blend(config.blend_start, by_step),
    config.detail_weights(by_step),
    config.step_size * ramp(1.0, config.step_size_decay, by_step),
    share,
  )
  return Levels(*(jnp.asarray(part, jnp.float32) for part in parts))
