"""DAPS: decoupled annealing, a draw of the clean image at every level.

Zhang et al. 2025, Improving Diffusion Inverse Problem Solving with Decoupled
Noise Annealing, arXiv 2407.01521.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler, SolveInfo
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian


@dataclasses.dataclass(frozen=True)
class DAPSConfig:
  """Settings of `daps`.

  Attributes:
    levels: noise levels, 1 to 10000 (`schedule.karras`).
    sigma_max: first level.
    sigma_min: where the polynomial ramp would end.
    rho: exponent of the ramp.
    predictor_steps: Euler steps of the probability-flow ODE per level.
    predictor_sigma_min: where the ODE stops, > 0.
    inner: "langevin", or the "exact" draw, which a linear measurement allows;
      under the width sigma^2 it puts a level's whole noise where nothing is
      measured, which short Langevin runs from the prediction do not reach: on
      photographs 13 dB against 25 (tuning, 400 calls).
    inner_steps: of "langevin".
    step_size: of "langevin", in pixel^2; it diverges above 2 over the largest
      curvature, about 2 noise_std^2 for an operator of norm 1.
    step_size_decay: factor of the step size at the last level, reached
      linearly.
    noise_std: tau, the noise that the likelihood assumes; None is the
      observation's.
    tolerance: relative residual of the linear solve of "exact".
    max_iterations: limit of its conjugate gradients.
  """

  levels: int = 200
  sigma_max: float = 100.0
  sigma_min: float = 0.1
  rho: float = 7.0
  predictor_steps: int = 5
  predictor_sigma_min: float = 0.01
  inner: Literal["langevin", "exact"] = "langevin"
  inner_steps: int = 100
  step_size: float = 1e-4
  step_size_decay: float = 0.01
  noise_std: float | None = None
  tolerance: float = 1e-5
  max_iterations: int = 300

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 10_000), "rho": (1e-3, 100.0)}
    ranges |= {"predictor_steps": (1, 1000), "inner_steps": (1, 100_000)}
    ranges |= {"step_size_decay": (0.0, 1.0), "tolerance": (1e-7, 1e-1)}
    fields.check(self, ranges | {"max_iterations": (1, 100_000)})
    schedule.check_ends(self.sigma_max, self.sigma_min)

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DAPSConfig":
    """The authors' 1000-evaluation configurations.

    200 levels of 5 Euler steps, 100 Langevin updates of size 1e-4 (5e-5 for box
    inpainting and motion blur). Their tau = 0.01 stands in a likelihood
    exp(-|r|^2 / tau^2), without the 2: a noise of 0.01 / sqrt(2), whatever that
    of the measurement.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.
    """
    small = {"box_inpainting": 5e-5, "motion_blur": 5e-5}
    published: dict[str, Any] = dict(
      step_size=tasks.choose(task, small, 1e-4),
      noise_std=0.01 / float(np.sqrt(2)),
    )
    return tasks.settings(cls, task, published, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DAPSConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"noise_std": 0.007, "step_size": 5e-5}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def daps(config: DAPSConfig = DAPSConfig.published()) -> Sampler:  # noqa: B008
  """Decoupled annealing posterior sampling.

  At every level: predict c by the probability-flow ODE, draw z from

    exp(-||A z - y||^2 / (2 tau^2) - ||z - c||^2 / (2 sigma^2)),

  add fresh noise of the next level. It is `nfc` without band and Haar fusion.

  Args:
    config: see `DAPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): predictor_steps calls per step.
  """
  sigmas = schedule.karras(
    config.levels,
    sigma_max=config.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.rho,
  )
  progress = schedule.progress(sigmas[:-1], "step")
  # Smaller steps towards the end, where the tie is narrow and its curvature
  # high.
  decay = schedule.ramp(1.0, config.step_size_decay, progress)
  step_sizes = jnp.asarray(config.step_size * decay, jnp.float32)

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    key_inner, key_noise = jax.random.split(key)
    centre = predictor.predict(
      denoise,
      x,
      level.sigma,
      kind="euler",
      steps=config.predictor_steps,
      sigma_end=config.predictor_sigma_min,
      rho=config.rho,
    )
    # The published tau is the method's, not the measurement's noise.
    tau = config.noise_std
    noise_std = observation.noise_std if tau is None else tau
    assumed = Observation(observation.y, observation.operator, noise_std)
    target = gaussian.Target(assumed, centre, level.sigma**2)
    if config.inner == "exact":
      z, solve = gaussian.draw(
        key_inner,
        target,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
      )
    else:
      solve = SolveInfo.closed_form()
      z = gaussian.langevin(
        key_inner,
        target,
        steps=config.inner_steps,
        step_size=step_sizes[level.number],
      )
    noise = jax.random.normal(key_noise, z.shape, z.dtype)
    return Moved(
      z + level.following * noise, z, solve, calls=config.predictor_steps
    )

  return diffusion.sampler(sigmas, move)
