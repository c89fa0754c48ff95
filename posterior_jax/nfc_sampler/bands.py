"""Which frequencies of the measurement may speak at each noise level.

A band is a gain in [0, 1] on the measurement's FFT grid, wide open at the end.
The likelihood weighs the residual's spectrum by B = (1 - l) + l M^2 (convex)
or 1 + l M^2 (additive), M the band and l the blend, which falls to 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.linalg import fourier

Shape = Literal["hard", "butterworth", "gaussian"]
Blend = Literal["convex", "additive"]

_LARGEST_RADIUS = np.sqrt(0.5)  # the corner of the Fourier plane
_BUTTERWORTH_ORDER = 4


def linear_progress(sigmas: np.ndarray, law: str) -> np.ndarray:
  """How far each level has come, 0 at the first to 1 at the last.

  Args:
    sigmas: [K] positive noise levels, decreasing.
    law: "step" counts levels, "log_sigma" measures the logarithm of noise.

  Returns:
    [K] float64.
  """
  if len(sigmas) == 1:
    return np.ones(1)
  if law == "step":
    return np.linspace(0, 1, len(sigmas))
  depth = np.log(sigmas[0] / sigmas)
  return depth / depth[-1]


def cosine_blend(start: float, progress: np.ndarray) -> np.ndarray:
  """l = start (1 + cos(pi p)) / 2: from `start` to 0."""
  return start * 0.5 * (1 + np.cos(np.pi * progress))


def radial_band(
  shape: tuple[int, int], cutoff: jax.Array, kind: Shape
) -> jax.Array:
  """Low-pass gain [h, w] up to a cutoff.

  Args:
    shape: (h, w) of the measurement.
    cutoff: scalar > 0, fraction of the largest radius, the corner's.
    kind: "hard" disc, "butterworth" (order 4, half power at the cutoff) or
      "gaussian" (standard deviation = cutoff).
  """
  radius = fourier.radial_frequency(*shape) / _LARGEST_RADIUS
  ratio = jnp.asarray(radius, jnp.float32) / cutoff
  if kind == "hard":
    return (ratio <= 1 + 1e-6).astype(jnp.float32)
  if kind == "butterworth":
    return jax.lax.rsqrt(1 + ratio ** (2 * _BUTTERWORTH_ORDER))
  return jnp.exp(-0.5 * ratio**2)


def snr_band(
  spectrum: jax.Array, shape: tuple[int, int], sigma: jax.Array
) -> jax.Array:
  """S / (S + sigma^2): the share of a frequency that rises above the noise.

  A frequency opens when the prior's power S exceeds the noise of the state,
  and all are open once sigma is below the smallest of sqrt(S). The operator
  scales signal and state noise alike and drops out.

  Args:
    spectrum: [H, W] or [H, W, C], the prior's power on the image grid.
    shape: (h, w) of the measurement, at most (H, W); its frequencies are the
      lowest ones of the image.
    sigma: scalar noise of the state.

  Returns:
    [h, w] or [h, w, C].
  """
  rows, columns = (np.round(np.fft.fftfreq(n) * n).astype(int) for n in shape)
  power = spectrum[rows][:, columns]
  return power / (power + sigma**2)


def weight(band: jax.Array, blend: jax.Array, form: Blend) -> jax.Array:
  """B of the likelihood: (1 - l) + l M^2 or 1 + l M^2."""
  full = 1 - blend if form == "convex" else jnp.ones_like(blend)
  return full + blend * band**2
