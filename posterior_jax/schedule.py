"""Noise levels: decreasing sequences of sigma that end in zero."""

import typing
from typing import Literal

import numpy as np

Spacing = Literal["uniform", "quadratic"]
Law = Literal["step", "log_sigma"]


def check_ends(sigma_max: float, sigma_min: float) -> None:
  """Raises ValueError where the last noise is not below the first.

  Args:
    sigma_max: first level of a setting, positive.
    sigma_min: last one, positive.
  """
  if not sigma_min < sigma_max:
    raise ValueError(
      f"sigma_min must lie in (0, sigma_max), got {sigma_min} with sigma_max "
      f"{sigma_max}"
    )


def karras(
  levels: int,
  *,
  sigma_max: float = 100.0,
  sigma_min: float = 0.1,
  rho: float = 7.0,
) -> np.ndarray:
  """The polynomial schedule of EDM (Karras et al. 2022, eq. 5), ending in 0.

  sigma_i = (sigma_max^(1/rho) + i / levels (sigma_min^(1/rho) -
  sigma_max^(1/rho)))^rho for i = 0 .. levels, whose last node is replaced by
  0 as in DAPS: sigma_min itself is never used.

  Args:
    levels: number of noise levels, >= 1.
    sigma_max: first level, > sigma_min.
    sigma_min: where the ramp would end, > 0.
    rho: > 0; larger puts more levels at low noise.

  Returns:
    [levels + 1] float64, strictly decreasing, the last 0.

  Raises:
    ValueError: for values out of range.
  """
  if levels < 1:
    raise ValueError(f"levels must be at least 1, got {levels}")
  if not 0 < sigma_min < sigma_max < np.inf:
    raise ValueError(
      "sigma_min must lie in (0, sigma_max), sigma_max finite, got "
      f"sigma_min={sigma_min} and sigma_max={sigma_max}"
    )
  if not 0 < rho < np.inf:
    raise ValueError(f"rho must be positive and finite, got {rho}")
  # Below, an end to the power of 1 / rho is no float64.
  least = max(abs(np.log(sigma_max)), abs(np.log(sigma_min))) / 700
  if rho < least:
    raise ValueError(
      f"rho must be at least {least:.3g} for sigma_max={sigma_max} and "
      f"sigma_min={sigma_min}, got {rho}"
    )
  ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  # In float64 and on the host: nodes are constants of the compiled program.
  sigmas = np.linspace(*ends, levels + 1) ** rho  # [levels + 1]
  sigmas[-1] = 0.0
  return sigmas


def ddpm(
  levels: int,
  *,
  spacing: Spacing = "uniform",
  steps: int = 1000,
  beta_min: float = 1e-4,
  beta_max: float = 0.02,
) -> np.ndarray:
  """The discrete linear-beta schedule of DDPM, in variance-exploding form.

  sigma_t = sqrt(1 - alpha_bar_t) / sqrt(alpha_bar_t) with alpha_bar_t the
  product of 1 - beta up to t, at `levels` of the `steps` timesteps t, then 0.

  Args:
    levels: number of noise levels, 1 to steps; 1 is the last timestep alone.
    spacing: "uniform" takes timesteps evenly from the first to the last (Ho et
      al. 2020 where all are taken), "quadratic" t = steps (1 - sqrt(u)), u
      evenly from 0 to 1, as the code of DiffPIR does: denser at low noise.
    steps: timesteps of the schedule, 1000 in every published network.
    beta_min: first beta, in (0, beta_max].
    beta_max: last beta, < 1.

  Returns:
    [levels + 1] float64, strictly decreasing, the last 0.

  Raises:
    ValueError: for values out of range, or levels so many that quadratic
      spacing would take a timestep twice.
  """
  if spacing not in typing.get_args(Spacing):
    raise ValueError(
      f"spacing must be one of {', '.join(typing.get_args(Spacing))}; got "
      f"{spacing!r}"
    )
  # Beyond half of the steps the quadratic law would name a timestep twice.
  most = steps if spacing == "uniform" else steps // 2
  if not 1 <= levels <= most:
    raise ValueError(
      f"levels must lie in [1, {most}] for {spacing} spacing, got {levels}"
    )
  if not 0 < beta_min <= beta_max < 1:
    raise ValueError(
      "beta_min must lie in (0, beta_max] and beta_max below 1, got "
      f"beta_min={beta_min} and beta_max={beta_max}"
    )
  # A single level is the last timestep: sampling starts at the highest noise.
  share = np.linspace(0, 1, levels) if levels > 1 else np.ones(1)
  if spacing == "uniform":
    taken = np.round((steps - 1) * share[::-1]).astype(int)
  else:
    root = np.floor(steps * np.sqrt(share)).astype(int)
    taken = steps - 1 - np.minimum(root, steps - 1)
    # floor may leave the first timestep out, where all the noise is.
    taken[0] = steps - 1
  # The product in float64: over 1000 factors float32 would lose digits.
  alpha_bar = np.cumprod(1 - np.linspace(beta_min, beta_max, steps))
  sigmas = np.sqrt((1 - alpha_bar) / alpha_bar)[taken]
  return np.append(sigmas, 0.0)


def progress(sigmas: np.ndarray, law: Law) -> np.ndarray:
  """How far each level has come, 0 at the first to 1 at the last.

  Args:
    sigmas: [K] positive noise levels, decreasing.
    law: "step" counts levels, "log_sigma" measures the logarithm of noise.

  Returns:
    [K] float64; 1 where there is only one level, which is the last.
  """
  if len(sigmas) == 1:
    return np.ones(1)
  if law == "step":
    return np.linspace(0, 1, len(sigmas))
  depth = np.log(sigmas[0] / sigmas)
  return depth / depth[-1]


def saturating(progress: np.ndarray, rate: float) -> np.ndarray:
  """1 - exp(-rate p): fast at first; the last level stops short by e^-rate.

  The exponential law of the code of FGPS (Thaker et al. 2025), rate 5 there.
  """
  return 1 - np.exp(-rate * progress)


def ramp(start: float, end: float, progress: np.ndarray) -> np.ndarray:
  """From `start` to `end`, linear in the progress [K]."""
  return start + (end - start) * progress
