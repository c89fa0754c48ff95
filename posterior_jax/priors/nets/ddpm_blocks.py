"""Layers of the U-Nets of Ho et al. (2020) and Dhariwal and Nichol (2021).

Norms, modulation and softmax are computed in float32, products in `dtype`.
Axis letters: N images, H W height and width, D channels, E width of the
embedded step.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from posterior_jax.priors.nets.convolution import Conv

Change = Literal["down", "up"]


def group_norm(
  width: int, groups: int, epsilon: float, rngs: nnx.Rngs
) -> nnx.GroupNorm:
  """Over space and the channels of a group; takes and gives float32."""
  return nnx.GroupNorm(
    width,
    num_groups=groups,
    epsilon=epsilon,
    use_fast_variance=False,  # E x^2 - (E x)^2 cancels in float32
    rngs=rngs,
  )


class ResidualBlock(nnx.Module):
  """x + conv(silu(norm(conv(silu(norm x))))), told of the step between.

  With `change` both x and what the first convolution sees are resampled.
  """

  def __init__(
    self,
    entering: int,
    width: int,
    *,
    embedding: int,
    groups: int,
    epsilon: float,
    scale_shift: bool,
    change: Change | None = None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      entering: channels of x.
      width: channels of the answer.
      embedding: E.
      groups: of the norms.
      epsilon: of the norms.
      scale_shift: whether the step scales and shifts after the second norm;
        else it is added before.
      change: halves or doubles the sides by mean and by repetition.
      dtype: of the products.
      rngs: streams of the initialisation.
    """
    conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
    told = 2 * width if scale_shift else width
    self.scale_shift, self.change = scale_shift, change
    self.norm1 = group_norm(entering, groups, epsilon, rngs)
    self.conv1 = conv(entering, width, (3, 3))
    self.time_emb_proj = nnx.Linear(embedding, told, dtype=dtype, rngs=rngs)
    self.norm2 = group_norm(width, groups, epsilon, rngs)
    self.conv2 = conv(width, width, (3, 3))
    # Published files have a shortcut only where widths differ.
    self.conv_shortcut = (
      conv(entering, width, (1, 1)) if entering != width else None
    )

  def __call__(self, x: jax.Array, embedded: jax.Array) -> jax.Array:
    """[N, H, W, D] and silu of the embedded step [N, E]."""
    h = nnx.silu(self.norm1(x.astype(jnp.float32)))
    if self.change is not None:
      resample = {"down": _mean, "up": repeat}[self.change]
      h, x = resample(h), resample(x)
    h = self.conv1(h).astype(jnp.float32)
    told = self.time_emb_proj(embedded)[:, None, None].astype(jnp.float32)
    if self.scale_shift:
      # 1 + scale: a projection of zeros leaves the block as it is.
      scale, shift = jnp.split(told, 2, -1)
      h = self.norm2(h) * (1 + scale) + shift
    else:
      h = self.norm2(h + told)
    x = x if self.conv_shortcut is None else self.conv_shortcut(x)
    return x + self.conv2(nnx.silu(h))


class Attention(nnx.Module):
  """x + attention over all pixels of its norm."""

  def __init__(
    self,
    width: int,
    *,
    heads: int,
    groups: int,
    epsilon: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      width: D, divisible by heads.
      heads: how many.
      groups: of the norm; 0: there is none.
      epsilon: of the norm.
      dtype: of the products.
      rngs: streams of the initialisation.
    """
    linear = functools.partial(nnx.Linear, width, width, dtype=dtype, rngs=rngs)
    self.heads = heads
    self.group_norm = (
      group_norm(width, groups, epsilon, rngs) if groups else None
    )
    self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
    self.to_out = linear()

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, D]."""
    n, height, width, d = x.shape
    h = x.astype(jnp.float32)
    h = h if self.group_norm is None else self.group_norm(h)
    split = (n, height * width, self.heads, d // self.heads)
    q, k, v = (
      layer(h).reshape(split) for layer in (self.to_q, self.to_k, self.to_v)
    )
    # Logits add up in float32 whatever the dtype of q and k: softmax is steep.
    logits = jnp.einsum(
      "nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32
    )
    weights = nnx.softmax(logits / np.sqrt(q.shape[-1]).astype(np.float32))
    mixed = jnp.einsum("nhqk,nkhd->nqhd", weights.astype(v.dtype), v)
    return x + self.to_out(mixed.reshape(x.shape))


class DownConv(nnx.Module):
  """A convolution of stride 2."""

  def __init__(
    self, width: int, *, padding: int, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    """Makes the parameters.

    Args:
      width: D.
      padding: 1: a pixel on either side; 0: one on the right and below.
      dtype: of the products.
      rngs: streams of the initialisation.
    """
    self.conv = Conv(
      width,
      width,
      (3, 3),
      strides=2,
      padding=((padding, 1), (padding, 1)),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, D] -> [N, H/2, W/2, D]."""
    return self.conv(x)


class UpConv(nnx.Module):
  """A convolution of repeated pixels."""

  def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    """Makes the parameters of `width` channels."""
    self.conv = Conv(width, width, (3, 3), dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, D] -> [N, 2 H, 2 W, D]."""
    return self.conv(repeat(x))


class FourierRates(nnx.Module):
  """Rates of waves that were drawn once and stored with the weights."""

  def __init__(self, count: int, *, rngs: nnx.Rngs):
    """Draws `count` of them."""
    self.weight = nnx.Param(jax.random.normal(rngs.params(), (count,)))

  def __call__(self) -> jax.Array:
    """Angular rates, [count]."""
    return 2 * np.pi * self.weight[...]


def wave_rates(count: int, shift: float) -> np.ndarray:
  """Angular rates from 1 down to about 1e-4 of a step, [count] float32.

  Rounded at every operation as PyTorch rounds, for that is what networks were
  trained with: at step 1000 the last digit of a rate is 6e-5 of the angle.
  """
  powers = np.float32(-np.log(10_000)) * np.arange(count, dtype=np.float32)
  powers = powers / np.float32(count - shift)
  return np.exp(powers.astype(np.float64)).astype(np.float32)


def waves(
  noise: jax.Array, rates: jax.Array | np.ndarray, *, cos_first: bool
) -> jax.Array:
  """Sines and cosines of c_noise: [N] and [K] -> [N, 2 K]."""
  angle = noise[:, None] * rates
  parts = [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(parts[::-1] if cos_first else parts, -1)


def repeat(x: jax.Array) -> jax.Array:
  """Every pixel twice in both directions: [N, H, W, D] -> [N, 2 H, 2 W, D]."""
  return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def _mean(x: jax.Array) -> jax.Array:
  """The mean of 2 x 2 pixels: [N, H, W, D] -> [N, H/2, W/2, D]."""
  n, height, width, d = x.shape
  return x.reshape(n, height // 2, 2, width // 2, 2, d).mean((2, 4))
