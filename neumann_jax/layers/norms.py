"""The normalisations of the Gated DeltaNet block and of the model around it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

UNIT_EPS = 1e-6


def unit_norm(x: jax.Array, *, eps: float = UNIT_EPS) -> jax.Array:
  """x / sqrt(|x|^2 + eps) over the last axis, in float32.

  eps stands on the sum of squares, not on their mean: norms stay below 1.
  """
  # A key whose norm exceeds 1 would break `envelope`, the bound of A's entries.
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + eps)


class GatedRMSNorm(nnx.Module):
  """x / rms(x) * weight * silu(gate): the norm acts before the gate.

  Args:
    dim: size of the last axis.
    eps: added to the mean square.
    param_dtype: of the weight, which starts at 1.
  """

  def __init__(
    self,
    dim: int,
    *,
    eps: float = 1e-6,
    param_dtype: jnp.dtype = jnp.float32,
  ) -> None:
    self.eps = eps
    self.weight = nnx.Param(jnp.ones(dim, param_dtype))

  def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
    """[..., dim] twice -> [..., dim] in x's dtype."""
    return gated_rms_norm(x, gate, self.weight[...], self.eps)


def gated_rms_norm(
  x: jax.Array, gate: jax.Array, weight: jax.Array, eps: float
) -> jax.Array:
  """`GatedRMSNorm` as a function of its weight [dim]."""
  # Rounded to the activation dtype before the weight and again after the gate:
  # the order of transformers, so that a bfloat16 model rounds where it did.
  normed = _over_rms(x, eps).astype(x.dtype)
  scaled = weight.astype(x.dtype) * normed
  gated = scaled.astype(jnp.float32) * nnx.silu(gate.astype(jnp.float32))
  return gated.astype(x.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * (1 + weight): the zero-centred norm of Qwen3-Next and 3.5.

  Args:
    dim: size of the last axis.
    eps: added to the mean square.
    param_dtype: of the weight, which starts at 0.
  """

  def __init__(
    self,
    dim: int,
    *,
    eps: float = 1e-6,
    param_dtype: jnp.dtype = jnp.float32,
  ) -> None:
    self.eps = eps
    self.weight = nnx.Param(jnp.zeros(dim, param_dtype))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., dim] -> [..., dim] in x's dtype; everything in float32."""
    return rms_norm(x, self.weight[...], self.eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
  """`RMSNorm` as a function of its weight [dim]."""
  return (_over_rms(x, eps) * from_zero(weight)).astype(x.dtype)


def from_zero(weight: jax.Array) -> jax.Array:
  """1 + weight in float32, what `RMSNorm` multiplies by."""
  # The weight is stored about 0, so that weight decay pulls the scale to 1;
  # 1 + weight in bfloat16 would lose all of it below 2^-8.
  return 1.0 + weight.astype(jnp.float32)


def _over_rms(x: jax.Array, eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) over the last axis, in float32."""
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps)
