"""DPS: the score of the measurement as the gradient of one residual norm.

Chung et al. 2023, Diffusion Posterior Sampling for General Noisy Inverse
Problems, arXiv 2209.14687.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler, misfit
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor
from posterior_jax.linalg import fourier, reduce


@dataclasses.dataclass(frozen=True)
class DPSConfig:
  """Settings of `dps`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    scale: step along the gradient of ||y - A x0|| of one image, in the
      variance-preserving variables of the paper; it depends on the number of
      pixels (published for 3 x 256 x 256).
    clip: whether the clean image is clipped to [-1, 1]; the gradient passes
      through the clipping.
  """

  levels: int = 1000
  scale: float = 0.5
  clip: bool = True

  def __post_init__(self) -> None:
    fields.check(self, {"levels": (1, 1000), "scale": (0.0, 1e4)})

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DPSConfig":
    """The authors' configurations: 1000 steps, scale 0.3, 0.5 for inpainting.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.
    """
    inpainting = {"box_inpainting": 0.5, "random_inpainting": 0.5}
    scale = tasks.choose(task, inpainting, 0.3)
    return tasks.settings(cls, task, {"scale": scale}, changes)

  @classmethod
  def tuned(cls, task: tasks.Task | None = None, **changes: Any) -> "DPSConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"scale": 3.0}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def dps(config: DPSConfig = DPSConfig.published()) -> Sampler:  # noqa: B008
  """Diffusion posterior sampling.

    x' = ancestral step - scale sqrt((1 + sigma^2) (1 + sigma'^2)) d||r||/dx,
    r = y - A D(x, sigma)

  The root turns the published step on x_vp into one on x (`diffusion`). As in
  the authors' code the gradient is that of the norm, not of its square, and
  the norm is taken of every image alone (some ports take it of the batch, so
  that guidance shrinks with the batch). The ancestral step has the smaller of
  DDPM's two variances; their network learns one between the two.

  Args:
    config: see `DPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): one call and one Jacobian product per step.

  Example:
    >>> import posterior_jax as pj
    >>> config = pj.baselines.DPSConfig.published("motion_blur", levels=100)
    >>> pj.baselines.dps(config).num_steps
    100
  """

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    return guided(
      key, level, x, denoise, observation, scale=config.scale, clip=config.clip
    )

  return diffusion.sampler(schedule.ddpm(config.levels), move)


def guided(
  key: jax.Array,
  level: Level,
  x: jax.Array,
  denoise: Denoiser,
  observation: Observation,
  *,
  scale: jax.Array | float,
  clip: bool,
  band: jax.Array | None = None,
) -> Moved:
  """One step of DPS.

  Args:
    key: of the ancestral step.
    level: sigma and the following one.
    x: [B, N, H, W, C].
    denoise: D.
    observation: y, A.
    scale: see `DPSConfig`.
    clip: likewise.
    band: gain [h, w] on the residual's spectrum, None for 1 everywhere.
  """
  x0, slope = slope_of(level, x, denoise, observation, clip=clip, band=band)
  unit = jnp.sqrt((1 + level.sigma**2) * (1 + level.following**2))
  ahead = diffusion.ddim(key, x, x0, level, eta=1.0)
  return Moved(ahead - scale * unit * slope, x0, products=1)


def slope_of(
  level: Level,
  x: jax.Array,
  denoise: Denoiser,
  observation: Observation,
  *,
  clip: bool = False,
  band: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The clean image and d||y - A x0|| / dx, both [B, N, H, W, C].

  Args:
    level: sigma.
    x: [B, N, H, W, C].
    denoise: D.
    observation: y, A.
    clip: as of `guided`, likewise band.
    band: of the residual.
  """
  x0, product = predictor.clean_with_vjp(denoise, x, level.sigma, clip=clip)
  r = misfit(observation, x0)
  # The gradient of |M r| is A^T M (M r) / |M r|: the filter acts twice.
  pull = r
  if band is not None:
    r = fourier.apply_transfer(r, band)
    pull = fourier.apply_transfer(r, band) * observation.operator.observed
  # tiny: an image that fits exactly has no direction to go, not NaN.
  norm = jnp.maximum(reduce.norm(r), jnp.finfo(r.dtype).tiny)
  tangent = observation.operator.tangent(x0)
  return x0, -product(tangent.adjoint(pull / norm))
