"""DDRM: diffusion in the singular vectors of A.

Kawar et al. 2022, Denoising Diffusion Restoration Models, arXiv 2201.11793.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import Denoiser, Info, Observation, Operator, Sampler
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.denoising import predictor
from posterior_jax.linalg.svd import Svd


@dataclasses.dataclass(frozen=True)
class DDRMConfig:
  """Settings of `ddrm`.

  Attributes:
    levels: noise levels of the DDPM schedule, 1 to 1000; one call each.
    eta: share of fresh noise where the data is noisier than the state or says
      nothing, 0 to 1.
    eta_data: eta_b, weight of the data where it is less noisy, 0 to 1.
    threshold: singular values up to this count as zero, 0 to 1.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 20
  eta: float = 0.85
  eta_data: float = 1.0
  threshold: float = 0.03

  def __post_init__(self) -> None:
    fields.check(
      self,
      {
        "levels": (1, 1000),
        "eta": (0.0, 1.0),
        "eta_data": (0.0, 1.0),
        "threshold": (0.0, 1.0),
      },
    )

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "DDRMConfig":
    """Of the paper and its code (bahjat-kawar/ddrm): 20 levels, 0.85, 1.

    Its blur drops singular values below 0.03 on each axis, here those of both
    together; masks and the resizer have none so small. It has no motion
    blur.

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
  ) -> "DDRMConfig":
    """One setting for all tasks that it can do: eta as published.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = {"levels": 100}
    return tasks.settings(cls, task, settings, changes)


