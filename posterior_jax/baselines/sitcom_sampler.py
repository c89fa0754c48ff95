"""SITCOM: optimise the denoiser's input at every level, then renoise.

Alkhouri et al. 2025, SITCOM: Step-wise Triple-Consistent Diffusion Sampling
for Inverse Problems, arXiv 2410.04479.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler, misfit
from posterior_jax.baselines import adam, diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor
from posterior_jax.linalg import reduce


@dataclasses.dataclass(frozen=True)
class SITCOMConfig:
  """Settings of `sitcom`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000.
    steps: evaluations of the denoiser and its gradient per level, at most.
    rate: step size of Adam on the input, in variance-preserving units.
    anchor: weight of the input's distance to the state, >= 0.
    stop: an image is done when its residual norm is below stop times that of
      the noise, noise_std sqrt(m); 0 never stops.
    clip: whether the clean image is clipped to [-1, 1], with its gradient.
  """

  levels: int = 20
  steps: int = 30
  rate: float = 0.02
  anchor: float = 0.0
  stop: float = 1.02
  clip: bool = True

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 1000), "steps": (1, 100_000), "rate": (0.0, 10.0)}
    fields.check(self, ranges | {"anchor": (0.0, 1e6), "stop": (0.0, 100.0)})

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "SITCOMConfig":
    """The defaults of the authors' script for noisy measurements.

    20 levels, 30 Adam steps of 0.02, no anchor; their threshold on the residual
    is 0.051 a pixel at noise 0.05.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    return tasks.settings(cls, task, {}, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "SITCOMConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"levels": 80, "steps": 5}
    return tasks.settings(cls, task, settings, changes)


class _Search(NamedTuple):
  """Where the optimisation of a level is."""

  u: jax.Array  # [B, N, H, W, C], the input in VP units
  moments: adam.Moments
  x0: jax.Array  # of the last input evaluated
  running: jax.Array  # [B, N, 1, 1, 1]
  evaluated: jax.Array


@equal_samplers.from_settings
def sitcom(
  config: SITCOMConfig = SITCOMConfig.published(),  # noqa: B008
) -> Sampler:
  """Step-wise triple-consistent sampling.

  At every level, from v = x, Adam on

    ||y - A D(v, sigma)||^2 + anchor ||x - v||^2 / (1 + sigma^2)

  in the variables u = v / sqrt(1 + sigma^2) of the paper; then x' = D(v) plus
  fresh noise of the next level. As in the authors' code the last evaluation is
  the answer and takes no further step. Their script returns, of all
  evaluations, the image nearest to the truth; the last one is returned here.

  Args:
    config: see `SITCOMConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): at most `steps` calls and as many Jacobian
    products per step, fewer when all images stop.
  """

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    found = _optimise(config, level, x, denoise, observation)
    noise = jax.random.normal(key, x.shape, x.dtype)
    return Moved(
      found.x0 + level.following * noise,
      found.x0,
      calls=found.evaluated,
      products=found.evaluated,
    )

  return diffusion.sampler(schedule.ddpm(config.levels), move)


def _optimise(
  config: SITCOMConfig,
  level: Level,
  x: jax.Array,
  denoise: Denoiser,
  observation: Observation,
) -> _Search:
  # Their learning rate is one of variance-preserving inputs, of size 1 always.
  unit = jnp.sqrt(1 + level.sigma**2)
  start = x / unit
  operator = observation.operator
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  enough = config.stop * observation.noise_std * jnp.sqrt(jnp.sum(observed))

  def running(search: _Search) -> jax.Array:
    return (search.evaluated < config.steps) & jnp.any(search.running)

  def body(search: _Search) -> _Search:
    x0, product = predictor.clean_with_vjp(
      denoise, unit * search.u, level.sigma, clip=config.clip
    )
    r = misfit(observation, x0)
    # Per image: one that fits the noise stops, the others go on without it.
    goes_on = search.running & (reduce.norm(r) > enough)
    slope = -2 * unit * product(operator.tangent(x0).adjoint(r))
    slope = slope + 2 * config.anchor * (search.u - start)
    to, moments = adam.direction(search.moments, slope, search.evaluated)
    u = jnp.where(goes_on, search.u - config.rate * to, search.u)
    return _Search(u, moments, x0, goes_on, search.evaluated + 1)

  everyone = jnp.ones((*x.shape[:-3], 1, 1, 1), bool)
  begin = _Search(
    start, adam.start(start), start, everyone, jnp.zeros((), jnp.int32)
  )
  return lax.while_loop(running, body, begin)
