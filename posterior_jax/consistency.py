"""Haar fusion: adopt coarse corrections fully, fine ones late."""

import jax
import jax.numpy as jnp


def haar(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One level of the orthonormal Haar transform.

  Args:
    x: [..., H, W, C], H and W even.

  Returns:
    Low-low [..., H/2, W/2, C] and details [..., 3, H/2, W/2, C], in the order
    horizontal, vertical, diagonal.
  """
  a, b = x[..., 0::2, 0::2, :], x[..., 0::2, 1::2, :]
  c, d = x[..., 1::2, 0::2, :], x[..., 1::2, 1::2, :]
  low = (a + b + c + d) / 2
  details = [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
  return low, jnp.stack(details, axis=-4)


def inverse_haar(low: jax.Array, details: jax.Array) -> jax.Array:
  """Inverse of `haar`: [..., H/2, W/2, C] and details -> [..., H, W, C]."""
  h, v, d = (details[..., i, :, :, :] for i in range(3))
  top = jnp.stack([low + h + v + d, low + h - v - d], axis=-2)
  bottom = jnp.stack([low - h + v - d, low - h - v + d], axis=-2)
  both = jnp.stack([top, bottom], axis=-4) / 2  # [..., H/2, 2, W/2, 2, C]
  *batch, height, _, width, _, channels = both.shape
  return both.reshape(*batch, 2 * height, 2 * width, channels)


def fuse(
  x0: jax.Array,
  z: jax.Array,
  *,
  low: jax.Array | float,
  high: jax.Array | float,
  levels: int,
) -> jax.Array:
  """Moves the prediction towards the refined image, band by Haar band.

    LL: x0 + low (z - x0);  details: x0 + high (z - x0)

  Weights of 1 return z.

  Args:
    x0: [..., H, W, C], the predictor's image.
    z: the same shape, refined by the measurement.
    low: weight of the low-low band of the last level.
    high: weight of the details of every level.
    levels: >= 1; H and W must be divisible by 2**levels.

  Returns:
    The fused image.
  """
  return x0 + _weigh(z - x0, low, high, levels)


def _weigh(
  x: jax.Array, low: jax.Array | float, high: jax.Array | float, levels: int
) -> jax.Array:
  if levels == 0:
    return low * x
  coarse, details = haar(x)
  return inverse_haar(_weigh(coarse, low, high, levels - 1), high * details)
