"""How a network's output becomes a clean image: VP, VE, EDM and flows.

Networks were trained on differently scaled images and asked for different
things, but each is an estimate of E[x0 | x0 + sigma n] of the same form (Karras
et al. 2022, table 1),

  D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

A parametrisation names the class of schedule a network was trained with and
gives these four scalings at any sigma.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.foreign_files.messages import shown
from posterior_jax.priors import edm

# Networks have 1000 or 4000; a table has an entry for each.
MOST_STEPS = 100_000


class Parametrisation(Protocol):
  """Scalings by noise level; a hashable value."""

  @property
  def sigma_max(self) -> float:
    """Largest noise level of the schedule."""

  def scalings(self, sigma: jax.Array) -> edm.Preconditioning:
    """Of noise levels > 0, each of sigma's shape."""


@dataclasses.dataclass(frozen=True)
class EDM:
  """Outputs of unit variance at every noise level (Karras et al. 2022).

  Attributes:
    sigma_data: standard deviation of a clean pixel.
    sigma_max: largest noise level of the training.
    sigma_min: smallest one; the network is told of it where there is less.
  """

  sigma_data: float = 0.5
  sigma_max: float = 80.0
  sigma_min: float = 0.0

  def __post_init__(self):
    """Refuses what is no deviation."""
    for name in ("sigma_data", "sigma_max"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
    if not 0 <= self.sigma_min < self.sigma_max:
      raise ValueError(
        f"sigma_min must lie in [0, sigma_max), got {self.sigma_min}"
      )

  def scalings(self, sigma: jax.Array) -> edm.Preconditioning:
    """See `edm.precondition`."""
    # Only what the network is told stops at sigma_min; the scalings stay exact.
    told = edm.precondition(jnp.maximum(sigma, self.sigma_min), self.sigma_data)
    return edm.precondition(sigma, self.sigma_data)._replace(noise=told.noise)


@dataclasses.dataclass(frozen=True)
class VE:
  """Variance exploding: x = x0 + sigma n as it is (Song et al. 2021).

  The network is told log sigma, and sigma times the score is asked of it.

  Attributes:
    sigma_max: largest noise level of the training.
  """

  sigma_max: float = np.inf

  def scalings(self, sigma: jax.Array) -> edm.Preconditioning:
    """D = x + sigma F(x, log sigma)."""
    one = jnp.ones_like(sigma)
    return edm.Preconditioning(one, sigma, one, jnp.log(sigma))


@dataclasses.dataclass(frozen=True)
class Flow:
  """Flow matching on straight paths (Lipman et al. 2023; Liu et al. 2023).

  At time t the network saw (1 - t) x0 + t n and was asked for the velocity
  n - x0: the image of sigma = t / (1 - t), scaled by 1 - t.

  Attributes:
    steps: what the network calls the time 1: 1 for t itself, 1000 where it
      counts steps.
    sigma_max: largest noise level that is asked of it; the time 1 is infinite.
  """

  steps: float = 1.0
  sigma_max: float = 1000.0

  def __post_init__(self):
    """Refuses what is no scale."""
    for name in ("steps", "sigma_max"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

  def scalings(self, sigma: jax.Array) -> edm.Preconditioning:
    """D = (x - sigma F(x / (1 + sigma), t)) / (1 + sigma)."""
    inner = 1 / (1 + sigma)  # 1 - t
    time = sigma * inner
    return edm.Preconditioning(inner, -time, inner, self.steps * time)


@dataclasses.dataclass(frozen=True)
class VP:
  """Variance preserving in discrete steps (Ho et al. 2020).

  At step t the network saw sqrt(a_t) x0 + sqrt(1 - a_t) n, where a_t is the
  product of 1 - beta up to t: the image of sigma_t = sqrt(1 / a_t - 1), scaled
  to unit noise. Other noise levels lie between two steps; below the first and
  above the last the network is told of that one.

  Attributes:
    schedule: of beta: "linear", "scaled_linear" (linear in its square root) or
      "cosine" (Nichol and Dhariwal 2021; beta_start and beta_end are unused).
    beta_start: beta of the first step.
    beta_end: beta of the last.
    steps: how many, 2 to `MOST_STEPS`.
    prediction: what was asked of the network: "epsilon" (n), "sample" (x0) or
      "v_prediction" (Salimans and Ho 2022).
  """

  schedule: str = "linear"
  beta_start: float = 1e-4
  beta_end: float = 0.02
  steps: int = 1000
  prediction: str = "epsilon"

  def __post_init__(self):
    """Refuses schedules that are none."""
    for name, allowed in (
      ("schedule", ("linear", "scaled_linear", "cosine")),
      ("prediction", ("epsilon", "sample", "v_prediction")),
    ):
      if (found := getattr(self, name)) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {shown(found)}"
        )
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        "beta_start and beta_end must lie in (0, 1), in this order; got "
        f"{self.beta_start} and {self.beta_end}"
      )
    if self.steps < 2:
      raise ValueError(f"steps must be at least 2, got {self.steps}")
    if self.steps > MOST_STEPS:
      raise ValueError(f"steps must be at most {MOST_STEPS}, got {self.steps}")

  @property
  def sigma_max(self) -> float:
    """Noise level of the last step."""
    return float(self.sigmas[-1])

  @property
  def sigmas(self) -> np.ndarray:
    """Noise level of every step, [steps] float64, increasing."""
    kept = np.cumprod(1 - _betas(self))
    return np.sqrt((1 - kept) / kept)

  def scalings(self, sigma: jax.Array) -> edm.Preconditioning:
    """Those of `prediction`; c_noise is the step, a fraction between two."""
    step = self._step(sigma)
    inner = jax.lax.rsqrt(1 + sigma**2)
    one = jnp.ones_like(sigma)
    skip, out = {
      "epsilon": (one, -sigma),
      "sample": (0 * one, one),
      "v_prediction": (inner**2, -sigma * inner),
    }[self.prediction]
    return edm.Preconditioning(skip, out, inner, step)

  def _step(self, sigma: jax.Array) -> jax.Array:
    """Interpolated in log sigma.

    Neighbours differ by as little as 0.5 %, so logarithms are taken of ratios:
    those of the levels themselves would lose the digits that make the step.
    """
    table = self.sigmas
    levels = jnp.asarray(table, sigma.dtype)
    gaps = jnp.asarray(np.diff(np.log(table)), sigma.dtype)
    below = jnp.searchsorted(levels, sigma, side="right") - 1
    # Every sigma has a step on either side, those beyond the ends as well.
    below = jnp.clip(below, 0, self.steps - 2)
    part = jnp.log(sigma / levels[below]) / gaps[below]
    return jnp.clip(below.astype(sigma.dtype) + part, 0, self.steps - 1)


def _betas(vp: VP) -> np.ndarray:
  if vp.schedule == "cosine":
    t = np.linspace(0, 1, vp.steps + 1)
    # 0.008 and 0.999 are Nichol and Dhariwal's: beta near 0 is not too small,
    # and the last one is below 1.
    kept = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)
  if vp.schedule == "linear":
    return np.linspace(vp.beta_start, vp.beta_end, vp.steps)
  ends = np.sqrt(vp.beta_start), np.sqrt(vp.beta_end)
  return np.linspace(*ends, vp.steps) ** 2
