"""A sampler: what a step takes, carries and says."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax

from posterior_jax.base.observation import Observation
from posterior_jax.base.operator import SolveInfo

# denoise(x [M, H, W, C], sigma [M]) -> E[x0 | x0 + sigma n = x] [M, H, W, C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


class State(Protocol):
  """A NamedTuple whose first two fields are those of `SamplerState`."""

  @property
  def x(self) -> jax.Array:
    """[B, N, H, W, C]."""

  @property
  def level(self) -> jax.Array:
    """int32 scalar."""


class SamplerState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, N, H, W, C] float32, the image at the noise of `level`.
    level: int32 scalar, how many levels have been done.
    average: [B, N, H, W, C], mean of the images of the held levels so far;
      None where no level is held.
    misfit: [B, N], normalised residual of the last prediction; None where the
      sampler does not heed it.
    predicted: [B, N, H, W, C], the last prediction; None where the sampler
      does not go on from it.
  """

  x: jax.Array
  level: jax.Array
  average: jax.Array | None = None
  misfit: jax.Array | None = None
  predicted: jax.Array | None = None


class Info(NamedTuple):
  """Diagnostics of one step; stacked over steps by `run`.

  Attributes:
    sigma: noise level the step started from.
    residual: [B, N] ||y - A x0||^2 / (m noise_std^2) of the step's image.
    solve: how the inner linear solve went (zeros where there is none).
    band_energy: [B, N, K], the residual by radial band of the measurement's
      spectrum, low to high (`diagnostics.band_energy`); None where a sampler
      does not say.
    calls: of the denoiser in this step, for every image.
    products: with the denoiser's Jacobian (one VJP each), likewise.
    trajectory: [B, N, H, W, C], the step's result, from `recorded` samplers
      only.
    choice: [B] int32, the number of the kernel after the step, from samplers of
      `uncertain` only.
  """

  sigma: jax.Array
  residual: jax.Array
  solve: SolveInfo
  band_energy: jax.Array | None = None
  calls: jax.Array | int = 0
  products: jax.Array | int = 0
  trajectory: jax.Array | None = None
  choice: jax.Array | None = None

  @property
  def evaluations(self) -> jax.Array | int:
    """Network evaluations: calls and Jacobian products together."""
    return self.calls + self.products


class Sampler(NamedTuple):
  """A posterior sampler as pure functions, for `run` or a loop of one's own.

  `init` begins with the key, as whatever draws does in `jax.random`; `step` is
  the body of a scan, so it begins with the state that is carried and ends with
  the key, which is new for every step.

  Attributes:
    init: (key, observation, batch) -> SamplerState, or another `State`.
    step: (state, denoise, observation, key) -> (state, Info).
    num_steps: how many steps a run takes.
  """

  init: Callable[[chex.PRNGKey, Observation, int], State]
  step: Callable[..., tuple[State, Any]]
  num_steps: int