class SpectralState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, N, H, W, C] float32, the image at the noise of `level`.
    level: int32 scalar, how many levels have been done.
    svd: of the operator, computed once.
  """

  x: jax.Array
  level: jax.Array
  svd: Svd


@equal_samplers.from_settings
def ddrm(config: DDRMConfig = DDRMConfig.published()) -> Sampler:  # noqa: B008
  """DDRM, which is variance exploding as published (its eqs. 4 to 8).

  In the coefficients of A = U diag(s) V^T, a bar marking V^T x, r = U^T y -
  s x0_bar, and sigma' the following noise, x_bar' is

    x0_bar + sqrt(1 - eta^2) sigma' (x_bar - x0_bar) / sigma + eta sigma' n
      where s = 0,
    x0_bar + sqrt(1 - eta^2) sigma' r / noise_std + eta sigma' n
      where sigma' < noise_std / s,
    x0_bar + eta_b r / s + sqrt(sigma'^2 - eta_b^2 noise_std^2 / s^2) n
      elsewhere.

  Levels run evenly from the first timestep to the last; the code's begin one
  spacing below the first.

  Args:
    config: see `DDRMConfig`.

  Returns:
    Sampler(init, step, config.levels). `init` raises ValueError, before any
    compilation, for an operator without a fast decomposition: a mirrored blur
    whose kernel is not separable.
  """
  return spectral_sampler(
    "ddrm",
    config.levels,
    eta=config.eta,
    eta_data=config.eta_data,
    threshold=config.threshold,
  )


def spectral_sampler(
  name: str, levels: int, *, eta: float, eta_data: float, threshold: float
) -> Sampler:
  """The sampler of `transition`.

  Args:
    name: of the method, for its refusals.
    levels: of the DDPM schedule.
    eta: as in `DDRMConfig`, likewise the following.
    eta_data: eta_b.
    threshold: of the singular values.

  Returns:
    Sampler(init, step, levels).
  """
  nodes = jnp.asarray(schedule.ddpm(levels), jnp.float32)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SpectralState:
    svd = decomposed(name, observation.operator)
    one = jnp.ones((), jnp.float32)
    noise = diffusion.start(key, observation, batch, one)
    x = start(svd, observation, noise, nodes[0], threshold)
    return SpectralState(x, jnp.zeros((), jnp.int32), svd)

  def step(
    state: SpectralState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SpectralState, Info]:
    level = diffusion.level_of(nodes, state.level)
    x0 = predictor.clean(denoise, state.x, level.sigma)
    x = transition(
      key,
      state.svd,
      observation,
      state.x,
      x0,
      level,
      eta=eta,
      eta_data=eta_data,
      threshold=threshold,
    )
    moved = diffusion.Moved(x, x0)
    report = diffusion.report(observation, level, moved)
    return SpectralState(x, state.level + 1, state.svd), report

  return Sampler(init, step, levels)


def decomposed(name: str, operator: Operator) -> Svd:
  """The operator's singular value decomposition.

  Raises:
    ValueError: naming the method, if it has no fast one.
  """
  if not hasattr(operator, "svd"):
    raise ValueError(
      f"{name} needs an operator with a singular value decomposition, got "
      f"{type(operator).__name__}"
    )
  try:
    return operator.svd()
  except ValueError as reason:
    raise ValueError(f"{name} cannot use this operator: {reason}") from reason


def start(
  svd: Svd,
  observation: Observation,
  noise: jax.Array,
  sigma: jax.Array,
  threshold: float,
) -> jax.Array:
  """The first state: the data where it is less noisy than sigma, plus noise.

  Args:
    svd: of the operator.
    observation: y and its noise.
    noise: standard normal, [B, N, H, W, C].
    sigma: scalar.
    threshold: singular values up to this count as zero.

  Returns:
    x [B, N, H, W, C] with variance sigma^2 about the data, or about 0 where
    that is noisier.
  """
  s, noise_std = svd.values, observation.noise_std
  # The inner `where` below keeps 1 / 0 out where a singular value is zero.
  seen = (s > threshold) & (s * sigma > noise_std)
  inverse = jnp.where(seen, 1 / jnp.where(seen, s, 1), 0)
  spread = jnp.sqrt(sigma**2 - jnp.where(seen, noise_std * inverse, 0) ** 2)
  white = svd.to_right(noise)
  inverse, less = (v.astype(white.dtype) for v in (inverse, spread - sigma))
  shift = inverse * svd.to_left(observation.y) + less * white
  return sigma * noise + svd.from_right(jnp.where(seen, shift, 0))


def transition(
  key: jax.Array,
  svd: Svd,
  observation: Observation,
  x: jax.Array,
  x0: jax.Array,
  level: diffusion.Level,
  *,
  eta: float,
  eta_data: float,
  threshold: float,
) -> jax.Array:
  """x' of `ddrm`, [B, N, H, W, C].

  Args:
    key: of the noise.
    svd: of the operator.
    observation: y [N, h, w, C] and its noise.
    x: [B, N, H, W, C] at level.sigma.
    x0: the clean image, likewise.
    level: sigma and sigma'.
    eta: as in `DDRMConfig`, likewise the following.
    eta_data: eta_b.
    threshold: of the singular values.

  Returns:
    The state at sigma'.
  """
  s, noise_std = svd.values, observation.noise_std
  following, kept = level.following, (1 - eta**2) ** 0.5
  noise = jax.random.normal(key, x.shape, x.dtype)
  free = x0 + following * (kept * (x - x0) / level.sigma + eta * noise)
  # Where the noise of y in a direction, noise_std / s, is below the state's.
  informative = s * following >= noise_std
  inverse = jnp.where(informative, 1 / jnp.where(informative, s, 1), 0)
  gain = jnp.where(
    informative, eta_data * inverse, kept * following / noise_std
  )
  spread = jnp.where(
    informative,
    jnp.sqrt(following**2 - (eta_data * noise_std * inverse) ** 2),
    eta * following,
  )
  # In coefficients; what A does not see of the free state stays as it is.
  clean = svd.to_right(x0)
  singular, gain, spread = (v.astype(clean.dtype) for v in (s, gain, spread))
  misfit = svd.to_left(observation.y) - singular * clean
  seen = clean + gain * misfit + spread * svd.to_right(noise)
  shift = jnp.where(s > threshold, seen - svd.to_right(free), 0)
  return free + svd.from_right(shift)
