"""The inverse of I + A on tiles: every method, for every back end.

The one definition of the methods. `chunk_inverse.xla` runs it on one tile with
differentiable products, the kernels on their own tiles and formats. Names,
fields and defaults of a method, the paper's N and S too, are in `inverse_spec`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from neumann_jax.chunk_inverse import masks, tiles
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.tiles import Tiles

Product = Callable[[Tiles, Tiles], Tiles]

# Of the kernels: 16 is the narrowest tile that a matrix unit takes, and beyond
# 128 nothing was compiled.
CHUNK_SIZES = (16, 32, 64, 128)


class Products(NamedTuple):
  """The products of a method.

  Attributes:
    operand: operands in the format of the spec, sums in float32.
    residual: A X for the residual of a refinement, in float32.
    correction: X R of a refinement: like `operand`, but a quantised R scales
      dynamically, being far below the envelope.
    rounded: what a refinement rounds X to before it takes the residual, so
      that `residual` may count on X being in the format of an operand.
  """

  operand: Product
  residual: Product
  correction: Product
  rounded: Callable[[Tiles], Tiles]


def refusal(spec: InverseSpec, chunk_size: int) -> str | None:
  """Why no kernel runs `spec`, as a clause; None where a kernel may."""
  if spec.method in ("exact", "unmasked", "doubling"):
    return f'method "{spec.method}" has no kernel'
  if chunk_size not in CHUNK_SIZES:
    return f"chunk size {chunk_size} is not one of 16, 32, 64 and 128"
  return None


def invert(
  a: Tiles, spec: InverseSpec, products: Products, chunk_size: int
) -> Tiles:
  """T = (I + A)^-1 as a resolved `spec` says, for any method but `exact`.

  Args:
    a: tiles of A; only its strictly lower part is read.
    spec: from `neumann_jax.chunk_inverse.inverse_spec.resolve`.
    products: how to multiply.
    chunk_size: C.

  Returns:
    The lower tiles of T.
  """
  # What stands on or above the diagonal may be garbage, NaN included.
  eye = tiles.identity(a)
  a = tiles.keep(a, lambda row, col: row > col)
  dot, c = products.operand, chunk_size
  if spec.block is None:
    x = _METHODS[spec.method](a, eye, spec, dot, c)
  else:
    level = spec.block.bit_length() - 1
    blocks = tiles.keep(a, functools.partial(masks.same_block, level=level))
    x = _METHODS[spec.method](blocks, eye, spec, dot, spec.block)
    x = _climb(x, a, level, dot, c)
  return _refine(x, a, eye, products) if spec.refine else x


def _filled(spec: InverseSpec) -> tuple[int, int]:
  """Order and residual steps of a spec that `resolve` has filled in."""
  assert spec.order is not None and spec.residual_steps is not None
  return spec.order, spec.residual_steps


def _band(x: Tiles, width: int, above: int = -1) -> Tiles:
  """The sub-diagonals above + 1 to `width` of x, the diagonal being 0."""
  return tiles.keep(
    x, lambda row, col: masks.in_band(row, col, width) & (row - col > above)
  )


def _horner(
  a: Tiles, eye: Tiles, order: int, dot: Product, *, mask_steps: bool
) -> Tiles:
  """Neumann sum I - A + ... of the given order.

  With n sub-diagonals exact, I - A X is exact on n + 1; `mask_steps` cuts to
  them after every step, so that no intermediate exceeds the envelope.
  """
  x = tiles.subtract(eye, a)
  for n in range(1, order + 1):
    x = tiles.subtract(eye, dot(a, x)) if n > 1 else x
    if mask_steps:
      x = _band(x, n)
  return x


def _residual(a: Tiles, x: Tiles, eye: Tiles, dot: Product) -> Tiles:
  return tiles.subtract(tiles.subtract(eye, x), dot(a, x))


def _banded(
  a: Tiles, eye: Tiles, spec: InverseSpec, dot: Product, c: int
) -> Tiles:
  """T0 (I + R + ... + R^(S-1)), R = I - (I + A) T0 (arXiv 2606.06034).

  With the band mask T0 does not commute with A: the series must stand right
  of T0. Exact once S (N + 1) >= C.
  """
  order, steps = _filled(spec)
  start = _horner(a, eye, order, dot, mask_steps=spec.mask_every_step)
  if not spec.mask_every_step:
    return _corrected(a, _band(start, order), eye, steps, dot)
  x, width = start, order
  for _ in range(steps - 1):
    width = min(width + order + 1, c - 1)
    x = _band(tiles.add(x, dot(start, _residual(a, x, eye, dot))), width)
  return x


def _unmasked(
  a: Tiles, eye: Tiles, spec: InverseSpec, dot: Product, c: int
) -> Tiles:
  """`banded` without the mask: the Neumann sum of order S (N + 1) - 1."""
  order, steps = _filled(spec)
  start = _horner(a, eye, order, dot, mask_steps=False)
  return _corrected(a, start, eye, steps, dot)


def _corrected(
  a: Tiles, start: Tiles, eye: Tiles, terms: int, dot: Product
) -> Tiles:
  """T0 (I + R + ... + R^(terms-1)), R = I - (I + A) T0."""
  if terms == 1:
    return start
  residual = _residual(a, start, eye, dot)
  return dot(start, _geometric(residual, terms, dot, eye))


def _geometric(r: Tiles, terms: int, dot: Product, eye: Tiles) -> Tiles:
  """I + R + ... + R^(terms-1) in about 2 log2(terms) products; terms >= 2."""
  # Horner's scheme over the binary digits of `terms`: a digit doubles the
  # number of terms, and a 1 adds one more.
  total, power = eye, r  # one term, R^1
  bits = bin(terms)[3:]
  for i, bit in enumerate(bits):
    last = i == len(bits) - 1
    total = tiles.add(total, dot(total, power) if i else power)
    if bit == "1" or not last:
      power = dot(power, power)
    if bit == "1":
      total = tiles.add(total, power)
      if not last:
        power = dot(power, r)
  return total


def _newton(
  a: Tiles, eye: Tiles, spec: InverseSpec, dot: Product, c: int
) -> Tiles:
  """X <- X + X R cut to the doubled band, from the masked order-N start.

  R is zero on the band already exact; only its new part is kept, so that
  rounding of the old part cannot feed back.
  """
  order, steps = _filled(spec)
  width = order
  x = _horner(a, eye, order, dot, mask_steps=True)
  for _ in range(steps):
    known, width = width, 2 * width + 1
    residual = _band(_residual(a, x, eye, dot), width, known)
    x = tiles.add(x, _band(dot(x, residual), width, known))
  return x


def _ladder(
  a: Tiles, eye: Tiles, spec: InverseSpec, dot: Product, c: int
) -> Tiles:
  # Blocks of 2 have the inverse I - A: no product.
  pairs = tiles.keep(a, functools.partial(masks.joined, level=0))
  return _climb(tiles.subtract(eye, pairs), a, 1, dot, c)


def _climb(x: Tiles, a: Tiles, level: int, dot: Product, c: int) -> Tiles:
  """X <- X - X (A o M_l) X from `level` on, X inverse on blocks of 2**level.

  The sign goes to A, so that a product is added to what a matrix unit
  accumulates in.
  """
  # Blocks already joined are exact and stay as they are: the update has entries
  # in the newly joined ones alone, so that rounding never feeds back.
  minus = tiles.each(a, lambda tile: -tile)
  while 1 << level < c:
    joined = tiles.keep(minus, functools.partial(masks.joined, level=level))
    x = tiles.add(x, dot(x, dot(joined, x)))
    level += 1
  return x


def _doubling(
  a: Tiles, eye: Tiles, spec: InverseSpec, dot: Product, c: int
) -> Tiles:
  """(I + P)(I + P^2)(I + P^4)..., P = -A: exact on paper, explosive in use."""
  power = tiles.each(a, lambda tile: -tile)
  x = tiles.add(eye, power)
  for _ in range(max(c.bit_length() - 2, 0)):
    power = dot(power, power)
    x = tiles.add(x, dot(x, power))
  return x


def _refine(x: Tiles, a: Tiles, eye: Tiles, products: Products) -> Tiles:
  """X + X R: R in full precision, the product X R in the spec's."""
  # First: the residual belongs to the X that is corrected.
  x = products.rounded(x)
  residual = _residual(a, x, eye, products.residual)
  return tiles.add(x, products.correction(x, residual))


_METHODS = {
  "banded": _banded,
  "unmasked": _unmasked,
  "newton": _newton,
  "ladder": _ladder,
  "doubling": _doubling,
}
