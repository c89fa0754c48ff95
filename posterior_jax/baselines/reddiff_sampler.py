"""RED-diff: Adam on the image, the denoiser as regulariser.

Mardani et al. 2024, A Variational Perspective on Solving Inverse Problems with
Diffusion Models, arXiv 2305.04391.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Info, Observation, Sampler, misfit
from posterior_jax.baselines import adam, diffusion, tasks
from posterior_jax.denoising import predictor

# Of Adam's mean of squares, as in the code; PyTorch's default is 0.999.
_SECOND_DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class REDDiffConfig:
  """Settings of `reddiff`.

  Attributes:
    levels: Adam steps, one per level of the DDPM schedule, 1 to 1000.
    weight: lambda, of the regulariser, > 0.
    learning_rate: of Adam, in pixels per step, > 0.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 1000
  weight: float = 0.25
  learning_rate: float = 0.1

  def __post_init__(self) -> None:
    fields.check(self, {"levels": (1, 1000)})

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "REDDiffConfig":
    """Of the paper and the code's defaults (NVlabs/RED-diff), for every task.

    1000 steps, lambda 0.25, learning rate 0.1, Adam's decays 0.9 and 0.99. The
    README's example takes 100 steps at a rate of 0.5. All are for noise-free
    data: nothing in the method depends on the noise level.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.

    Raises:
      ValueError: for an unknown task.
    """
    return tasks.settings(cls, task, {}, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "REDDiffConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"weight": 0.25, "learning_rate": 0.05}
    return tasks.settings(cls, task, settings, changes)


class REDDiffState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, N, H, W, C] float32, the image, free of noise at every level.
    level: int32 scalar, how many steps have been done.
    moments: Adam's, of the gradient.
  """

  x: jax.Array
  level: jax.Array
  moments: adam.Moments


@equal_samplers.from_settings
def reddiff(config: REDDiffConfig = REDDiffConfig.published()) -> Sampler:  # noqa: B008
  """RED-diff as its code runs it, in variance-exploding variables.

  With e standard normal, n pixels and m observed entries, one Adam step on

    |y - A x|^2 / (2 m) + lambda / n <x, sg[x - D(x + sigma e, sigma)]>

  at every level from the highest noise to the lowest: the published weight
  lambda sqrt(1 - alpha_bar) / sqrt(alpha_bar) times the difference of noises
  is lambda (x - D), so that the weight does not depend on the level. It starts
  from the pseudo-inverse of y, regularised against the noise that the inverse
  of a blur would amplify: (A^T A + s^2)^-1 A^T y. Images of a batch are
  independent: each has its own m and n, where the code divides by those of the
  whole batch; Adam's steps are invariant to that factor.

  It seeks a mode: B samples differ by the noises e alone.

  Args:
    config: see `REDDiffConfig`.

  Returns:
    Sampler(init, step, config.levels); `Info.sigma` is that of the denoiser.
  """
  nodes = jnp.asarray(schedule.ddpm(config.levels), jnp.float32)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> REDDiffState:
    del key
    operator = observation.operator
    noise = jnp.asarray(observation.noise_std, jnp.float32)
    x, _ = operator.normal_solve(
      operator.adjoint(observation.y) / noise**2,
      precision=jnp.ones((), jnp.float32),
      noise_std=noise,
    )
    # All samples start at one image: they differ by the noises of the steps.
    x = jnp.broadcast_to(x, (batch, *x.shape))
    return REDDiffState(x, jnp.zeros((), jnp.int32), adam.start(x))

  def step(
    state: REDDiffState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[REDDiffState, Info]:
    level = diffusion.level_of(nodes, state.level)
    noise = jax.random.normal(key, state.x.shape, state.x.dtype)
    x0 = predictor.clean(denoise, state.x + level.sigma * noise, level.sigma)
    slope = gradient(observation, state.x, x0, config.weight)
    to, moments = adam.direction(
      state.moments, slope, state.level, second_decay=_SECOND_DECAY
    )
    x = state.x - config.learning_rate * to
    report = diffusion.report(observation, level, diffusion.Moved(x, x))
    return REDDiffState(x, state.level + 1, moments), report

  return Sampler(init, step, config.levels)


def gradient(
  observation: Observation, x: jax.Array, x0: jax.Array, weight: float
) -> jax.Array:
  """Of the loss, for one image: A^T (A x - y) / m + lambda (x - x0) / n.

  Args:
    observation: y [N, h, w, C].
    x: [B, N, H, W, C].
    x0: the denoised image, held fixed.
    weight: lambda.

  Returns:
    [B, N, H, W, C].
  """
  operator = observation.operator
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  pull = operator.adjoint(misfit(observation, x))
  pixels = x.shape[-1] * x.shape[-2] * x.shape[-3]
  return weight * (x - x0) / pixels - pull / jnp.sum(observed)
