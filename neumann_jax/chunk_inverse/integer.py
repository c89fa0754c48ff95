"""Integer operands: codes, scales, exact code products, straight-through grads.

One definition serves the emulated ("fake") and the true integer product. An
operand x becomes codes n = clip(floor(x / s + 0.5), -q, q); the left operand
has one scale per row and the right one per column (`dynamic`), or both share
one scale fixed by the envelope. The product of codes is exact and is scaled
once, by s_left * s_right. INT16 codes split into two signed 8-bit limbs,
n = 256 h + l, so q = 32639 = 127 * 256 + 127 there, and the four limb products
combine in float32 as ((hh * 256) + (hl + lh)) * 256 + ll.

The fake product keeps the codes in float32, the true one in int8 with int32
sums. Sums of code products stay below 2^24, so the two agree bit for bit.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.checks import plain_numbers

Scale = Literal["envelope", "dynamic"]
# The product of two arrays of small integers, exact in its own dtype.
Dot = Callable[[jax.Array, jax.Array], jax.Array]

# Symmetric, so that a scale needs no zero point; 32639 = 127 * 256 + 127 is the
# largest code whose two limbs fit into int8.
_LARGEST_CODE = {4: 7, 8: 127, 16: 32639}


@dataclasses.dataclass(frozen=True)
class QuantSpec:
  """How the operands of a product are quantised.

  Attributes:
    bits: 4, 8 or 16.
    scale: "envelope" fixes one scale s = max(E) / q from the gates alone, no
      data needed, codes beyond it saturate; "dynamic" takes the largest
      magnitude of every row (left operand) or column (right operand).
    integer: multiply int8 codes with int32 sums; otherwise the same codes are
      multiplied in float32, with the same result.
  """

  bits: int = 8
  scale: Scale = "envelope"
  integer: bool = False

  def __post_init__(self) -> None:
    plain_numbers(self)
    if self.bits not in _LARGEST_CODE:
      raise ValueError(f"bits must be 4, 8 or 16, got {self.bits!r}")
    if self.scale not in ("envelope", "dynamic"):
      raise ValueError(
        f'scale must be "envelope" or "dynamic", got {self.scale!r}'
      )

  @property
  def largest_code(self) -> int:
    """q: codes lie in [-q, q]."""
    return _LARGEST_CODE[self.bits]


def fixed_scale(bound: jax.Array | None, *, bits: int) -> jax.Array:
  """Scale that maps magnitude `bound` (None: 1) to the largest code."""
  largest = jnp.ones((), jnp.float32) if bound is None else bound
  return largest * (1 / _LARGEST_CODE[bits])


def dynamic_scale(x: jax.Array, *, axis: int, bits: int) -> jax.Array:
  """Scale that maps the largest magnitude along `axis` to the largest code.

  Args:
    x: any shape.
    axis: the summed axis of the product: -1 for a left operand (one scale a
      row), -2 for a right one (one a column).
    bits: 4, 8 or 16.

  Returns:
    x's shape with `axis` reduced to 1, positive also where x is zero.
  """
  return scale_of(jnp.max(jnp.abs(x), axis=axis, keepdims=True), bits=bits)


def scale_of(largest: jax.Array, *, bits: int) -> jax.Array:
  """Scale that maps `largest` >= 0 to the largest code; positive also for 0."""
  # A row of zeros has codes 0 under any scale but 0, whose reciprocal is NaN
  # times 0. The product with 1 / q is the same on every back end; a division
  # is not.
  tiny = float(jnp.finfo(largest.dtype).tiny)
  return jnp.maximum(largest * (1 / _LARGEST_CODE[bits]), tiny)


def codes(x: jax.Array, scale: jax.Array, *, bits: int) -> jax.Array:
  """Integer codes clip(floor(x / scale + 0.5), -q, q), held in x's dtype.

  The quotient is the product with the rounded reciprocal: compilers divide by
  a broadcast in that way or not as they see fit, and a code on the border
  between two would depend on it.
  """
  q = _LARGEST_CODE[bits]
  return jnp.clip(jnp.floor(x * (1 / scale) + 0.5), -q, q)


def dynamic_codes(
  x: jax.Array, *, axis: int, bits: int
) -> tuple[jax.Array, jax.Array]:
  """Codes of x and their scales, from the largest magnitudes along `axis`.

  Args:
    x: any shape, float.
    axis: as for `dynamic_scale`.
    bits: 4, 8 or 16.

  Returns:
    x's shape, held in its dtype, and the same with `axis` reduced to 1.
  """
  scale = dynamic_scale(x, axis=axis, bits=bits)
  return codes(x, scale, bits=bits), scale


def fake_quantize(x: jax.Array, scale: jax.Array, *, bits: int) -> jax.Array:
  """Rounds x to the grid of `bits` and back, straight-through in the gradient.

  Args:
    x: any shape, float.
    scale: positive, broadcastable to x.
    bits: 4, 8 or 16.

  Returns:
    codes(x) * scale. The derivative is 1 where the code does not saturate and
    0 where it does; the scale is a constant to it.
  """
  scale = lax.stop_gradient(scale)
  # Half a code beyond the largest still rounds to it.
  limit = (_LARGEST_CODE[bits] + 0.5) * scale
  inside = jnp.clip(x, -limit, limit)
  rounded = codes(x, scale, bits=bits) * scale
  return inside + lax.stop_gradient(rounded - inside)


def code_product(a: jax.Array, b: jax.Array, quant: QuantSpec) -> jax.Array:
  """Product of two matrices of codes, [..., M, K] x [..., K, N], in float32.

  Exact for 4 and 8 bits. For 16 bits the four exact limb products are combined
  with two float32 roundings.

  Args:
    a: codes of at most `quant.bits` bits, held in a float dtype.
    b: likewise.
    quant: which product; `integer` selects int8 operands and int32 sums.

  Returns:
    [..., M, N] float32, the same bits for either value of `integer`.
  """
  dot = _int8_dot if quant.integer else _float_dot
  out = limb_product(limbs(a, bits=quant.bits), limbs(b, bits=quant.bits), dot)
  if not quant.integer:
    return out
  # An integer cannot be NaN: rows and columns that hold one say so beside it.
  return out + _nan_of(a, -1) + _nan_of(b, -2)


def _nan_of(x: jax.Array, axis: int) -> jax.Array:
  """NaN for the rows (axis -1) or columns that hold one, 0 for the others."""
  found = jnp.isnan(x).any(axis=axis, keepdims=True)
  return jnp.where(found, jnp.nan, 0).astype(jnp.float32)


def limb_product(
  left: tuple[jax.Array, ...], right: tuple[jax.Array, ...], dot: Dot
) -> jax.Array:
  """The product of codes from the products of their 8-bit limbs, in float32.

  Args:
    left: limbs of the left codes, from `limbs`.
    right: limbs of the right codes, as many or not.
    dot: the exact product of two limbs.

  Returns:
    sum_ij 256^(i + j) dot(left_i, right_j), i and j counted from the low limbs.
  """
  sums: dict[int, jax.Array] = {}
  for i, x in enumerate(left):
    for j, y in enumerate(right):
      part = dot(x, y)
      # Limbs of equal weight are added while they are exact.
      sums[i + j] = sums[i + j] + part if i + j in sums else part
  total = sums[0].astype(jnp.float32)
  for weight in range(1, len(sums)):  # Horner, from the high limbs
    total = total * 256 + sums[weight].astype(jnp.float32)
  return total


def high_limb(n: jax.Array) -> jax.Array:
  """h of codes n = 256 h + l with l in [-128, 127] and |h| <= 127."""
  return jnp.floor((n + 128) / 256)


def limbs(n: jax.Array, *, bits: int) -> tuple[jax.Array, ...]:
  """8-bit parts of codes, the high one first: (h, l) with n = 256 h + l, or n.

  Args:
    n: codes of at most `bits` bits.
    bits: 4, 8 or 16.
  """
  if bits <= 8:
    return (n,)
  high = high_limb(n)
  return high, n - 256 * high


def _float_dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(
    a.astype(jnp.float32),
    b.astype(jnp.float32),
    precision=lax.Precision.HIGHEST,
  )


def _int8_dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(
    a.astype(jnp.int8), b.astype(jnp.int8), preferred_element_type=jnp.int32
  )
