"""The products of a spec inside a kernel: every rounding explicit.

Interpret mode multiplies float32 operands exactly where a matrix unit would
round them, so a body never leaves a rounding to the hardware: operands are
cast, split or turned into integer codes here, and what reaches the unit is
already in its format. Integer codes are those of `chunk_inverse.integer`.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax

from neumann_jax.chunk_inverse import integer, methods, tiles
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.tiles import Tiles

Unit = Literal["float32", "tf32", "bfloat16", "float16", "int8"]
# The matrix unit of a back end: operands of that type -> float32 or int32.
MatrixUnit = Callable[[jax.Array, jax.Array, Unit], jax.Array]


def kind_of(x: jax.Array) -> Unit:
  """The type of an array as the matrix unit knows it."""
  return cast(Unit, str(x.dtype))


def operand_kind(spec: InverseSpec) -> Unit:
  """The type of the operands that `spec` sends to the matrix unit.

  Codes of at most 8 bits that need not be integers are bfloat16, which holds
  them exactly; limbs of 16-bit codes are int8 either way, with the same bits.
  """
  if spec.quant is None:
    return spec.precision
  if spec.quant.integer or spec.quant.bits == 16:
    return "int8"
  return "bfloat16"


def products(
  spec: InverseSpec, unit: MatrixUnit, scale: jax.Array | None = None
) -> methods.Products:
  """The products of `spec` on a matrix unit.

  Args:
    spec: its `precision` and `quant` are read.
    unit: multiplies two tiles of the named type.
    scale: of every operand when the envelope fixes it, broadcastable to a
      tile; from `integer.fixed_scale`, outside the kernel.
  """
  kind = operand_kind(spec)
  if spec.quant is not None:
    return _quantised(spec.quant, kind, unit, scale)
  if kind in ("bfloat16", "float16"):
    return _cast(kind, unit)
  dot = _product_of(kind, unit)
  return methods.Products(dot, _product_of("float32", unit), dot, lambda x: x)


def _product_of(kind: Unit, unit: MatrixUnit) -> methods.Product:
  """The product of matrices whose operands are cast to one type."""

  def dot(x: Tiles, y: Tiles) -> Tiles:
    return tiles.multiply(
      _to(x, kind), _to(y, kind), lambda p, q: unit(p, q, kind)
    )

  return dot


def _to(x: Tiles, kind: Unit) -> Tiles:
  dtype = "float32" if kind == "tf32" else kind
  return tiles.each(x, lambda tile: tile.astype(dtype))


def _cast(kind: Unit, unit: MatrixUnit) -> methods.Products:
  """Operands cast to a 16-bit format.

  The residual of a refinement is taken at X in that format, so that only A
  needs splitting: two float16 or three bfloat16 parts hold its 22 to 24 bits.
  """
  # float16 keeps 11 bits a part, bfloat16 8: A has 24.
  parts = 2 if kind == "float16" else 3
  dot = _product_of(kind, unit)

  def residual(a: Tiles, x: Tiles) -> Tiles:
    total: Tiles = {}
    for _ in range(parts):
      # What is left of A after a part is exact in float32, and goes on.
      part = _to(_to(a, kind), "float32")
      total = tiles.add(total, dot(part, x))
      a = tiles.subtract(a, part)
    return total

  return methods.Products(
    dot, residual, dot, lambda x: _to(_to(x, kind), "float32")
  )


def _quantised(
  quant: integer.QuantSpec,
  kind: Unit,
  unit: MatrixUnit,
  scale: jax.Array | None,
) -> methods.Products:
  """Operands turned into integer codes; a residual scales dynamically."""
  code_dot = _product_of(kind, unit)

  def product(x: Tiles, y: Tiles, right: jax.Array | None) -> Tiles:
    return _quantised_product(
      x,
      y,
      _scales(x, -1, quant, scale),
      _scales(y, -2, quant, right),
      quant.bits,
      code_dot,
    )

  return methods.Products(
    operand=lambda x, y: product(x, y, scale),
    # A difference of nearly equal matrices: codes would leave nothing of it.
    residual=_product_of("float32", unit),
    correction=lambda x, y: product(x, y, None),
    rounded=lambda x: x,
  )


def _scales(
  x: Tiles, axis: int, quant: integer.QuantSpec, scale: jax.Array | None
) -> dict[int, jax.Array]:
  """The scale of every tile row (axis -1) or tile column (axis -2) of x.

  That is `scale` for all, or the dynamic one where it is None.
  """
  if scale is not None:
    return {at: scale for index in x for at in index}
  return {
    at: integer.scale_of(largest, bits=quant.bits)
    for at, largest in tiles.largest(x, axis).items()
  }


def _quantised_product(
  x: Tiles,
  y: Tiles,
  left: dict[int, jax.Array],
  right: dict[int, jax.Array],
  bits: int,
  dot: methods.Product,
) -> Tiles:
  """x y through the codes of both; `dot` multiplies 8-bit codes exactly."""
  n = {
    (i, k): integer.codes(tile, left[i], bits=bits)
    for (i, k), tile in x.items()
  }
  m = {
    (k, j): integer.codes(tile, right[j], bits=bits)
    for (k, j), tile in y.items()
  }
  total = _limb_product(n, m, bits, dot)
  return {(i, j): tile * (left[i] * right[j]) for (i, j), tile in total.items()}


def _limb_product(n: Tiles, m: Tiles, bits: int, dot: methods.Product) -> Tiles:
  """Products of codes: `integer.limb_product` for every tile of the result."""
  parts = [[dot(x, y) for y in _limbs(m, bits)] for x in _limbs(n, bits)]
  # Products of limbs are known as tiles: limbs go by their numbers.
  numbers: Any = tuple(range(len(parts)))
  return {
    at: integer.limb_product(numbers, numbers, lambda i, j: parts[i][j][at])  # noqa: B023
    for at in sorted(parts[0][0])
  }


def _limbs(x: Tiles, bits: int) -> list[Tiles]:
  """The tiles of each limb, the high one first."""
  split = {at: integer.limbs(tile, bits=bits) for at, tile in x.items()}
  count = 1 if bits <= 8 else 2
  return [{at: limbs[i] for at, limbs in split.items()} for i in range(count)]
