"""What changes from level to level of noise-frequency continuation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import schedule
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.records import Inner, Langevin
from posterior_jax.nfc_sampler.schedule_settings import Schedule
from posterior_jax.nfc_sampler.weights import Band, Exponential, Power, Radial

# Neighbours differ in two or all of: mirrored rows, columns, transposed.
_WAYS = 0, 3, 5, 6, 1, 2, 4, 7


class Level(NamedTuple):
  """Everything of one noise level that is a number, float32.

  Scalars, but for `details`; `levels_of` makes all levels of a run at once,
  every entry with the leading axis [passes * levels].

  Attributes:
    sigma: noise of the state.
    following: noise of the next level's state, 0 after the last.
    tied: noise by which the widths `Sigma` and `Spectrum` are measured: sigma
      where noise is added anew, `following` where none is, since the denoiser
      of the next level takes out what this one leaves, and where it is filled
      in, since that noise is moved to the measurement as well; sigma again
      where it is kept. At the end of a pass `following` is the noise that the
      next one begins with; refined images that are averaged have sigma there.
    cutoff: of the band, fraction of the largest radius.
    blend: weight l of the banded misfit.
    details: weight of the refined image's wavelet details; [3] where LH, HL
      and HH differ.
    step_size: of Langevin updates.
    share: weight of the level's image in the running average, 0 where the
      level is not held.
    pace: share of the way from the last level's prediction to this one's that
      is added to it, m log(sigma' / sigma); 0 at the first level of a pass.
    reach: how far an image is moved, in units of what the inner method says: w,
      or 1 at the last level, and at that of every pass where refined images are
      averaged.
    way: in which of eight the image is turned for the denoiser; 0, as it is, at
      the last level.
    anew: 1 at the last level of a pass that another one follows, whose first
      state shares no noise with this one; else 0.
  """

  sigma: jax.Array
  following: jax.Array
  tied: jax.Array
  cutoff: jax.Array
  blend: jax.Array
  details: jax.Array
  step_size: jax.Array
  share: jax.Array
  pace: jax.Array
  reach: jax.Array
  way: jax.Array
  anew: jax.Array


def levels_of(config: NFCConfig) -> Level:
  """Every level of a run, each entry [passes * config.levels, ...]."""
  held, how = config.held_levels, config.schedule
  sigma = np.full(config.levels + 1, config.sigma_min)
  ramp = config.levels - held
  if ramp:
    ends = {"sigma_max": how.sigma_max, "sigma_min": config.sigma_min}
    sigma[:ramp] = schedule.karras(ramp, rho=how.rho, **ends)[:-1]
  sigma[-1] = 0.0
  # Only the last pass ends in 0: the others go on at the first level's noise.
  nodes = np.append(np.tile(sigma[:-1], how.passes), sigma[-1])
  # A pass of one level goes on at the same noise: its place says that it ends.
  count = np.arange(1, len(nodes))
  anew = (count % config.levels == 0) & (nodes[1:] > 0)
  last = _last(nodes, anew, how)
  # Weights 1, 1/2, 1/3, ... make a running mean of all held levels so far.
  share = np.zeros((how.passes, config.levels))
  averaged = np.arange(1, how.passes * held + 1).reshape(how.passes, held)
  share[:, config.levels - held :] = 1 / averaged
  by_step = schedule.progress(sigma[:-1], "step")
  each_pass = (
    *_opening(config.band, sigma[:-1]),
    config.detail_weights(by_step),
    _step_sizes(config.inner, by_step),
  )
  parts = (
    nodes[:-1],
    nodes[1:],
    _tied(nodes, last, how),
    *(np.concatenate([part] * how.passes) for part in each_pass),
    share.ravel(),
    _paces(nodes[:-1], how.momentum),
    1 + (how.relaxation - 1) * np.float32(~last),
    np.array(_WAYS)[(count - len(count)) % len(_WAYS)],
    anew,
  )
  # Ramps are made in float64 and rounded once.
  return Level(*(jnp.asarray(part, jnp.float32) for part in parts))


def _last(nodes: np.ndarray, anew: np.ndarray, how: Schedule) -> np.ndarray:
  """Whether an image is a result, and no more than that, by level, [K]."""
  last = nodes[1:] == 0
  # What a pass ends with is averaged, and is not only what the next one begins
  # with, at so much more noise.
  return last | anew if how.averaged == "refined" else last


def _tied(nodes: np.ndarray, last: np.ndarray, how: Schedule) -> np.ndarray:
  """Of every level, [K]: tied^2 = r^2 sigma^2 + (1 - r^2) sigma'^2."""
  sigma, following = nodes[:-1], nodes[1:]
  renewal = {"filled": 0.0, "kept": 1.0}.get(how.noise, how.renewal)
  if renewal == 1:
    return sigma
  # There is nothing that the image of a last level could be tied for.
  following = np.where(last, sigma, following)
  return np.sqrt(renewal**2 * sigma**2 + (1 - renewal**2) * following**2)


def _paces(sigma: np.ndarray, momentum: jax.Array | float) -> Any:
  """Of every level, [K]: m log(sigma' / sigma), where the noise falls."""
  fallen = np.log(sigma[:-1] / sigma[1:])
  return momentum * np.append(0.0, np.maximum(fallen, 0))


def _opening(
  band: Band | None, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Cutoff and blend weight of every level, [K] each."""
  by_step = schedule.progress(sigma, "step")
  if band is None:
    return np.ones_like(by_step), np.zeros_like(by_step)
  cutoff = np.ones_like(by_step)
  if isinstance(band.mask, Radial):
    law = band.mask.law
    if isinstance(law, Exponential):
      widening = schedule.saturating(by_step, law.rate)
    else:
      widening = schedule.progress(sigma, law)
    ends = band.mask.cutoff_start, band.mask.cutoff_end
    cutoff = schedule.ramp(*ends, widening)
  return cutoff, _blends(band, by_step)


def _blends(band: Band, progress: np.ndarray) -> np.ndarray:
  """l of every level, [K]: from blend_start to blend_end by either law."""
  fall = band.blend_start - band.blend_end
  if isinstance(band.law, Power):
    return band.blend_end + fall * (1 - progress) ** band.law.exponent
  return band.blend_end + cosine_blend(fall, progress)


def _step_sizes(inner: Inner, progress: np.ndarray) -> np.ndarray:
  """Of Langevin updates, [K]; 0 where there are none."""
  if not isinstance(inner, Langevin):
    return np.zeros_like(progress)
  return inner.step_size * schedule.ramp(1.0, inner.decay, progress)


def cosine_blend(start: float, progress: np.ndarray) -> np.ndarray:
  """l = start (1 + cos(pi p)) / 2: from `start` to 0, flat at both ends."""
  return start * 0.5 * (1 + np.cos(np.pi * progress))
