"""The products of a spec inside a kernel: every rounding explicit.

Interpret mode multiplies float32 operands exactly where a matrix unit would
round them, so a body never leaves a rounding to the hardware: operands are
cast, split or turned into integer codes here, and what reaches the unit is
already in its format. Integer codes are those of `neumann_jax.quantize`; with
`integer=False` they are multiplied as bfloat16, which holds 8-bit codes and
limbs exactly.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from neumann_jax import quantize
from neumann_jax.kernels import body, tiles
from neumann_jax.kernels.tiles import TileProduct, Tiles
from neumann_jax.spec import InverseSpec

Unit = Literal["float32", "tf32", "bfloat16", "float16", "int8"]
# The matrix unit of a back end: operands of that type -> float32 or int32.
MatrixUnit = Callable[[jax.Array, jax.Array, Unit], jax.Array]


def products(
  spec: InverseSpec, unit: MatrixUnit, scale: jax.Array | None = None
) -> body.Products:
  """The products of `spec` on a matrix unit.

  Args:
    spec: its `precision` and `quant` are read.
    unit: multiplies two tiles of the named type.
    scale: of every operand when the envelope fixes it, broadcastable to a
      tile; from `quantize.fixed_scale`, outside the kernel.
  """

  def full(x: Tiles, y: Tiles) -> Tiles:
    return tiles.multiply(x, y, _on(unit, "float32"))

  if spec.quant is None:
    if spec.precision in ("bfloat16", "float16"):
      return _cast(spec.precision, unit)
    plain = _on(unit, spec.precision)
    dot = lambda x, y: tiles.multiply(x, y, plain)  # noqa: E731
    return body.Products(dot, full, dot, lambda x: x)
  quant = spec.quant

  def quantised(x: Tiles, y: Tiles, right: jax.Array | None) -> Tiles:
    left, right = _scales(x, -1, quant, scale), _scales(y, -2, quant, right)
    return _quantised_product(x, y, left, right, quant, unit)

  return body.Products(
    operand=lambda x, y: quantised(x, y, scale),
    residual=full,
    correction=lambda x, y: quantised(x, y, None),
    rounded=lambda x: x,
  )


def _on(unit: MatrixUnit, kind: Unit) -> TileProduct:
  return lambda x, y: unit(x, y, kind)


def _cast(precision: Unit, unit: MatrixUnit) -> body.Products:
  """Operands cast to a 16-bit format.

  The residual of a refinement is taken at X in that format, so that only A
  needs splitting: two float16 or three bfloat16 parts hold its 22 to 24 bits.
  """
  dtype = jnp.dtype(precision)
  parts = 2 if precision == "float16" else 3

  def cast(x: Tiles) -> Tiles:
    return tiles.each(x, lambda tile: tile.astype(dtype))

  def dot(x: Tiles, y: Tiles) -> Tiles:
    return tiles.multiply(cast(x), cast(y), _on(unit, precision))

  def residual(a: Tiles, x: Tiles) -> Tiles:
    x, total = cast(x), {}
    for _ in range(parts):
      part = cast(a)
      total = tiles.add(total, tiles.multiply(part, x, _on(unit, precision)))
      a = tiles.subtract(a, _widen(part))
    return total

  return body.Products(dot, residual, dot, lambda x: _widen(cast(x)))


def _widen(x: Tiles) -> Tiles:
  return tiles.each(x, lambda tile: tile.astype(jnp.float32))


def _scales(
  x: Tiles, axis: int, quant: quantize.QuantSpec, scale: jax.Array | None
) -> dict[int, jax.Array]:
  """The scale of every tile row (axis -1) or tile column (axis -2) of x.

  That is `scale` for all, or the dynamic one where it is None.
  """
  if scale is not None:
    return {at: scale for index in x for at in index}
  return {
    at: quantize.scale_of(largest, bits=quant.bits)
    for at, largest in tiles.largest(x, axis).items()
  }


def _quantised_product(
  x: Tiles,
  y: Tiles,
  left: dict[int, jax.Array],
  right: dict[int, jax.Array],
  quant: quantize.QuantSpec,
  unit: MatrixUnit,
) -> Tiles:
  kind: Unit = "int8" if quant.integer else "bfloat16"

  def product(x: Tiles, y: Tiles) -> Tiles:
    return tiles.multiply(x, y, _on(unit, kind))

  n = {
    (i, k): quantize.codes(tile, left[i], bits=quant.bits)
    for (i, k), tile in x.items()
  }
  m = {
    (k, j): quantize.codes(tile, right[j], bits=quant.bits)
    for (k, j), tile in y.items()
  }
  if quant.bits <= 8:
    total = _widen(product(_narrow(n, kind), _narrow(m, kind)))
  else:
    total = _limb_product(n, m, kind, product)
  return {(i, j): tile * (left[i] * right[j]) for (i, j), tile in total.items()}


def _limb_product(
  n: Tiles, m: Tiles, kind: Unit, product: body.Product
) -> Tiles:
  """Products of 16-bit codes from four products of their 8-bit limbs."""
  n_high = tiles.each(n, quantize.high_limb)
  m_high = tiles.each(m, quantize.high_limb)
  n_low = _narrow(_low_limb(n, n_high), kind)
  m_low = _narrow(_low_limb(m, m_high), kind)
  n_high, m_high = _narrow(n_high, kind), _narrow(m_high, kind)
  high = _widen(product(n_high, m_high))
  middle = _widen(tiles.add(product(n_high, m_low), product(n_low, m_high)))
  low = _widen(product(n_low, m_low))
  return {
    at: (high[at] * 256 + middle[at]) * 256 + low[at] for at in sorted(high)
  }


def _low_limb(n: Tiles, high: Tiles) -> Tiles:
  return {at: n[at] - 256 * high[at] for at in n}


def _narrow(n: Tiles, kind: Unit) -> Tiles:
  return tiles.each(n, lambda tile: tile.astype(kind))
