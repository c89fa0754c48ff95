"""Noise levels: decreasing sequences of sigma that end in zero."""

import numpy as np


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
  ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
  sigmas = np.linspace(*ends, levels + 1) ** rho
  sigmas[-1] = 0.0
  return sigmas
