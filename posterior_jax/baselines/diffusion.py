"""The diffusion half of a baseline: start, transition, and the sampler.

Published algorithms are variance preserving (VP); here the state is variance
exploding (VE), x_ve = x_vp / sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) /
sqrt(alpha_bar). A VP gradient is sqrt(1 + sigma^2) times the VE one, a VP
increment of the state at sigma' is divided by sqrt(alpha_bar'), that is
multiplied by sqrt(1 + sigma'^2).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import diagnostics
from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  SamplerState,
  SolveInfo,
  normalised_residual,
)


class Level(NamedTuple):
  """Where a step is.

  Attributes:
    number: int32 scalar, 0 at the first level.
    sigma: noise of the state.
    following: noise after the step, 0 at the last.
  """

  number: jax.Array
  sigma: jax.Array
  following: jax.Array


class Moved(NamedTuple):
  """What one step of a method made.

  Attributes:
    x: [B, N, H, W, C] at the following noise.
    x0: the clean image of the step, whose residual is reported.
    solve: how a linear solve went, zeros where there is none.
    calls: of the denoiser, for every image.
    products: with its Jacobian, one VJP each.
  """

  x: jax.Array
  x0: jax.Array
  solve: SolveInfo | None = None
  calls: int | jax.Array = 1
  products: int | jax.Array = 0


Move = Callable[
  [jax.Array, Level, jax.Array, Denoiser, Observation], Moved
]  # (key, level, x, denoise, observation)


def sampler(sigmas: np.ndarray | jax.Array, move: Move) -> Sampler:
  """A sampler that starts at sigmas[0] n and moves from level to level.

  Args:
    sigmas: [K + 1] decreasing, the last 0 (`schedule`).
    move: one step of the method.

  Returns:
    Sampler(init, step, K).
  """
  nodes = jnp.asarray(sigmas, jnp.float32)  # [K + 1]

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SamplerState:
    return SamplerState(
      start(key, observation, batch, nodes[0]), jnp.zeros((), jnp.int32)
    )

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    level = level_of(nodes, state.level)
    moved = move(key, level, state.x, denoise, observation)
    following = SamplerState(moved.x, state.level + 1)
    return following, report(observation, level, moved)

  return Sampler(init, step, len(sigmas) - 1)


def start(
  key: jax.Array, observation: Observation, batch: int, sigma: jax.Array
) -> jax.Array:
  """Pure noise: sigma n, [batch, N, H, W, C] float32."""
  shape = (batch, observation.y.shape[0], *observation.operator.image_shape)
  return sigma * jax.random.normal(key, shape, jnp.float32)


def level_of(nodes: jax.Array, number: jax.Array) -> Level:
  """Level `number` of the noise levels [K + 1]."""
  return Level(number, nodes[number], nodes[number + 1])


def report(observation: Observation, level: Level, moved: Moved) -> Info:
  """The diagnostics of a step."""
  # Of the clean image: the state's own residual is that of its noise.
  return Info(
    level.sigma,
    normalised_residual(observation, moved.x0),
    SolveInfo.closed_form() if moved.solve is None else moved.solve,
    diagnostics.band_energy(observation, moved.x0),
    calls=moved.calls,
    products=moved.products,
  )


def ddim(
  key: jax.Array,
  x: jax.Array,
  x0: jax.Array,
  level: Level,
  eta: jax.Array | float,
) -> jax.Array:
  """The DDIM transition (Song et al. 2021, eq. 12) in VE variables.

    x' = x0 + sqrt(sigma'^2 - s^2) (x - x0) / sigma + s n,
    s = eta sigma' sqrt(1 - sigma'^2 / sigma^2)

  eta = 1 is the ancestral step of DDPM with the smaller of its two variances,
  the exact draw from q(x' | x, x0); eta = 0 the probability-flow step.

  Args:
    key: of the noise n.
    x: [..., H, W, C] at level.sigma.
    x0: the clean image.
    level: sigma and sigma' = following.
    eta: in [0, 1].

  Returns:
    x' at the following noise; x0 itself where that is 0.
  """
  # sigma' / sigma and not their squares' difference: no digits are lost where
  # neighbouring levels are close.
  ratio = level.following / level.sigma
  spread = eta * level.following * jnp.sqrt(1 - ratio**2)
  kept = jnp.sqrt(level.following**2 - spread**2) / level.sigma
  noise = jax.random.normal(key, x.shape, x.dtype)
  return x0 + kept * (x - x0) + spread * noise
