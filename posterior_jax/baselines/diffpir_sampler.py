"""DiffPIR: a proximal data step inside DDIM.

Zhu et al. 2023, Denoising Diffusion Models for Plug-and-Play Image Restoration,
arXiv 2305.08995.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian
from posterior_jax.schedule import Spacing


@dataclasses.dataclass(frozen=True)
class DiffPIRConfig:
  """Settings of `diffpir`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000 (500 if quadratic),
      one call each.
    spacing: of their timesteps, as in `schedule.ddpm`.
    weight: lambda, of the tie to the denoised image, in consistent units: the
      data step minimises |y - A x|^2 / s^2 + weight |x - x0|^2 / sigma^2. The
      code takes s on [0, 1] and sigma on [-1, 1]: its lambda is four times it.
    renewal: zeta, share of the noise that is drawn anew at every step, 0 to 1.
    clip: whether the denoised image is clipped to [-1, 1].
    tolerance: relative residual of the data step, where it has no closed form.
    max_iterations: their limit.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 100
  spacing: Spacing = "quadratic"
  weight: float = 1.75
  renewal: float = 0.3
  clip: bool = True
  tolerance: float = 1e-5
  max_iterations: int = 300

  def __post_init__(self) -> None:
    fields.check(
      self,
      {
        "levels": (1, 1000),
        "renewal": (0.0, 1.0),
        "tolerance": (1e-7, 1e-1),
        "max_iterations": (1, 100_000),
      },
    )

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DiffPIRConfig":
    """What the paper's code runs with (yuanzhi-zhu/DiffPIR).

    100 levels. Deblurring: lambda 7, zeta 0.3. Super-resolution: zeta 0.25 and
    a sweep of lambda from 2 to 12, of which 7 stands here. Inpainting, there
    noise-free with 20 levels, otherwise lambda 1, zeta 1: here with 100 levels,
    as its data is noisy.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.

    Raises:
      ValueError: for an unknown task.
    """
    filling = {"weight": 0.25, "renewal": 1.0}
    by_task: dict[str, dict[str, Any]] = {
      "super_resolution": {"renewal": 0.25},
      "box_inpainting": filling,
      "random_inpainting": filling,
    }
    published = tasks.choose(task, by_task, {})
    return tasks.settings(cls, task, published, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DiffPIRConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {
      "weight": 0.5,
      "renewal": 1.0,
      "tolerance": 1e-4,
    }
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def diffpir(config: DiffPIRConfig = DiffPIRConfig.published()) -> Sampler:  # noqa: B008
  """DiffPIR in variance-exploding variables.

    x0 = D(x, sigma),  z = argmin |y - A z|^2 / s^2 + w |z - x0|^2 / sigma^2,
    x' = z + sigma' (sqrt(1 - zeta) (x - z) / sigma + sqrt(zeta) n)

  The published step is this one times sqrt(alpha_bar'), with its eta = 0. The
  last level ends in the denoised image, without a data step; the code makes
  that last call and returns its input. It starts from the noised measurement
  where here it is pure noise: at sigma = 157 the two differ by 1 part in 100.
  The data step is exact for every operator, where the code has circular blur.

  Args:
    config: see `DiffPIRConfig`.

  Returns:
    Sampler(init, step, config.levels).
  """

  def move(
    key: jax.Array,
    level: diffusion.Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> diffusion.Moved:
    x0 = predictor.clean(denoise, x, level.sigma)
    x0 = jnp.clip(x0, -1.0, 1.0) if config.clip else x0
    target = gaussian.Target(observation, x0, level.sigma**2 / config.weight)
    z, solve = gaussian.mean(
      target, tolerance=config.tolerance, max_iterations=config.max_iterations
    )
    # The last answer is the denoiser's: a data step would bring noise back.
    z = jnp.where(level.following > 0, z, x0)
    kept = (1 - config.renewal) ** 0.5 / level.sigma
    noise = config.renewal**0.5 * jax.random.normal(key, x.shape, x.dtype)
    following = z + level.following * (kept * (x - z) + noise)
    return diffusion.Moved(following, z, solve)

  sigmas = schedule.ddpm(config.levels, spacing=config.spacing)
  return diffusion.sampler(sigmas, move)
