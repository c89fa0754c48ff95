"""Columns of heads on a TPU: short convolution, SiLU and unit norm, one pass.

Left to XLA these are eight passes over the columns in two layouts, because it
takes sums over a head's lanes by other tiles than the convolution's. Here a
head is the 128 lanes of a register: columns are read once and written once, as
the rule's kernels read them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.layers.norms import UNIT_EPS

LANES = 128
# Rows of the tokens before a block that it reads: a whole register of bfloat16.
BEFORE = 16
# Of a float32 register, which holds what the backward kernel keeps of the
# tokens after a block: a convolution has no more taps.
ROWS = 8
_TOKENS, _HEADS = 256, 8  # of a grid step, at most


def block(length: int, first: int, heads: int) -> tuple[int, int]:
  """Tokens and heads of a grid step.

  Args:
    length: T.
    first: head of the columns that is the first to be read.
    heads: how many are.
  """
  tokens = min(_TOKENS, pl.cdiv(length, BEFORE) * BEFORE)
  both = math.gcd(first, heads)
  return tokens, max(n for n in range(1, _HEADS + 1) if both % n == 0)


def forward(
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  since: jax.Array | None,
  *,
  first: int,
  heads: int,
  normed: bool,
  interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
  """Convolved columns of some heads, through SiLU, to unit norm or not.

  Args:
    x: [B, T, D] bfloat16 or float32, of which heads are 128 columns each.
    taps: [W, D] float32.
    history: [B, BEFORE, D] of x's type, columns before x.
    since: [B, T] int32, tokens of its document before each, or None: one.
    first: head that is the first to be read.
    heads: how many are.
    normed: whether they are divided by their norms.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    [B, T, heads 128] of x's type.
  """
  b, length, _ = x.shape
  tokens, count = block(length, first, heads)
  specs, arrays = operands(x, taps, history, since, first=first, heads=heads)
  return lowering.pallas_call(
    functools.partial(_kernel, normed=normed),
    out_shape=shaped(x, (b, length, heads * LANES), x.dtype),
    grid=(b, heads // count, pl.cdiv(length, tokens)),
    in_specs=specs,
    out_specs=pl.BlockSpec(
      (1, tokens, count * LANES), lambda b, h, n: (b, n, h)
    ),
    scratch_shapes=[pltpu.VMEM((count, BEFORE + tokens, LANES), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel")
    ),
    interpret=interpret,
    name=f"neumann_conv_{first}_forward",
  )(*arrays)


def shaped(x: jax.Array, shape, dtype) -> jax.ShapeDtypeStruct:
  """Of a kernel's result, which varies over mesh axes as x does."""
  kind = jax.typeof(x).manual_axis_type
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def operands(
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  since: jax.Array | None,
  *,
  first: int,
  heads: int,
  back: bool = False,
) -> tuple[list[pl.BlockSpec], list[jax.Array]]:
  """What a grid step reads of x, the tokens before it, the history and taps.

  Args:
    x: as of `forward`, like all others but one.
    taps: likewise.
    history: likewise.
    since: likewise.
    first: likewise.
    heads: likewise.
    back: whether steps go from the end of a row to its beginning.
  """
  tokens, count = block(x.shape[1], first, heads)
  last = pl.cdiv(x.shape[1], tokens) - 1
  place, width = first // count, count * LANES

  def at(n):
    return last - n if back else n

  def before(b, h, n):
    # Of the first step it is not read: the history stands there.
    return b, jnp.maximum(at(n) * (tokens // BEFORE) - 1, 0), place + h

  specs = [
    pl.BlockSpec((1, tokens, width), lambda b, h, n: (b, at(n), place + h)),
    pl.BlockSpec((1, BEFORE, width), before),
    pl.BlockSpec((1, BEFORE, width), lambda b, h, n: (b, 0, place + h)),
    pl.BlockSpec((len(taps), width), lambda b, h, n: (0, place + h)),
  ]
  arrays = [x, x, history, taps]
  if since is not None:
    specs.append(pl.BlockSpec((1, tokens, 1), lambda b, h, n: (b, at(n), 0)))
    arrays.append(since[..., None])
  return specs, arrays


def _kernel(x_ref, before_ref, history_ref, taps_ref, *refs, normed) -> None:
  *since, out_ref, columns_ref = refs
  first = pl.program_id(2) == 0
  for head in range(columns_ref.shape[0]):
    at = slice(head * LANES, (head + 1) * LANES)
    columns = columns_ref.at[head]
    fill(columns, x_ref, before_ref, history_ref, at, first)
    y = convolved(columns, taps_ref, [ref[0] for ref in since], at)
    # Rounded where XLA's form rounds.
    y = (y * jax.nn.sigmoid(y)).astype(out_ref.dtype)
    if normed:
      wide = y.astype(jnp.float32)
      square = jnp.sum(wide * wide, axis=-1, keepdims=True)
      y = (wide * lax.rsqrt(square + UNIT_EPS)).astype(out_ref.dtype)
    out_ref[0, :, at] = y


def fill(columns, x_ref, before_ref, history_ref, at: slice, first) -> None:
  """Columns of a head in float32, those before the block above its own."""
  before, start = (
    ref[0, :, at].astype(jnp.float32) for ref in (before_ref, history_ref)
  )
  columns[:BEFORE] = jnp.where(first, start, before)
  columns[BEFORE:] = x_ref[0, :, at].astype(jnp.float32)


def convolved(columns, taps_ref, since: list[jax.Array], at: slice):
  """The convolution of a block of a head, [tokens, 128] float32."""
  width, tokens = len(taps_ref), columns.shape[0] - BEFORE
  y = jnp.zeros((tokens, LANES), jnp.float32)
  for tap in range(width):
    # A load may begin at any row, where moving rows of registers costs each.
    column = shifted(columns, width - 1 - tap, since)
    y = y + taps_ref[tap : tap + 1, at] * column
  return y


def shifted(columns, back: int, since: list[jax.Array]) -> jax.Array:
  """Columns so many tokens back, 0 where those are of another document."""
  tokens = columns.shape[0] - BEFORE
  column = columns[pl.ds(BEFORE - back, tokens)]
  # By selection, because 0 times a NaN of another document is NaN.
  for count in since if back else []:
    column = jnp.where(count >= back, column, 0.0)
  return column
