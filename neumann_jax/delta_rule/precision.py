"""In which types the delta rule computes, and how it multiplies.

Products take bfloat16 or float16 operands as they are where q, k and v all have
that type, and round what else they take to it; their sums, the gates, A and the
state are float32. Everything else is float32 with products at highest
precision, or float64 for float64 values.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from neumann_jax import checks


def compute_dtype(x: jax.Array) -> jnp.dtype:
  """float64 stays; everything narrower is computed in float32."""
  wide = jax.dtypes.canonicalize_dtype(x.dtype) == jnp.float64
  return jnp.dtype(jnp.float64 if wide else jnp.float32)


def product_dtype(v: jax.Array, *others: jax.Array) -> jnp.dtype:
  """What the chunk-wise rule rounds the operands of a product to.

  bfloat16 or float16 where v and the others all have that type, else what
  `compute_dtype` gives for v.
  """
  same = all(x.dtype == v.dtype for x in others)
  return v.dtype if same and is_narrow(v.dtype) else compute_dtype(v)


def is_narrow(dtype: DTypeLike) -> bool:
  """Whether a type has 16 bits, as matrix units multiply them."""
  return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def einsum(
  subscripts: str, x: jax.Array, y: jax.Array, dtype: DTypeLike
) -> jax.Array:
  """A product of the chunk-wise rule: its one policy of types.

  Args:
    subscripts: as `jnp.einsum`.
    x: left operand.
    y: right operand.
    dtype: from `product_dtype`; both operands are rounded to it.

  Returns:
    Sums in float32 of 16-bit operands as they are; float32 and float64 at
    highest precision, in their own type.
  """
  narrow = is_narrow(dtype)
  return jnp.einsum(
    subscripts,
    x.astype(dtype),
    y.astype(dtype),
    # HIGHEST would split 16-bit operands, which are exact as they are.
    precision=lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32 if narrow else dtype,
  )


def nonzero(scale: jax.Array) -> jax.Array:
  """The scale, 2^-60 for 0: kernels find its gradient from q's, by division.

  Then `of_scaled` has that of q.
  """
  return jnp.where(scale == 0, 2.0**-60, scale)


def of_scaled(cotangent: jax.Array, scale: jax.Array) -> jax.Array:
  """That of q, found with `nonzero` of the scale: 0 for a scale of 0."""
  return jnp.where(scale == 0, jnp.zeros_like(cotangent), cotangent)


def output_scale(scale: float | None, q: jax.Array) -> float:
  """The factor on the output: Dk^-0.5 unless given.

  Raises:
    TypeError: for what is no real number.
    ValueError: for many numbers, which would broadcast along some axis, or one
      that is not finite.
  """
  if scale is None:
    return q.shape[-1] ** -0.5
  checks.check_number("scale", scale)
  if not isinstance(scale, jax.core.Tracer) and not np.isfinite(scale):
    raise ValueError(f"scale must be finite, got {scale}")
  return scale


def scaled(
  q: jax.Array, scale: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
  """q in a type, scaled, and the factor that is left for the output.

  A 16-bit q is left alone: scaling would round it once more.
  """
  q = q.astype(dtype)
  if is_narrow(dtype):
    return q, scale
  return q * jnp.asarray(scale, dtype), jnp.ones((), dtype)


def key_norm(k: jax.Array) -> jax.Array:
  """What no key is longer than, at least 1: [..., C, Dk] -> [...] float32.

  Of a zero or unit key it is 1, of others a little more than the norm.
  """
  k = k.astype(compute_dtype(k))
  square = jnp.max(jnp.sum(jnp.square(k), axis=-1), axis=-1)  # [...]
  # A sum of Dk squares, and its root, round by less than this.
  slack = 1.0 + (k.shape[-1] + 4) * 2.0**-23
  longest = (jnp.sqrt(square) * slack).astype(jnp.float32)
  return lax.stop_gradient(jnp.maximum(longest, 1.0))
