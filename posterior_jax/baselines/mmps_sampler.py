"""MMPS: guidance by the denoiser's own covariance, sigma^2 dx0/dx.

Rozet, Andry, Lanusse and Louppe 2024, Learning Diffusion Priors from
Observations by Expectation Maximization, arXiv 2405.13712.
"""

import dataclasses
from typing import Any

import jax

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import covariance
from posterior_jax.linalg import krylov


@dataclasses.dataclass(frozen=True)
class MMPSConfig:
  """Settings of `mmps`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    eta: of the DDIM transition, 0 to 1.
    iterations: of conjugate gradients, one Jacobian product each.
    tolerance: relative residual at which an image stops earlier.
  """

  levels: int = 100
  eta: float = 1.0
  iterations: int = 3
  tolerance: float = 1e-4

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 1000), "eta": (0.0, 1.0), "iterations": (1, 1000)}
    fields.check(self, ranges | {"tolerance": (1e-7, 1e-1)})

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "MMPSConfig":
    """One solver iteration, the default of the authors' package azula.

    The number of steps is open there; 100 ancestral ones are ours.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    return tasks.settings(cls, task, {"iterations": 1}, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "MMPSConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"iterations": 1}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def mmps(config: MMPSConfig = MMPSConfig.published()) -> Sampler:  # noqa: B008
  """Moment matching posterior sampling.

    E[x0 | x, y] = x0 + C A^T (A C A^T + noise_std^2)^-1 (y - A x0),
    C = sigma^2 (dx0/dx)^T

  exact for any Gaussian prior when the solve is. C is symmetric for an exact
  denoiser, so that products with its transpose (VJPs) will do, and positive;
  an image whose solve meets a direction of negative curvature, as a learned
  denoiser may have, keeps what it had reached.

  Args:
    config: see `MMPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): a step takes one call and a Jacobian product
    for every iteration of its slowest image. The authors' takes one product
    more, for C A^T of what the solve found; here the solve carries that along.
  """

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    x0, product = predictor.linearise(denoise, x, level.sigma)
    x0, solve, products = covariance.mean(
      observation.linearised(x0),
      x0,
      product,
      tolerance=config.tolerance,
      max_iterations=config.iterations,
      # As published, and no step shortened: a baseline keeps its own solver.
      solver=krylov.carrying,
      restrained=False,
    )
    # The denoiser of the posterior takes the prior's place in the transition.
    ahead = diffusion.ddim(key, x, x0, level, config.eta)
    return Moved(ahead, x0, solve, products=products)

  return diffusion.sampler(schedule.ddpm(config.levels), move)
