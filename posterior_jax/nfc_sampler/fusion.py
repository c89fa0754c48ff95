"""Wavelet fusion: adopt coarse corrections fully, fine ones late.

Periodic two-channel filter banks, Haar first; the others test what the paper's
ablation says of them.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Wavelet = Literal["haar", "db2", "bior4.4"]
Unlock = Literal["product", "clip", "base", "delay"]

# Low-pass taps that sum to sqrt(2), so that an orthonormal transform keeps the
# power: white noise in an image is white noise in its bands.
_R3 = 3**0.5
_HAAR = np.array([1.0, 1.0]) / 2**0.5
_DB2 = np.array([1 - _R3, 3 - _R3, 3 + _R3, 1 + _R3]) / 32**0.5
# Cohen, Daubechies and Feauveau 1992, the 9/7 pair, halves of even filters.
_NINE = (
  0.037828455507264,
  -0.0238494650195568,
  -0.1106244044184372,
  0.3774028556128306,
  0.8526986790088938,
)
_SEVEN = (
  -0.0645388826286971,
  -0.0406894176091641,
  0.4180922732216172,
  0.7884856164055829,
)
# Low-pass filters of analysis and, in reverse, of synthesis; equal where the
# wavelet is orthonormal. The high-pass ones follow from the other's.
_LOW = {
  "haar": (_HAAR, _HAAR),
  "db2": (_DB2, _DB2),
  "bior4.4": (
    np.array([0.0, *_NINE, *_NINE[-2::-1]]),
    np.array([0.0, 0.0, *_SEVEN, *_SEVEN[-2::-1], 0.0]),
  ),
}


def decompose(
  x: jax.Array, wavelet: Wavelet = "haar"
) -> tuple[jax.Array, jax.Array]:
  """One level of a wavelet transform with periodic borders.

  Args:
    x: [..., H, W, C], H and W even.
    wavelet: "haar" and "db2" (orthonormal), or "bior4.4".

  Returns:
    Low-low [..., H/2, W/2, C] and details [..., 3, H/2, W/2, C], in the order
    horizontal, vertical, diagonal.
  """
  bank = _bank(wavelet, 0)
  low, high = (_analyse(x, taps, -3) for taps in bank)
  (ll, v), (h, d) = ([_analyse(y, t, -2) for t in bank] for y in (low, high))
  return ll, jnp.stack([h, v, d], axis=-4)


def reconstruct(
  low: jax.Array, details: jax.Array, wavelet: Wavelet = "haar"
) -> jax.Array:
  """Inverse of `decompose`: low-low and details -> [..., H, W, C]."""
  first, second = _bank(wavelet, 1)
  h, v, d = (details[..., i, :, :, :] for i in range(3))
  top = _synthesise(low, first, -2) + _synthesise(v, second, -2)
  bottom = _synthesise(h, first, -2) + _synthesise(d, second, -2)
  return _synthesise(top, first, -3) + _synthesise(bottom, second, -3)


def fuse(
  x0: jax.Array,
  z: jax.Array,
  *,
  low: jax.Array | float,
  high: jax.Array | float,
  levels: int,
  wavelet: Wavelet = "haar",
) -> jax.Array:
  """Moves the prediction towards the refined image, band by wavelet band.

    LL: x0 + low (z - x0);  LH, HL, HH: x0 + high (z - x0)

  Weights of 1 return z.

  Args:
    x0: [..., H, W, C], the predictor's image.
    z: the same shape, refined by the measurement.
    low: weight of the low-low band of the last level.
    high: weight of the details of every level, one or three of them, [3], for
      horizontal (LH), vertical (HL) and diagonal (HH) ones.
    levels: >= 1; H and W must be divisible by 2**levels.
    wavelet: of the transform.

  Returns:
    The fused image.
  """
  return x0 + _weigh(z - x0, low, high, levels, wavelet)


def unlocked(
  law: Unlock,
  high: float | tuple[float, float, float],
  start: float,
  end: float,
  progress: np.ndarray,
) -> np.ndarray:
  """Weight of the details at every level; the paper leaves the law open.

  Of its two plain readings "product" takes w_H for the weight at the end, and
  "base" for the weight from which unlocking starts.

  With u rising linearly from `start` to `end`:

    product  high u
    clip     min(u, high)
    base     high + (1 - high) u
    delay    high until progress `start`, then linearly to 1 at `end`

  Args:
    law: which.
    high: w_H, in [0, 1]; three of them for LH, HL, HH.
    start: in [0, 1].
    end: in [0, 1].
    progress: [K], 0 to 1.

  Returns:
    [K] in [0, 1]; [K, 3] for three w_H.
  """
  if isinstance(high, tuple):
    each = [unlocked(law, one, start, end, progress) for one in high]
    return np.stack(each, axis=-1)
  u = start + (end - start) * progress
  if law == "product":
    return high * u
  if law == "clip":
    return np.minimum(u, high)
  if law == "delay":
    # 1e-9: start = end is a step, not a division by zero.
    u = np.clip((progress - start) / max(end - start, 1e-9), 0, 1)
  return high + (1 - high) * u


def _weigh(
  x: jax.Array,
  low: jax.Array | float,
  high: jax.Array | float,
  levels: int,
  wavelet: Wavelet,
) -> jax.Array:
  if levels == 0:
    return low * x
  # The transform is linear: weighing the correction z - x0 alone takes one
  # transform where weighing both images would take two.
  coarse, details = decompose(x, wavelet)
  coarse = _weigh(coarse, low, high, levels - 1, wavelet)
  each = jnp.reshape(high, (-1, 1, 1, 1))  # [1 or 3, 1, 1, 1]
  return reconstruct(coarse, each * details, wavelet)


def _bank(wavelet: Wavelet, side: int) -> tuple[np.ndarray, np.ndarray]:
  """Low-pass and high-pass taps of analysis (0) or synthesis (1).

  The high-pass filter of one side is the other's low-pass one, reversed, with
  alternating signs; synthesis filters are kept in reverse, as `_synthesise`
  reads them.
  """
  low = _LOW[wavelet][side]
  other = _LOW[wavelet][1 - side]
  return low, other[::-1] * (-1.0) ** (np.arange(len(other)) + 1)


def _analyse(x: jax.Array, taps: np.ndarray, axis: int) -> jax.Array:
  """y[i] = sum_j taps[j] x[2 i + len(taps) / 2 - j], indices around."""
  shifts = np.arange(len(taps)) - len(taps) // 2
  # Rolls and sums, not a convolution: at most ten taps, and the order of the
  # sum is fixed on every backend.
  terms = [
    float(tap) * _every_second(jnp.roll(x, shift, axis), axis)
    for tap, shift in zip(taps, shifts)
    if tap
  ]
  return functools.reduce(jnp.add, terms)


def _synthesise(y: jax.Array, taps: np.ndarray, axis: int) -> jax.Array:
  """The transpose of `_analyse`."""
  axis = axis % y.ndim
  apart = jnp.stack([y, jnp.zeros_like(y)], axis + 1)
  around = y.shape[:axis], y.shape[axis + 1 :]
  apart = apart.reshape(*around[0], 2 * y.shape[axis], *around[1])
  shifts = len(taps) // 2 - np.arange(len(taps))
  terms = [
    float(tap) * jnp.roll(apart, shift, axis)
    for tap, shift in zip(taps, shifts)
    if tap
  ]
  return functools.reduce(jnp.add, terms)


def _every_second(x: jax.Array, axis: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, 0, None, 2, axis)
