"""Sums over the pixels and channels of every image of a batch."""

import jax
import jax.numpy as jnp


def total(x: jax.Array) -> jax.Array:
  """[..., H, W, C] -> [..., 1, 1, 1]."""
  return jnp.sum(x, axis=(-3, -2, -1), keepdims=True)


def norm(x: jax.Array) -> jax.Array:
  """Euclidean, [..., H, W, C] -> [..., 1, 1, 1]."""
  return jnp.sqrt(total(x**2))
