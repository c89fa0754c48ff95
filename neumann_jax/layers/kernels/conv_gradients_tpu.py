"""The gradient of `conv_tpu`: one pass from the end of a row to its beginning.

With y the convolution, s = silu(y), r = 1 / |s| and n = r s:

  ds = r (dn - n <n, dn>),  dy = ds sigmoid(y) (1 + y (1 - sigmoid(y))),
  dx_t = sum_w kernel_w dy_(t + W - 1 - w),
  dkernel_w = sum_t dy_t x_(t - W + 1 + w).

y is computed again; what a block needs of dy of the tokens after it stays in
vector memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.layers.kernels import conv_tpu
from neumann_jax.layers.kernels.conv_tpu import BEFORE, LANES, ROWS
from neumann_jax.layers.norms import UNIT_EPS


def gradients(
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  since: jax.Array | None,
  cotangent: jax.Array,
  into: jax.Array | None,
  *,
  first: int,
  heads: int,
  normed: bool,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
  """Cotangents of x and of the taps, of one call of `conv_tpu.forward`.

  Args:
    x: as of `conv_tpu.forward`, like all others but two; T a multiple of the
      tokens of a block.
    taps: likewise.
    history: likewise.
    since: likewise.
    cotangent: [B, T, heads 128] of x's type.
    into: [B, T, D], cotangents of x whose other heads are there already; None:
      those of other heads are not written.
    first: likewise.
    heads: likewise.
    normed: likewise.
    interpret: likewise.

  Returns:
    [B, T, D] of x's type, of which the heads' columns are new, and
    [W, heads 128] float32.
  """
  b, length, _ = x.shape
  tokens, count = conv_tpu.block(length, first, heads)
  width, place = len(taps), first // count
  last = length // tokens - 1
  specs, arrays = conv_tpu.operands(
    x, taps, history, since, first=first, heads=heads, back=True
  )
  arrays.append(cotangent)
  block = (1, tokens, count * LANES)
  specs.append(pl.BlockSpec(block, lambda b, h, n: (b, last - n, h)))
  if into is not None:
    arrays.append(into)
    specs.append(pl.BlockSpec(memory_space=pl.ANY))
  sums = (b, width * ROWS, heads * LANES)
  scratch = [
    pltpu.VMEM((count, BEFORE + tokens, LANES), jnp.float32),
    pltpu.VMEM((count, tokens + ROWS, LANES), jnp.float32),
  ]
  if since is not None:
    scratch.append(pltpu.VMEM((tokens + ROWS, LANES), jnp.int32))
  d_x, d_taps = lowering.pallas_call(
    functools.partial(
      _kernel,
      normed=normed,
      documents=since is not None,
      unread=into is not None,
    ),
    out_shape=[
      conv_tpu.shaped(x, x.shape, x.dtype),
      conv_tpu.shaped(x, sums, jnp.float32),
    ],
    grid=(b, heads // count, last + 1),
    in_specs=specs,
    out_specs=[
      pl.BlockSpec(block, lambda b, h, n: (b, last - n, place + h)),
      pl.BlockSpec((1, *sums[1:2], block[2]), lambda b, h, n: (b, 0, h)),
    ],
    input_output_aliases={} if into is None else {len(arrays) - 1: 0},
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    interpret=interpret,
    name=f"neumann_conv_{first}_backward",
  )(*arrays)
  parts = d_taps.reshape(b, width, ROWS, heads * LANES)
  return d_x, jnp.sum(parts, axis=(0, 2))


def _kernel(
  x_ref, before_ref, history_ref, taps_ref, *refs, normed, documents, unread
) -> None:
  since_refs, cotangent_ref = refs[:documents], refs[documents]
  d_x_ref, d_taps_ref, columns_ref, behind_ref, *since_behind = refs[
    documents + 1 + unread :
  ]
  tokens = x_ref.shape[1]
  step, steps = pl.program_id(2), pl.num_programs(2)
  since = [ref[0] for ref in since_refs]

  @pl.when(step == 0)
  def _enter():
    d_taps_ref[...] = jnp.zeros_like(d_taps_ref)
    behind_ref[:, :ROWS] = jnp.zeros_like(behind_ref[:, :ROWS])
    for ref in since_behind:
      ref[:ROWS] = jnp.zeros_like(ref[:ROWS])

  for ref, count in zip(since_behind, since):
    ref[tokens:] = ref[:ROWS]
    ref[:tokens] = jnp.broadcast_to(count, (tokens, LANES))
  for head in range(columns_ref.shape[0]):
    at = slice(head * LANES, (head + 1) * LANES)
    columns, behind = columns_ref.at[head], behind_ref.at[head]
    first = step == steps - 1
    conv_tpu.fill(columns, x_ref, before_ref, history_ref, at, first)
    y = conv_tpu.convolved(columns, taps_ref, since, at)
    d_out = cotangent_ref[0, :, at].astype(jnp.float32)
    dtype = d_x_ref.dtype
    d_y = _through_activation(y, d_out, dtype, normed)
    behind[tokens:] = behind[:ROWS]
    behind[:tokens] = d_y
    d_x = jnp.zeros((tokens, LANES), jnp.float32)
    for tap in range(len(taps_ref)):
      back = len(taps_ref) - 1 - tap
      column = conv_tpu.shifted(columns, back, since)
      rows = (d_y * column).reshape(-1, ROWS, LANES)
      d_taps_ref[0, tap * ROWS : (tap + 1) * ROWS, at] += jnp.sum(rows, 0)
      later = behind[pl.ds(back, tokens)]
      for ref in since_behind if back else []:
        later = jnp.where(ref[pl.ds(back, tokens)] >= back, later, 0.0)
      d_x = d_x + taps_ref[tap : tap + 1, at] * later
    d_x_ref[0, :, at] = d_x.astype(dtype)


def _through_activation(y, d_out, dtype, normed: bool) -> jax.Array:
  """From the cotangent of a block of a head to that of its convolution."""
  gate = jax.nn.sigmoid(y)
  if normed:
    wide = (y * gate).astype(dtype).astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    scale = lax.rsqrt(square + UNIT_EPS)
    unit = wide * scale
    along = jnp.sum(unit * d_out, axis=-1, keepdims=True)
    d_out = scale * (d_out - unit * along)
  return d_out * gate * (1.0 + y * (1.0 - gate))
