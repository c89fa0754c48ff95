"""The recurrence over the chunks of a sequence in one GPU kernel.

A program carries some columns of one value head's state from the first chunk
to the last and keeps them in registers; products take 16-bit operands. Triton
loads the next chunks while it multiplies.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering, target
from neumann_jax.chunk_inverse.kernels import gpu, products
from neumann_jax.delta_rule import precision

# Columns of the state a program and its warps: one program for each of an
# H100's multiprocessors at 32 value heads of 128. With keys of 256 on one H200,
# 16 and 64 columns, and 8 warps, took 1.2 to 1.7 times as long.
_COLUMNS, _WARPS = 32, 4
# Chunks that are loaded at once. Of 256 keys a chunk's q, k and w are 96 KB, of
# the 227 that programs of a Hopper multiprocessor share.
_STAGES = {16: 2, 32: 2, 64: 2, 128: 2, 256: 1}
# Below, multiprocessors share 64 to 164 KB, and a kernel that asks for more
# does not run. Keys of 256 were run on a card of 9.0 alone.
_LEAST_CARD = 9.0
# Offsets into an array are 32-bit numbers.
_LARGEST = 2**31


def refusal(
  chunk_size: int, dtype: jnp.dtype, k: jax.Array, v: jax.Array
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    chunk_size: C.
    dtype: that operands of products are rounded to.
    k: [B, T, Hk, Dk], only its shape is read.
    v: [B, T, Hv, Dv], likewise.
  """
  dk, dv = k.shape[-1], v.shape[-1]
  if not precision.is_narrow(dtype):
    return f"its scan over chunks multiplies bfloat16 and float16, not {dtype}"
  if chunk_size not in (16, 32, 64):
    return f"chunk size {chunk_size} is not one of 16, 32 and 64"
  if dk not in _STAGES or dv < 16 or dv & (dv - 1):
    return (
      f"Dk must be 16, 32, 64, 128 or 256 and Dv a power of two from 16 up, "
      f"got {dk} and {dv}"
    )
  card = _small_card() if dk == 256 and chunk_size == 64 else None
  if card is not None:
    return (
      "chunks of 64 with keys of 256 take 96 KB of shared memory, for a card "
      f"of {_LEAST_CARD} and up, got {card}"
    )
  tokens = v.shape[0] * (v.shape[1] + chunk_size)
  if tokens * v.shape[2] * max(dk, dv) >= _LARGEST:
    return "an array of 2^31 entries is too large for it"
  return None


def _small_card() -> str | None:
  """The compute capability where it is known to be below `_LEAST_CARD`."""
  card = target.cuda_capability()
  # Several, where a host has different ones; a name, where it has no number.
  known = re.findall(r"\b\d+\.\d+\b", card or "")
  return card if any(float(x) < _LEAST_CARD for x in known) else None


def recurrence(
  q: jax.Array,
  k: jax.Array,
  u: jax.Array,
  w: jax.Array,
  log_decay: jax.Array,
  scale: jax.Array,
  state: jax.Array,
  *,
  chunk_size: int,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Outputs of all tokens and the final state.

  Args:
    q: [B, T, Hk, Dk] bfloat16 or float16, T a multiple of the chunk size.
    k: [B, T, Hk, Dk] of q's type.
    u: [B, T, Hv, Dv] of q's type, from `wy_representation`.
    w: [B, T, Hv, Dk] of q's type, likewise.
    log_decay: [B, T, Hv] float32, finite, >= -104.
    scale: of the output, a scalar.
    state: [B, Hv, Dk, Dv] float32, before the first token.
    chunk_size: C.
    interpret: runs the body on the CPU instead.

  Returns:
    out [B, T, Hv, Dv] in u's type and the final state in float32.
  """
  b, t, hk, dk = k.shape
  hv, dv = u.shape[2:]
  width = min(_COLUMNS, dv)
  gates = log_decay.reshape(b, -1, chunk_size, hv)
  prefix = jnp.cumsum(gates, axis=2).reshape(b, t, hv) * math.log2(math.e)

  def tokens(size: int, index) -> pl.BlockSpec:
    return pl.BlockSpec((1, t, 1, size), index)

  keys = tokens(dk, lambda i, h, b: (b, 0, lax.div(h, hv // hk), 0))
  values = tokens(width, lambda i, h, b: (b, 0, h, i))
  columns = pl.BlockSpec((1, 1, dk, width), lambda i, h, b: (b, h, 0, i))
  vma = jax.typeof(k).manual_axis_type
  return lowering.pallas_call(
    functools.partial(_kernel, c=chunk_size, interpret=interpret),
    out_shape=[
      jax.ShapeDtypeStruct(u.shape, u.dtype, manual_axis_type=vma),
      jax.ShapeDtypeStruct(state.shape, state.dtype, manual_axis_type=vma),
    ],
    grid=(dv // width, hv, b),
    in_specs=[
      keys,
      keys,
      values,
      tokens(dk, lambda i, h, b: (b, 0, h, 0)),
      pl.BlockSpec((1, t, 1), lambda i, h, b: (b, 0, h)),
      pl.BlockSpec((1,), lambda i, h, b: (0,)),
      columns,
    ],
    out_specs=[values, columns],
    compiler_params=triton.CompilerParams(
      num_warps=_WARPS, num_stages=_STAGES[dk]
    ),
    interpret=interpret,
    name=f"neumann_state_{chunk_size}",
  )(q, k, u, w, prefix, jnp.reshape(scale, (1,)).astype(jnp.float32), state)


def _kernel(
  q_ref,
  k_ref,
  u_ref,
  w_ref,
  prefix_ref,
  scale_ref,
  state_ref,
  out_ref,
  final_ref,
  *,
  c,
  interpret,
):
  kind, dtype = products.kind_of(q_ref), q_ref.dtype
  scale = scale_ref[0]
  row = lax.broadcasted_iota(jnp.int32, (c, c), 0)
  col = lax.broadcasted_iota(jnp.int32, (c, c), 1)

  def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = x.astype(dtype), y.astype(dtype)
    return gpu.multiply(x, y, kind, interpret=interpret)

  def step(n: jax.Array, state: jax.Array) -> jax.Array:
    at = pl.ds(n * c, c)
    q, k = q_ref[0, at, 0, :], k_ref[0, at, 0, :]  # [C, Dk]
    prefix = prefix_ref[0, at, 0]  # [C]
    total = prefix_ref[0, n * c + c - 1, 0]
    new = u_ref[0, at, 0, :].astype(jnp.float32)
    new = new - dot(w_ref[0, at, 0, :], state)  # [C, columns]
    # Above the diagonal the exponent is positive: masked before it is taken.
    exponent = jnp.where(row >= col, prefix[:, None] - prefix[None, :], 0.0)
    weight = jnp.where(row >= col, jnp.exp2(exponent), 0.0)
    out = jnp.exp2(prefix)[:, None] * dot(q, state)
    out = out + dot(dot(q, k.T) * weight, new)
    out_ref[0, at, 0, :] = (scale * out).astype(out_ref.dtype)
    written = dot(k.T, jnp.exp2(total - prefix)[:, None] * new)
    return jnp.exp2(total) * state + written

  chunks = q_ref.shape[1] // c
  final_ref[0, 0] = lax.fori_loop(0, chunks, step, state_ref[0, 0])
