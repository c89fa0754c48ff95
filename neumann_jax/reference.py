"""The chunk inverse T = (I + A)^-1 by matrix products: the defining semantics.

Every method takes a strictly lower A [..., C, C] and a `Product`, the one
place where operands are rounded; everything between products is float32.
"""

import jax
import jax.numpy as jnp

from neumann_jax import arithmetic, masks
from neumann_jax.arithmetic import Product
from neumann_jax.spec import InverseSpec, resolve


def invert(
  a: jax.Array, spec: InverseSpec, bound: jax.Array | None = None
) -> jax.Array:
  """T = (I + A)^-1 as `spec` says; differentiable as computed.

  Rounded operands are straight-through: the derivative is that of the product
  of the rounded operands with respect to those operands.

  Args:
    a: [..., C, C] float32 or float64; only the strictly lower part is read.
    spec: which method.
    bound: [..., 1, 1] or scalar, the largest entry of the envelope; used by
      the envelope scale of `spec.quant`, 1 when None.

  Returns:
    [..., C, C] of a's dtype.
  """
  c = a.shape[-1]
  spec = resolve(spec, c)
  a = jnp.where(masks.strictly_lower(c), a, 0)
  eye = jnp.eye(c, dtype=a.dtype)
  if spec.method == "exact":
    return jax.scipy.linalg.solve_triangular(
      eye + a, jnp.broadcast_to(eye, a.shape), lower=True, unit_diagonal=True
    )
  dot = arithmetic.product(spec, bound)
  if spec.block is None:
    x = _METHODS[spec.method](a, spec, dot)
  else:
    level = spec.block.bit_length() - 1
    blocks = jnp.where(masks.diagonal_blocks(c, level), a, 0)
    x = _climb(_METHODS[spec.method](blocks, spec, dot), a, level, dot)
  return _refine(x, a, spec, bound) if spec.refine else x


def count_products(spec: InverseSpec, chunk_size: int) -> int:
  """How many C x C matrix products `spec` takes; 0 for `exact`."""
  count = 0

  def counting(x: jax.Array, y: jax.Array) -> jax.Array:
    nonlocal count
    count += 1
    return arithmetic.full_product(x, y)

  spec = resolve(spec, chunk_size)
  if spec.method == "exact":
    return 0
  a = jax.ShapeDtypeStruct((chunk_size, chunk_size), jnp.float32)
  start = _METHODS[spec.method]
  jax.eval_shape(lambda a: start(a, spec, counting), a)
  if spec.block is not None:
    count += 2 * (chunk_size // spec.block).bit_length() - 2
  return count + 2 * spec.refine


def _filled(spec: InverseSpec) -> tuple[int, int]:
  """Order and residual steps of a spec that `resolve` has filled in."""
  assert spec.order is not None and spec.residual_steps is not None
  return spec.order, spec.residual_steps


def _horner(
  a: jax.Array, order: int, dot: Product, *, mask_steps: bool
) -> jax.Array:
  """Neumann sum I - A + ... of the given order, cut to its band of exactness.

  With n sub-diagonals exact, I - A X is exact on n + 1; `mask_steps` cuts
  after every step, so that no intermediate exceeds the envelope.
  """
  c = a.shape[-1]
  eye = jnp.eye(c, dtype=a.dtype)
  x = eye - a
  for n in range(1, order + 1):
    x = eye - dot(a, x) if n > 1 else x
    if mask_steps or n == order:
      x = jnp.where(masks.band(c, n), x, 0)
  return x


def _residual(a: jax.Array, x: jax.Array, dot: Product) -> jax.Array:
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  return eye - x - dot(a, x)


def _banded(a: jax.Array, spec: InverseSpec, dot: Product) -> jax.Array:
  """T0 (I + R + ... + R^(S-1)), R = I - (I + A) T0 (arXiv 2606.06034).

  With the band mask T0 does not commute with A: the series must stand right
  of T0. Exact once S (N + 1) >= C.
  """
  order, steps = _filled(spec)
  start = _horner(a, order, dot, mask_steps=spec.mask_every_step)
  if steps == 1:
    return start
  if not spec.mask_every_step:
    return dot(start, _geometric(_residual(a, start, dot), steps, dot))
  c, x, width = a.shape[-1], start, order
  for _ in range(steps - 1):
    width += order + 1
    x = jnp.where(masks.band(c, width), x + dot(start, _residual(a, x, dot)), 0)
  return x


def _geometric(r: jax.Array, terms: int, dot: Product) -> jax.Array:
  """I + R + ... + R^(terms-1) in about 2 log2(terms) products; terms >= 2."""
  total, power = jnp.eye(r.shape[-1], dtype=r.dtype), r  # one term, R^1
  bits = bin(terms)[3:]
  for i, bit in enumerate(bits):
    last = i == len(bits) - 1
    total = total + (dot(total, power) if i else power)
    if bit == "1" or not last:
      power = dot(power, power)
    if bit == "1":
      total = total + power
      if not last:
        power = dot(power, r)
  return total


def _newton(a: jax.Array, spec: InverseSpec, dot: Product) -> jax.Array:
  """X <- X + X R cut to the doubled band, from the masked order-N start.

  R is zero on the band already exact; only its new part is kept, so that
  rounding of the old part cannot feed back.
  """
  order, steps = _filled(spec)
  c, width = a.shape[-1], order
  x = _horner(a, order, dot, mask_steps=True)
  for _ in range(steps):
    known = masks.band(c, width)
    width = 2 * width + 1
    new = masks.band(c, width) & ~known
    residual = jnp.where(new, _residual(a, x, dot), 0)
    x = x + jnp.where(new, dot(x, residual), 0)
  return x


def _ladder(a: jax.Array, spec: InverseSpec, dot: Product) -> jax.Array:
  del spec
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  x = eye - jnp.where(masks.joined_blocks(a.shape[-1], 0), a, 0)
  return _climb(x, a, 1, dot)


def _climb(x: jax.Array, a: jax.Array, level: int, dot: Product) -> jax.Array:
  """X <- X - X (A o M_l) X from `level` on, X inverse on blocks of 2**level."""
  c = a.shape[-1]
  while 1 << level < c:
    joined = masks.joined_blocks(c, level)
    x = x - dot(x, dot(jnp.where(joined, a, 0), x))
    level += 1
  return x


def _doubling(a: jax.Array, spec: InverseSpec, dot: Product) -> jax.Array:
  """(I + P)(I + P^2)(I + P^4)..., P = -A: exact on paper, explosive in use."""
  size = spec.block or a.shape[-1]
  power = -a
  x = jnp.eye(a.shape[-1], dtype=a.dtype) + power
  for _ in range(max(size.bit_length() - 2, 0)):
    power = dot(power, power)
    x = x + dot(x, power)
  return x


def _refine(
  x: jax.Array, a: jax.Array, spec: InverseSpec, bound: jax.Array | None
) -> jax.Array:
  """X + X R: R in full precision, the product X R in the spec's."""
  residual = _residual(a, x, arithmetic.full_product)
  return x + arithmetic.correction_product(spec, bound)(x, residual)


_METHODS = {
  "banded": _banded,
  "newton": _newton,
  "ladder": _ladder,
  "doubling": _doubling,
}
