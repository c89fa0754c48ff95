"""The norm of the residual stream on a TPU, and its gradient, in one pass each.

XLA puts this norm into the products that read it, which then write rows of
tokens in a layout that the next reader has to turn: a quarter of a decoder
layer's cycles on v6e, a fifth on 7x. With r = 1 / rms(x), n = r x,
s = 1 + weight:

  y = s n,  dn = s dy,  dx = r (dn - n mean(n dn)),  ds = sum dy n.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.layers.kernels.conv_tpu import shaped

WIDEST = 2**15  # columns, of which a block still fits into vector memory
_GROUP = 16  # tokens that a register of bfloat16 has, computed at a time
_SUMS = 8  # rows of a register of float32
_LANES = 512  # that are computed at a time, at most
# Of a block, at most. A larger one saves no bundles, and compiles longer.
_BYTES = 2**19


def forward(
  x: jax.Array,
  scale: jax.Array,
  *,
  eps: float,
  interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
  """x / rms(x) * scale.

  Args:
    x: [B, T, D] bfloat16 or float32, D a multiple of 128 up to WIDEST.
    scale: [D] float32.
    eps: added to the mean square.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    [B, T, D] of x's type.
  """
  grid, tokens, one = _blocks(x)
  return lowering.pallas_call(
    functools.partial(_kernel, eps=eps),
    out_shape=shaped(x, x.shape, x.dtype),
    grid=grid,
    in_specs=[tokens, one],
    out_specs=tokens,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel")
    ),
    interpret=interpret,
    name="neumann_rms_forward",
  )(x, scale[None])


def gradients(
  x: jax.Array,
  scale: jax.Array,
  cotangent: jax.Array,
  *,
  eps: float,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
  """Cotangents of x and of the scale, the last [D] in float32.

  Args:
    x: as of `forward`, like all others but one; T a multiple of `block(x)`.
    scale: likewise.
    cotangent: [B, T, D] of x's type.
    eps: likewise.
    interpret: likewise.
  """
  grid, tokens, one = _blocks(x)
  b, _, width = x.shape
  d_x, sums = lowering.pallas_call(
    functools.partial(_gradient_kernel, eps=eps),
    out_shape=[
      shaped(x, x.shape, x.dtype),
      shaped(x, (b, _SUMS, width), jnp.float32),
    ],
    grid=grid,
    in_specs=[tokens, one, tokens],
    out_specs=[tokens, pl.BlockSpec((1, _SUMS, width), lambda b, n: (b, 0, 0))],
    # Block by block in place of the cotangent, which nothing else reads.
    input_output_aliases={2: 0},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary")
    ),
    interpret=interpret,
    name="neumann_rms_backward",
  )(x, scale[None], cotangent)
  return d_x, jnp.sum(sums, axis=(0, 1))


def block(x: jax.Array) -> int:
  """Tokens of a grid step."""
  _, length, width = x.shape
  most = max(_BYTES // (width * x.dtype.itemsize), _GROUP)
  return min(most, length + _GROUP - 1) // _GROUP * _GROUP


def _blocks(x: jax.Array) -> tuple[tuple, pl.BlockSpec, pl.BlockSpec]:
  """The grid, the block of tokens, and that of the scale."""
  b, length, width = x.shape
  tokens = block(x)
  return (
    (b, pl.cdiv(length, tokens)),
    pl.BlockSpec((1, tokens, width), lambda b, n: (b, n, 0)),
    pl.BlockSpec((1, width), lambda b, n: (0, 0)),
  )


def _groups(ref) -> list[slice]:
  return [slice(at, at + _GROUP) for at in range(0, ref.shape[1], _GROUP)]


def _lanes(ref) -> tuple[list[slice], jax.Array]:
  """Lanes that are computed at a time, and zeros for a sum over them."""
  width = ref.shape[-1]
  size = math.gcd(width, _LANES)
  parts = [slice(at, at + size) for at in range(0, width, size)]
  return parts, jnp.zeros((_GROUP, size), jnp.float32)


def _over_rms(ref, rows: slice, eps: float) -> jax.Array:
  """1 / rms of some tokens of a block, [16, 1]."""
  lanes, square = _lanes(ref)
  for at in lanes:
    x = ref[0, rows, at].astype(jnp.float32)
    square = square + x * x
  mean = jnp.sum(square, axis=-1, keepdims=True) / ref.shape[-1]
  return lax.rsqrt(mean + eps)


def _kernel(x_ref, scale_ref, out_ref, *, eps: float) -> None:
  # A token is more registers than there are: each pass over it loads it again.
  for rows in _groups(x_ref):
    over = _over_rms(x_ref, rows, eps)
    for at in _lanes(x_ref)[0]:
      x = x_ref[0, rows, at].astype(jnp.float32)
      out_ref[0, rows, at] = (x * over * scale_ref[:, at]).astype(out_ref.dtype)


def _gradient_kernel(
  x_ref, scale_ref, cotangent_ref, d_x_ref, sums_ref, *, eps: float
) -> None:
  @pl.when(pl.program_id(1) == 0)
  def _enter():
    sums_ref[...] = jnp.zeros_like(sums_ref)

  for rows in _groups(x_ref):
    over = _over_rms(x_ref, rows, eps)
    lanes, along = _lanes(x_ref)
    for at in lanes:
      normed, d_out = _read(x_ref, cotangent_ref, rows, at, over)
      both = normed * d_out
      along = along + both * scale_ref[:, at]
      parts = both.reshape(-1, _SUMS, both.shape[-1])
      sums_ref[0, :, at] += jnp.sum(parts, axis=0)
    mean = jnp.sum(along, axis=-1, keepdims=True) / x_ref.shape[-1]
    for at in lanes:
      normed, d_out = _read(x_ref, cotangent_ref, rows, at, over)
      d_x = over * (d_out * scale_ref[:, at] - normed * mean)
      d_x_ref[0, rows, at] = d_x.astype(d_x_ref.dtype)


def _read(
  x_ref, cotangent_ref, rows: slice, at: slice, over: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """n and dy of some lanes of some tokens, in float32."""
  x, d_out = (
    ref[0, rows, at].astype(jnp.float32) for ref in (x_ref, cotangent_ref)
  )
  return x * over, d_out
