"""FAST-DIPS: the clean image moved into a ball about the data, then renoised.

Kim, Shin and Lim 2026, FAST-DIPS: Adjoint-Free Analytic Steps and
Hard-Constrained Likelihood Correction for Diffusion-Prior Inverse Problems,
arXiv 2603.01591; their code is ququlza/FAST-DIPS.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Observation, Sampler, misfit
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.baselines.diffusion import Level, Moved
from posterior_jax.denoising import predictor
from posterior_jax.linalg import reduce

# As in their code: the longest step, in pixel^2, and how often one that went
# up is halved.
_LONGEST = 1.0
_HALVINGS = 8
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class FASTDIPSConfig:
  """Settings of `fastdips`.

  Attributes:
    levels: noise levels, 1 to 10000 (`schedule.karras`), one call each.
    sigma_max: first level.
    sigma_min: where the polynomial ramp would end, below sigma_max.
    rho: exponent of the ramp.
    iterations: K, of the splitting per level, 2 to 10000; the first of them
      moves nothing, as in the paper's code.
    steps: S, of steepest descent per iteration, 1 to 10000.
    radius: epsilon, of the ball about the data, 0 to 100, in units of the
      noise's norm noise_std sqrt(m), m the number of observed entries.
    penalty: their rho, of the splitting, > 0, in units of 1 / noise_std^2.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 75
  sigma_max: float = 100.0
  sigma_min: float = 0.1
  rho: float = 7.0
  iterations: int = 3
  steps: int = 1
  radius: float = 0.002
  penalty: float = 0.5

  def __post_init__(self) -> None:
    ranges = {"levels": (1, 10_000), "rho": (1e-3, 100.0)}
    ranges |= {"iterations": (2, 10_000), "steps": (1, 10_000)}
    fields.check(self, ranges | {"radius": (0.0, 100.0)})
    schedule.check_ends(self.sigma_max, self.sigma_min)

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "FASTDIPSConfig":
    """The authors' commands for FFHQ and ImageNet in pixels.

    75 levels of 3 iterations with a step each; for blurs 50 levels and 2 steps.
    Their rho = 200 at noise 0.05 is the penalty 0.5. Their epsilon = 0.05 is
    the norm of a whole residual: of that of the noise, at 256 x 256 pixels,
    0.002 for blurs and 0.009 for super-resolution x4.

    Args:
      task: one of `baselines.TASKS`.
      **changes: of single settings.

    Raises:
      ValueError: for an unknown task.
    """
    # epsilon / (0.05 sqrt(m)) with m entries of 256 x 256 colour images.
    blurred = {"levels": 50, "steps": 2, "radius": 0.00226}
    by_task: dict[str, dict[str, Any]] = {
      "gaussian_blur": blurred,
      "motion_blur": blurred,
      "super_resolution": {"radius": 0.00902},
      "box_inpainting": {"radius": 0.0026},
      "random_inpainting": {"radius": 0.00412},
    }
    published = tasks.choose(task, by_task, {"radius": 0.00226})
    return tasks.settings(cls, task, published, changes)

  @classmethod
  def tuned(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "FASTDIPSConfig":
    """One setting for all tasks: medians of `experiments.equal_tuning`.

    Those of the winners by PSNR at 100 evaluations, 100 levels of two steps.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"levels": 100, "steps": 2}
    settings |= {"penalty": 0.707, "sigma_max": 6.0, "sigma_min": 0.0125}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def fastdips(
  config: FASTDIPSConfig = FASTDIPSConfig.published(),  # noqa: B008
) -> Sampler:
  """Decoupled annealing with a hard constraint on the residual.

  At every level, from x0 = D(x, sigma), towards

    argmin ||z - x0||^2 / (2 sigma^2)  where  ||A z - y|| <= eps

  by a few steps of ADMM on v = A z, u its scaled multiplier:

    z <- steps down ||z - x0||^2 / (2 sigma^2) + rho ||A z - v + u||^2 / 2,
    v <- y + min(1, eps / ||w||) w,  w = A z + u - y,    u <- u + A z - v,

  then x' = z plus fresh noise of the next level. So few steps go towards the
  ball and need not reach it. A step goes along the slope g
  by what is best where A is its tangent J, which no line search asks for,

    alpha = ||g||^2 / (||g||^2 / sigma^2 + rho ||J g||^2), at most 1 pixel^2;

  where A is not linear it is halved up to eight times while it leads up. The
  last level ends in the denoised image, as in the authors' latest code. No
  network call beside D: products with J and its transpose are the operator's.
  Their code takes J g of a finite difference, the same where A is linear, and
  clips the answer to [-1, 1].

  Args:
    config: see `FASTDIPSConfig` and its `published` and `tuned`.

  Returns:
    Sampler(init, step, num_steps): one call per step.

  Example:
    >>> import posterior_jax as pj
    >>> config = pj.baselines.FASTDIPSConfig.published("motion_blur")
    >>> pj.baselines.fastdips(config).num_steps
    50
  """
  return annealed(config, levels_of(config))


def levels_of(config: FASTDIPSConfig) -> np.ndarray:
  """The noise levels of a setting, [levels + 1], the last 0."""
  return schedule.karras(
    config.levels,
    sigma_max=config.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.rho,
  )


def annealed(config: FASTDIPSConfig, sigmas: np.ndarray | jax.Array) -> Sampler:
  """`fastdips` at noise levels of one's own, which may be traced.

  Args:
    config: what is done at every level; its schedule is not read.
    sigmas: [levels + 1] decreasing, the last 0.

  Returns:
    Sampler(init, step, levels).
  """

  def move(
    key: jax.Array,
    level: Level,
    x: jax.Array,
    denoise: Denoiser,
    observation: Observation,
  ) -> Moved:
    x0 = predictor.clean(denoise, x, level.sigma)
    z = _corrected(config, level.sigma, x0, observation)
    # The last answer is the denoiser's, as theirs is.
    z = jnp.where(level.following > 0, z, x0)
    noise = jax.random.normal(key, x.shape, x.dtype)
    return Moved(z + level.following * noise, z)

  return diffusion.sampler(sigmas, move)


def _corrected(
  config: FASTDIPSConfig,
  sigma: jax.Array,
  x0: jax.Array,
  observation: Observation,
) -> jax.Array:
  """x0 [..., N, H, W, C] moved towards the ball about the data, by ADMM."""
  operator = observation.operator
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  noise = observation.noise_std * jnp.sqrt(jnp.sum(observed))
  radius = config.radius * noise

  def iteration(
    _: int, state: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    z, u = state
    # All less y: w = A z - y + u, v is in a ball about 0.
    w = u - misfit(observation, z)
    v = w * jnp.minimum(1, radius / jnp.maximum(reduce.norm(w), _TINY))
    u = w - v
    return _descended(config, sigma, z, x0, v - u, observation), u

  # Theirs starts with z, of which v = A x0 and u = 0 ask nothing, and ends with
  # v and u, which nobody reads: K of their loops are K - 1 of these.
  u = jnp.zeros_like(misfit(observation, x0))
  return lax.fori_loop(0, config.iterations - 1, iteration, (x0, u))[0]


def _descended(
  config: FASTDIPSConfig,
  sigma: jax.Array,
  z: jax.Array,
  x0: jax.Array,
  target: jax.Array,
  observation: Observation,
) -> jax.Array:
  """z after its steps down |z - x0|^2 / sigma^2 + rho |A z - y - target|^2."""
  operator = observation.operator
  tie = 1 / sigma**2
  rho = config.penalty / observation.noise_std**2

  def missed(z: jax.Array) -> jax.Array:
    return -misfit(observation, z) - target

  def energy(z: jax.Array) -> jax.Array:
    return tie * reduce.total((z - x0) ** 2) + rho * reduce.total(
      missed(z) ** 2
    )

  def step(_: int, z: jax.Array) -> jax.Array:
    tangent = operator.tangent(z)
    slope = tie * (z - x0) + rho * tangent.adjoint(missed(z))
    steep = reduce.total(slope**2)
    seen = reduce.total(tangent.forward(slope) ** 2)
    curved = jnp.maximum(tie * steep + rho * seen, _TINY)
    size = jnp.minimum(steep / curved, _LONGEST)
    # A linear one's step is the best on its line: it never leads up.
    if not operator.is_linear:
      size = _halved(energy, z, slope, size)
    return z - size * slope

  return lax.fori_loop(0, config.steps, step, z)


def _halved(
  energy: Callable[[jax.Array], jax.Array],
  z: jax.Array,
  slope: jax.Array,
  size: jax.Array,
) -> jax.Array:
  """Step sizes [..., 1, 1, 1], halved while an image's step leads up."""
  before = energy(z)

  def leads_up(size: jax.Array) -> jax.Array:
    return energy(z - size * slope) > before

  def tried(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    _, up, count = state
    return jnp.any(up) & (count < _HALVINGS)

  def halve(
    state: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    size, up, count = state
    size = jnp.where(up, size / 2, size)
    return size, leads_up(size), count + 1

  start = (size, leads_up(size), jnp.zeros((), jnp.int32))
  return lax.while_loop(tried, halve, start)[0]
