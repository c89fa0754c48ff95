"""PnP-DM: split Gibbs between data and diffusion prior.

Wu et al. 2024, Principled Probabilistic Imaging using Diffusion Models as
Plug-and-Play Priors, arXiv 2405.18782.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import equal_samplers, fields, schedule
from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  SamplerState,
)
from posterior_jax.baselines import diffusion, tasks
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian

Solver = Literal["euler", "ancestral"]
# Of the EDM grid (Karras et al. 2022).
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0


@dataclasses.dataclass(frozen=True)
class PnPDMConfig:
  """Settings of `pnpdm`.

  Attributes:
    levels: iterations of the Gibbs chain, 1 to 10000.
    coupling_max: first width rho of the coupling of the two variables, in
      pixels.
    coupling_min: the width that stays once reached.
    decay: factor of the width per iteration, in (0, 1].
    nodes: of the EDM grid from sigma 80 to 0.002, 2 to 1000; the prior's draw
      takes those below rho, one call each.
    solver: of the reverse diffusion: "euler" on its SDE, or "ancestral", the
      exact draw from q(x' | x, x0), which needs fewer nodes.
    exact_start: whether the first node is rho itself, the noise that is there;
      False takes the grid's node below it for the noise, as published.
    tolerance: relative residual of the data's draw, where it has no closed
      form.
    max_iterations: their limit.

  Raises:
    ValueError: for a value out of range, by name.
  """

  levels: int = 100
  coupling_max: float = 10.0
  coupling_min: float = 0.3
  decay: float = 0.9
  nodes: int = 100
  solver: Solver = "euler"
  exact_start: bool = False
  tolerance: float = 1e-5
  max_iterations: int = 300

  def __post_init__(self) -> None:
    fields.check(
      self,
      {
        "levels": (1, 10_000),
        "coupling_max": (_SIGMA_MIN, _SIGMA_MAX),
        "decay": (1e-3, 1.0),
        "nodes": (2, 1000),
        "tolerance": (1e-7, 1e-1),
        "max_iterations": (1, 100_000),
      },
    )
    if not 2 * _SIGMA_MIN <= self.coupling_min <= self.coupling_max:
      raise ValueError(
        f"coupling_min must lie in [{2 * _SIGMA_MIN:g}, coupling_max], got "
        f"{self.coupling_min} with coupling_max {self.coupling_max}"
      )

  @classmethod
  def published(
    cls, task: tasks.Task | None = None, **changes: Any
  ) -> "PnPDMConfig":
    """Of the code's linear tasks (zihuiwu/PnP-DM-public, mode edm_sde).

    100 iterations, rho from 10 to 0.3 by factors of 0.9, 100 nodes: 3573 calls
    of the network. The code averages 20 states of one chain; here every sample
    is the last state of its own. Inpainting is not among its tasks.

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
  ) -> "PnPDMConfig":
    """One setting for all tasks, of `experiments.tune_samplers`: 999 calls.

    Args:
      task: one of `baselines.TASKS`; all have the same setting.
      **changes: of single settings.
    """
    settings: dict[str, Any] = dict(
      levels=320,
      coupling_min=0.1,
      decay=0.65,
      nodes=15,
      solver="ancestral",
      exact_start=True,
    )
    return tasks.settings(cls, task, settings, changes)


@equal_samplers.from_settings
def pnpdm(config: PnPDMConfig = PnPDMConfig.published()) -> Sampler:  # noqa: B008
  """Plug-and-play diffusion models: a split Gibbs sampler.

  It samples p(x) exp(-|y - A z|^2 / 2 s^2 - |x - z|^2 / 2 rho^2) by turns,

    z | x: Gaussian, drawn exactly;
    x | z: the posterior of denoising z at noise rho, by reverse diffusion,

  with rho falling. x is the sample; as its law forgets z, the posterior it has
  is that of the noise s^2 I + rho^2 A A^T instead of s^2 I.

  The EDM grid is variance exploding as it stands, nothing is mapped. "euler" is
  the code's: x' = x + 2 (1 - r) (D - x) + sigma sqrt(2 (1 - r)) n with r =
  sigma' / sigma, and no noise in the last step, whose result 2 D - x leaves the
  0.002 of the last node in it.

  Args:
    config: see `PnPDMConfig`.

  Returns:
    Sampler(init, step, config.levels); `Info.sigma` is rho.
  """
  # The 0 at the end is what `level_of` reads as the noise after the last level.
  widths = jnp.asarray(np.append(_widths(config), 0.0), jnp.float32)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SamplerState:
    x = diffusion.start(key, observation, batch, jnp.ones((), jnp.float32))
    return SamplerState(x, jnp.zeros((), jnp.int32))

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    key_data, key_prior = jax.random.split(key)
    level = diffusion.level_of(widths, state.level)
    z, solve = gaussian.draw(
      key_data,
      gaussian.Target(observation, state.x, level.sigma**2),
      tolerance=config.tolerance,
      max_iterations=config.max_iterations,
    )
    x, calls = reverse(config, key_prior, z, level.sigma, denoise)
    moved = diffusion.Moved(x, x, solve, calls)
    report = diffusion.report(observation, level, moved)
    return SamplerState(x, state.level + 1), report

  return Sampler(init, step, config.levels)


def reverse(
  config: PnPDMConfig,
  key: jax.Array,
  z: jax.Array,
  rho: jax.Array,
  denoise: Denoiser,
) -> tuple[jax.Array, jax.Array]:
  """A draw from p(x0 | x0 + rho n = z) by reverse diffusion.

  Args:
    config: nodes, solver and start.
    key: of the noises.
    z: [..., H, W, C].
    rho: scalar > 0.002.
    denoise: the prior's denoiser.

  Returns:
    x [..., H, W, C], and how often the denoiser was called.
  """
  nodes = jnp.asarray(_nodes(config))
  first = jnp.sum(nodes >= rho)  # the highest node below rho

  def body(i: jax.Array, x: jax.Array) -> jax.Array:
    sigma, following = nodes[i], nodes[i + 1]
    # z holds noise rho, which lies between two nodes of the grid.
    if config.exact_start:
      sigma = jnp.where(i == first, rho, sigma)
    ratio = following / sigma
    x0 = predictor.clean(denoise, x, sigma)
    noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
    if config.solver == "ancestral":
      spread = following * jnp.sqrt(1 - ratio**2)
      return x0 + ratio**2 * (x - x0) + spread * noise
    spread = jnp.where(following > 0, sigma * jnp.sqrt(2 * (1 - ratio)), 0.0)
    return x + 2 * (1 - ratio) * (x0 - x) + spread * noise

  return lax.fori_loop(first, config.nodes, body, z), config.nodes - first


def calls(config: PnPDMConfig) -> np.ndarray:
  """Denoiser calls of every level, [levels] int."""
  widths = _widths(config).astype(np.float32)
  return np.sum(_nodes(config) < widths[:, None], axis=1) - 1


def _widths(config: PnPDMConfig) -> np.ndarray:
  """rho of every level, [levels]."""
  power = np.arange(config.levels)
  return np.maximum(
    config.coupling_max * config.decay**power, config.coupling_min
  )


def _nodes(config: PnPDMConfig) -> np.ndarray:
  """The EDM grid, then 0: [nodes + 1] float32."""
  grid = schedule.karras(
    config.nodes - 1, sigma_max=_SIGMA_MAX, sigma_min=_SIGMA_MIN
  )
  return np.append(grid[:-1], (_SIGMA_MIN, 0.0)).astype(np.float32)
