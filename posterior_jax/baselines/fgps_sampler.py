"""FGPS: DPS on the low frequencies of the residual, more of them each step.

Thaker, Goyal and Vidal 2025, Frequency-Guided Posterior Sampling for
Diffusion-Based Image Restoration, arXiv 2411.15295.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler
from posterior_jax.baselines import diffusion, dps_sampler, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.likelihood import bands

# Of the exponential law: 99.3 % of the way is done at the last level.
_RATE = 5.0
# One cycle per 256 pixels as a share of the largest radius, sqrt(1/2): they
# count cutoffs in cycles per image of 256 pixels.
_PIXEL = np.sqrt(2) / 256


@dataclasses.dataclass(frozen=True)
class FGPSConfig:
  """Settings of `fgps`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    scale_start: `DPSConfig.scale` at the first level.
    scale_end: at the last one, reached by a cosine.
    cutoff_start: first cutoff, fraction of the largest radius of the
      measurement's spectrum (its corner).
    cutoff_end: last cutoff; below 1 some frequencies are never used.
    cutoff_law: "exponential" (to end - (end - start) e^-5) or "linear", by
      step.
    clip: as in `DPSConfig`.
  """

  levels: int = 1000
  scale_start: float = 1.0
  scale_end: float = 0.5
  cutoff_start: float = 0.1
  cutoff_end: float = 1.0
  cutoff_law: Literal["linear", "exponential"] = "exponential"
  clip: bool = True

  def __post_init__(self) -> None:
    cutoff, scale = (1e-3, 1.0), (0.0, 1e4)
    ranges = {"cutoff_start": cutoff, "cutoff_end": cutoff}
    ranges |= {"scale_start": scale, "scale_end": scale}
    fields.check(self, {"levels": (1, 1000), **ranges})

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "FGPSConfig":
    """The authors' configurations for FFHQ at 256 x 256.

    Cutoff 10 to 75 cycles per image, exponential; scale 5 to 1 for motion
    blur, 3 to 0.6 for Gaussian blur. They have no other task of ours: those
    take the setting of Gaussian blur.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.
    """
    start, end = tasks.choose(task, {"motion_blur": (5.0, 1.0)}, (3.0, 0.6))
    published: dict[str, Any] = dict(
      scale_start=start,
      scale_end=end,
      cutoff_start=10 * _PIXEL,
      cutoff_end=75 * _PIXEL,
    )
    return tasks.settings(cls, task, published, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "FGPSConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"scale_start": 1.0, "scale_end": 6.0}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def fgps(config: FGPSConfig = FGPSConfig.published()) -> Sampler:  # noqa: B008
  """Frequency-guided posterior sampling.

    x' = ancestral step - scale_k sqrt((1 + sigma^2) (1 + sigma'^2)) d||M_k
    r||/dx, r = y - A D(x, sigma)

  M_k keeps the residual's frequencies below the step's cutoff, a hard disc on
  the measurement's grid. The authors' code takes the annealed scale from names
  that it never sets; the cosine from start to end is what they intend.
  Residuals of dropped pixels are emptied before the filter.

  Args:
    config: see `FGPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): one call and one Jacobian product per step.
  """
  sigmas = schedule.ddpm(config.levels)
  progress = schedule.progress(sigmas[:-1], "step")
  widening = progress
  if config.cutoff_law == "exponential":
    widening = schedule.saturating(progress, _RATE)
  cutoffs = _ramp(config.cutoff_start, config.cutoff_end, widening)
  easing = (1 - np.cos(np.pi * progress)) / 2
  scales = _ramp(config.scale_start, config.scale_end, easing)

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    bands.check(observation.operator)
    shape = observation.operator.measurement_shape[:2]
    return dps_sampler.guided(
      key,
      level,
      x,
      denoise,
      observation,
      scale=scales[level.number],
      clip=config.clip,
      band=bands.radial_band(shape, cutoffs[level.number], "hard"),
    )

  return diffusion.sampler(sigmas, move)


def _ramp(start: float, end: float, progress: np.ndarray) -> jax.Array:
  return jnp.asarray(schedule.ramp(start, end, progress), jnp.float32)
