"""AdamDPS: the gradient of DPS, its moments kept from level to level.

Belardi, Lovelace, Weinberger and Gomes 2026, Adaptive Moments are Surprisingly
Effective for Plug-and-Play Diffusion Sampling, arXiv 2603.16797.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Info, Observation, Sampler
from posterior_jax.baselines import adam, diffusion, dps_sampler, tasks


@dataclasses.dataclass(frozen=True)
class AdamDPSConfig:
  """Settings of `adamdps`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    scale: of Adam's step, in the variance-preserving variables of the paper; a
      pixel moves by about as much.
    first_decay: beta_1, of the running mean of gradients, 0 to 0.999.
    second_decay: beta_2, of that of their squares, likewise.
    clip: whether the clean image is clipped to [-1, 1]; the gradient is that of
      the image before.
  """

  levels: int = 100
  scale: float = 0.05
  first_decay: float = 0.9
  second_decay: float = 0.995
  clip: bool = True

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 1000), "scale": (0.0, 1e4)}
    ranges |= {"first_decay": (0.0, 0.999), "second_decay": (0.0, 0.999)}
    fields.check(self, ranges)

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "AdamDPSConfig":
    """The best of the authors' searches on ImageNet, 100 steps, rounded.

    Their code (christianbelardi/adam-guidance) has a search each for
    super-resolution x4, Gaussian blur and random inpainting; here inpainting's
    serves the box and the blur's motion blur. Without a task the defaults of
    the code, and the scale between the three.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.
    """
    filling = {"scale": 0.047, "first_decay": 0.77, "second_decay": 0.38}
    blurred = {"scale": 0.05, "first_decay": 0.64, "second_decay": 0.56}
    found: dict[str, dict[str, Any]] = {
      "super_resolution": {
        "scale": 0.05,
        "first_decay": 0.21,
        "second_decay": 0.063,
      },
      "gaussian_blur": blurred,
      "motion_blur": blurred,
      "random_inpainting": filling,
      "box_inpainting": filling,
    }
    return tasks.settings(cls, task, tasks.choose(task, found, {}), changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "AdamDPSConfig":
    """One setting for all tasks: medians of `experiments.equal_tuning`.

    Those of the winners by PSNR at 100 evaluations, 50 levels.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings = {"scale": 0.05, "first_decay": 0.6, "second_decay": 0.6}
    return tasks.settings(cls, task, settings, changes)


class AdamDPSState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, N, H, W, C] float32, the image at the noise of `level`.
    level: int32 scalar, how many levels have been done.
    moments: of Adam, of the shape of x.
  """

  x: jax.Array
  level: jax.Array
  moments: adam.Moments


@equal_samplers.from_settings
def adamdps(
  config: AdamDPSConfig = AdamDPSConfig.published(),  # noqa: B008
) -> Sampler:
  """Diffusion posterior sampling with Adam's steps.

    x' = ancestral step - scale sqrt(1 + sigma^2) Adam(d||r|| / dx_vp),
    r = y - A D(x, sigma)

  In the paper's variables the step is scale / sqrt(alpha_bar / alpha_bar') of
  Adam's, and the gradient that by x_vp, which is sqrt(1 + sigma^2) times the
  one by x (`diffusion`). Gradient, ancestral step and norm are those of `dps`;
  the clean image of the step is clipped, that of the gradient is not.

  Args:
    config: see `AdamDPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): one call and one Jacobian product per step.

  Example:
    >>> import posterior_jax as pj
    >>> config = pj.baselines.AdamDPSConfig.published("box_inpainting")
    >>> pj.baselines.adamdps(config).num_steps
    100
  """
  nodes = jnp.asarray(schedule.ddpm(config.levels), jnp.float32)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> AdamDPSState:
    x = diffusion.start(key, observation, batch, nodes[0])
    return AdamDPSState(x, jnp.zeros((), jnp.int32), adam.start(x))

  def step(
    state: AdamDPSState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[AdamDPSState, Info]:
    level = diffusion.level_of(nodes, state.level)
    x0, slope = dps_sampler.slope_of(level, state.x, denoise, observation)
    unit = jnp.sqrt(1 + level.sigma**2)
    to, moments = adam.direction(
      state.moments,
      unit * slope,
      state.level,
      first_decay=config.first_decay,
      second_decay=config.second_decay,
    )
    if config.clip:
      x0 = jnp.clip(x0, -1.0, 1.0)
    ahead = diffusion.ddim(key, state.x, x0, level, eta=1.0)
    x = ahead - config.scale * unit * to
    moved = diffusion.Moved(x, x0, products=1)
    report = diffusion.report(observation, level, moved)
    return AdamDPSState(x, state.level + 1, moments), report

  return Sampler(init, step, config.levels)
