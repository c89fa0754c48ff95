"""DDNM+: null-space diffusion with noisy data.

Wang et al. 2023, Zero-Shot Image Restoration Using Denoising Diffusion
Null-Space Model, arXiv 2212.00490.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Operator,
  Sampler,
  SamplerState,
  SolveInfo,
  State,
)
from posterior_jax.baselines import ddrm_sampler, diffusion, tasks
from posterior_jax.denoising import predictor


@dataclasses.dataclass(frozen=True)
class DDNMConfig:
  """Settings of `ddnm`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000; one call each.
    eta: share of fresh noise where the data says nothing, 0 to 1.
    threshold: singular values up to this count as zero, 0 to 1; gradually
      where the operator has no decomposition.
    tolerance: relative residual of the correction, where the operator has none.
    max_iterations: its limit.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 100
  eta: float = 0.85
  threshold: float = 0.03
  tolerance: float = 1e-5
  max_iterations: int = 300

  def __post_init__(self) -> None:
    fields.check(
      self,
      {
        "levels": (1, 1000),
        "eta": (0.0, 1.0),
        "threshold": (0.0, 1.0),
        "tolerance": (1e-7, 1e-1),
        "max_iterations": (1, 100_000),
      },
    )

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DDNMConfig":
    """Of the code (wyhuai/DDNM): 100 levels, eta 0.85, no time travel.

    Its blur drops singular values below 0.03 on each axis, here those of both
    together; masks and the resizer have none so small.

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
  ) -> "DDNMConfig":
    """One setting for all tasks, of `experiments.tune_samplers`.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"eta": 1.0, "tolerance": 1e-4}
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def ddnm(config: DDNMConfig = DDNMConfig.published()) -> Sampler:  # noqa: B008
  """DDNM+ in variance-exploding variables.

    x0' = x0 + Lambda A^+ (y - A x0),  x' = x0' + noise of covariance Phi,

  Lambda and Phi diagonal in the singular vectors of A. Divided by
  sqrt(alpha_bar'), the code's rules for the two (Lambda = 1, or s sigma'
  sqrt(1 - eta^2) / noise_std where sigma' < noise_std / s) are those of `ddrm`
  at eta_b = 1, term by term: where the operator has a decomposition the two
  methods differ in their number of levels alone.

  Where it has none (a mirrored motion blur), the published form is out of
  reach, and its pseudo-inverse would multiply the noise by 1 / s. Here Lambda
  A^+ then is A^T (A A^T + c^2)^-1, c = max(noise_std / sigma', threshold),
  which is A^+ where s >> c and vanishes where s << c, and the noise is filled
  up to sigma'^2 in every direction, by one solve with A^T A + c^2
  (`correction`).

  Args:
    config: see `DDNMConfig`.

  Returns:
    Sampler(init, step, config.levels).
  """
  spectral = ddrm_sampler.spectral_sampler(
    "ddnm",
    config.levels,
    eta=config.eta,
    eta_data=1.0,
    threshold=config.threshold,
  )
  nodes = jnp.asarray(schedule.ddpm(config.levels), jnp.float32)

  def init(key: jax.Array, observation: Observation, batch: int) -> State:
    if _decomposes(observation.operator):
      return spectral.init(key, observation, batch)
    x = diffusion.start(key, observation, batch, nodes[0])
    return SamplerState(x, jnp.zeros((), jnp.int32))

  def step(
    state: State,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[State, Info]:
    # Which way was decided in `init`, before anything was compiled.
    if isinstance(state, ddrm_sampler.SpectralState):
      return spectral.step(state, denoise, observation, key)
    level = diffusion.level_of(nodes, state.level)
    x0 = predictor.clean(denoise, state.x, level.sigma)
    x, solve = correction(key, config, observation, state.x, x0, level)
    report = diffusion.report(observation, level, diffusion.Moved(x, x0, solve))
    return SamplerState(x, state.level + 1), report

  return Sampler(init, step, config.levels)


def _decomposes(operator: Operator) -> bool:
  try:
    ddrm_sampler.decomposed("ddnm", operator)
  except ValueError:
    return False
  return True


def correction(
  key: jax.Array,
  config: DDNMConfig,
  observation: Observation,
  x: jax.Array,
  x0: jax.Array,
  level: diffusion.Level,
) -> tuple[jax.Array, SolveInfo]:
  """x' of `ddnm` without a decomposition.

    f  = sigma' (sqrt(1 - eta^2) (x - x0) / sigma + eta n3)
    x' = x0 + f + K (y - A x0 + t n1 + A (sigma' n2 - f)),
    K  = (A^T A + c^2)^-1 A^T,  t^2 = 2 c^2 sigma'^2 - noise_std^2

  In a singular direction with w = s^2 / (s^2 + c^2) the noises of y and t n1
  have the variance 2 w (1 - w) sigma'^2 together, n2 w^2 sigma'^2 and f
  (1 - w)^2 sigma'^2: sigma'^2 in all.

  Args:
    key: of the noises.
    config: eta, threshold and the solver's tolerance.
    observation: y [N, h, w, C].
    x: [B, N, H, W, C] at level.sigma.
    x0: the clean image, likewise.
    level: sigma and sigma'.

  Returns:
    The state at sigma' [B, N, H, W, C], x0 at the last level, and how the
    solve went.
  """
  operator = observation.operator
  noise_std = jnp.asarray(observation.noise_std, x.dtype)
  # No noise and no correction at the last level: any c will do.
  following = jnp.where(level.following > 0, level.following, level.sigma)
  # Directions with s < c are filled with noise rather than inverted.
  c = jnp.maximum(noise_std / following, config.threshold)
  fill = jnp.sqrt(2 * (c * following) ** 2 - noise_std**2)
  keys = jax.random.split(key, 3)
  within, fresh = (jax.random.normal(k, x.shape, x.dtype) for k in keys[1:])
  kept = (1 - config.eta**2) ** 0.5 * (x - x0) / level.sigma
  free = following * (kept + config.eta * fresh)
  # One A for the three: the image, its free noise, and the noise within range.
  data = observation.y - operator.forward(x0 + free - following * within)
  data += fill * jax.random.normal(keys[0], data.shape, data.dtype)
  shift, solve = operator.normal_solve(
    operator.adjoint(data),
    precision=c**2,
    noise_std=jnp.ones((), x.dtype),
    tolerance=config.tolerance,
    max_iterations=config.max_iterations,
  )
  return x0 + jnp.where(level.following > 0, free + shift, 0), solve
