"""Rotary position embedding of the first components of a head."""

import jax
import jax.numpy as jnp


def rotate(
  x: jax.Array, position: jax.Array, *, rotary_dim: int, theta: float
) -> jax.Array:
  """Turns component pairs (i, i + r/2) of x by position * theta^(-2 i / r).

  The first r = rotary_dim components are turned, the others pass
  (arXiv 2104.09864, in the half-split layout of Llama and Qwen).

  Args:
    x: [B, T, H, D].
    position: [B, T] integers.
    rotary_dim: r, even, at most D.
    theta: base of the frequencies.

  Returns:
    [B, T, H, D] in x's dtype; angles are float32.
  """
  power = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
  angle = position[..., None].astype(jnp.float32) * theta**-power
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  left, right, rest = jnp.split(x, [rotary_dim // 2, rotary_dim], axis=-1)
  left, right = left.astype(jnp.float32), right.astype(jnp.float32)
  turned = jnp.concatenate(
    [left * cos - right * sin, right * cos + left * sin], axis=-1
  )
  return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)
