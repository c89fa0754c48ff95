"""PiGDM: guidance by the pseudo-inverse, one variance for every pixel.

Song, Vahdat, Mardani and Kautz 2023, Pseudoinverse-Guided Diffusion Models for
Inverse Problems, openreview 9_gsMA8MRKQ.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler, misfit
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor


@dataclasses.dataclass(frozen=True)
class PiGDMConfig:
  """Settings of `pigdm`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    eta: of the DDIM transition, 0 to 1.
    data_std: assumed standard deviation of a clean pixel, of which r^2 =
      data_std^2 sigma^2 / (data_std^2 + sigma^2) follows.
    weight: of the guidance g: "adaptive" adds r^2 g to the next state, as
      published; "score" adds sigma^2 g to the clean image, which makes it E[x0
      | x, y] where the model holds, but needs a Jacobian that falls as
      1 / sigma^2: that of a network does not, and the run diverges.
    tolerance: relative residual of the linear solve.
    max_iterations: limit of its conjugate gradients.
  """

  levels: int = 100
  eta: float = 1.0
  data_std: float = 0.5
  weight: Literal["adaptive", "score"] = "adaptive"
  tolerance: float = 1e-5
  max_iterations: int = 300

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 1000), "eta": (0.0, 1.0)}
    ranges |= {"tolerance": (1e-7, 1e-1), "max_iterations": (1, 100_000)}
    fields.check(self, ranges)

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "PiGDMConfig":
    """The paper's: 100 steps, eta 1, unit-variance data, r^2 as the weight.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    return tasks.settings(cls, task, {"data_std": 1.0}, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "PiGDMConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"data_std": 0.06, "tolerance": 1e-4}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def pigdm(config: PiGDMConfig = PiGDMConfig.published()) -> Sampler:  # noqa: B008
  """Pseudo-inverse guided diffusion, the form for noisy measurements.

    g = (dx0/dx)^T A^T (r^2 A A^T + noise_std^2)^-1 (y - A x0)

  is the gradient of log p(y | x) if x0 given x is Gaussian with variance r^2:
  exact for a white Gaussian prior of variance data_std^2. The published update
  sqrt(alpha_bar) r^2 dlog p/dx_vp of the scaled next state is r^2 g here. Other
  codes have only the noise-free limit, r^2 g = (dx0/dx)^T A^+ (y - A x0).

  Args:
    config: see `PiGDMConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): one call and one Jacobian product per step.
  """

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    x0, product = predictor.clean_with_vjp(denoise, x, level.sigma)
    operator = observation.operator
    noise_std = jnp.asarray(observation.noise_std, jnp.float32)
    ratio = level.sigma / config.data_std
    variance = level.sigma**2 / (1 + ratio**2)  # r^2
    # A^T (r^2 A A^T + s^2)^-1 = (A^T A / s^2 + 1 / r^2)^-1 A^T / (r^2 s^2)
    pull, solve = operator.normal_solve(
      operator.adjoint(misfit(observation, x0)) / noise_std**2,
      precision=1 / variance,
      noise_std=noise_std,
      tolerance=config.tolerance,
      max_iterations=config.max_iterations,
    )
    lead = product(pull)  # r^2 g, [B, N, H, W, C]
    if config.weight == "score":
      x0 = x0 + (1 + ratio**2) * lead
      lead = 0.0 * lead  # already in x0
    ahead = diffusion.ddim(key, x, x0, level, config.eta)
    return Moved(ahead + lead, x0, solve, products=1)

  return diffusion.sampler(schedule.ddpm(config.levels), move)
