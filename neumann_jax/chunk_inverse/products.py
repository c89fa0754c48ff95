"""The matrix product of a spec: operands rounded first, sums in float32.

For XLA; `kernels.products` rounds the same way inside a kernel. Gradients are
straight-through: those of the product of the rounded operands.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.chunk_inverse import integer
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec

Product = Callable[[jax.Array, jax.Array], jax.Array]
Format = str | integer.QuantSpec


def full_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """A b with float32 operands at highest precision (float64 stays float64)."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def product(spec: InverseSpec, bound: jax.Array | None = None) -> Product:
  """The product of two matrices in the arithmetic of `spec`.

  Args:
    spec: its `precision` and `quant` are read.
    bound: scalar or [..., 1, 1], the largest magnitude that the envelope scale
      represents; 1 when None.

  Returns:
    (a [..., M, K], b [..., K, N]) -> [..., M, N] of a's dtype.
  """
  if spec.quant is None:
    return rounded_product(spec.precision)
  quant = spec.quant

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    left = _scale(a, -1, quant, bound)
    right = _scale(b, -2, quant, bound)
    return _product(quant, a, b, left, right)

  return dot


def rounded_product(precision: str) -> Product:
  """The product of operands rounded to a floating-point format."""
  if precision == "float32":
    return full_product
  # As operands with a scale of 1 they share the derivative of codes.
  one = jnp.ones((), jnp.float32)  # formats with an exponent need no scale
  return lambda a, b: _product(precision, a, b, one, one)


def correction_product(
  spec: InverseSpec, bound: jax.Array | None = None
) -> Product:
  """Like `product`, but a quantised right operand always scales dynamically.

  For a residual, which is far below the envelope.
  """
  if spec.quant is None:
    return product(spec, bound)
  quant = spec.quant

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    left = _scale(a, -1, quant, bound)
    right = integer.dynamic_scale(b, axis=-2, bits=quant.bits)
    return _product(quant, a, b, left, right)

  return dot


def _scale(
  x: jax.Array,
  axis: int,
  quant: integer.QuantSpec,
  bound: jax.Array | None,
) -> jax.Array:
  if quant.scale == "dynamic":
    return integer.dynamic_scale(x, axis=axis, bits=quant.bits)
  return integer.fixed_scale(bound, bits=quant.bits).astype(x.dtype)


def _operand(x: jax.Array, precision: str) -> jax.Array:
  """X in the operand format; tf32 is float32 with 10 bits of mantissa."""
  if precision == "tf32":
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)
  return x.astype(precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(
  form: Format,
  a: jax.Array,
  b: jax.Array,
  left: jax.Array,
  right: jax.Array,
) -> jax.Array:
  if isinstance(form, integer.QuantSpec):
    n = integer.codes(a, left, bits=form.bits)
    m = integer.codes(b, right, bits=form.bits)
    return integer.code_product(n, m, form) * (left * right)
  # HIGHEST also for rounded operands, whose products it leaves exact: the
  # default would let the platform round tf32 ones, held in float32, once more.
  return jnp.matmul(
    _operand(a, form),
    _operand(b, form),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=a.dtype,
  )


def _straight_through(
  form: Format, x: jax.Array, scale: jax.Array
) -> jax.Array:
  if isinstance(form, integer.QuantSpec):
    return integer.fake_quantize(x, scale, bits=form.bits)
  return x + lax.stop_gradient(_operand(x, form).astype(x.dtype) - x)


@_product.defjvp
def _product_jvp(form, primals, tangents):
  a, b, left, right = primals

  def surrogate(a: jax.Array, b: jax.Array) -> jax.Array:
    return full_product(
      _straight_through(form, a, left), _straight_through(form, b, right)
    )

  _, tangent = jax.jvp(surrogate, (a, b), tuple(tangents[:2]))
  return _product(form, *primals), tangent
