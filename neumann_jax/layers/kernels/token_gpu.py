"""One token of a Gated DeltaNet block on a GPU, between its projections.

A program takes a key head and its value heads through convolution, gates, unit
norms, the delta rule and the gated norm. Columns of the convolution and states
are read once and written in place.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering
from neumann_jax.layers import gates

# A state of 128 x 128 is 64 registers a thread at 8 warps. On one H200 4 warps
# take 1.5 times and 16 warps 1.2 times as long.
_WARPS, _STAGES = 8, 1
_LARGEST_STATE = 128 * 128
# A program holds the states of a key head's value heads at once: 128 of the 255
# registers of a thread for two of the largest. With four they would spill.
_LARGEST_GROUP = 2 * _LARGEST_STATE


def refusal(
  key_heads: int, dtype: jnp.dtype, conv: jax.Array, state: jax.Array
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    key_heads: Hk.
    dtype: of activations.
    conv: [W, 2 Hk Dk + Hv Dv], only its shape is read.
    state: [B, Hv, Dk, Dv], likewise.
  """
  hv, dk, dv = state.shape[1:]
  group = hv // key_heads
  if dtype.itemsize > 4:
    return f"activations must be of 32 bits or fewer, got {dtype}"
  sizes = {"W": conv.shape[0], "Dk": dk, "Dv": dv, "Hv / Hk": group}
  for name, size in sizes.items():
    if size & (size - 1):
      return f"{name} must be a power of two, got {size}"
  if min(dk, dv) < 16 or dk * dv > _LARGEST_STATE:
    return f"a state must be of 16 x 16 to 128 x 128, got {dk} x {dv}"
  if group * dk * dv > _LARGEST_GROUP:
    return (
      f"Hv / Hk states of {dk} x {dv} must have {_LARGEST_GROUP} entries or "
      f"fewer, got Hv / Hk = {group}"
    )
  if 2 * key_heads * dk % (group * dv):
    return "columns of values must start at a multiple of a head's values"
  return None


def step(
  qkv: jax.Array,
  z: jax.Array,
  b: jax.Array,
  a: jax.Array,
  live: jax.Array,
  conv: jax.Array,
  a_log: jax.Array,
  dt_bias: jax.Array,
  norm: jax.Array,
  history: jax.Array,
  state: jax.Array,
  *,
  key_heads: int,
  beta_max: float,
  eps: float,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gated outputs, the history and the state after the token.

  Args:
    qkv: [B, 2 Hk Dk + Hv Dv], raw columns of the token.
    z: [B, Hv Dv].
    b: [B, Hv].
    a: [B, Hv].
    live: [B] int32; a row of 0 keeps its history and state and gives zeros.
    conv: [W, 2 Hk Dk + Hv Dv].
    a_log: [Hv] float32.
    dt_bias: [Hv] float32.
    norm: [Dv].
    history: [B, 2 Hk Dk + Hv Dv, W].
    state: [B, Hv, Dk, Dv] float32.
    key_heads: Hk.
    beta_max: of the write strength.
    eps: of the gated norm.
    interpret: runs the body on the CPU instead.

  Returns:
    [B, Hv Dv], and the last two as they came.
  """
  rows, hv, dk, dv = state.shape
  group, taps = hv // key_heads, conv.shape[0]
  width = group * dv
  # Blocks of q, k and v among the columns.
  parts = [(dk, 0), (dk, key_heads), (width, 2 * key_heads * dk // width)]

  def columns(size: int, first: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, size), lambda h, b: (b, first + h))

  def filters(size: int, first: int) -> pl.BlockSpec:
    return pl.BlockSpec((taps, size), lambda h, b: (0, first + h))

  head = pl.BlockSpec((group,), lambda h, b: (h,))
  states = pl.BlockSpec((1, group, dk, dv), lambda h, b: (b, h, 0, 0))
  whole = pl.BlockSpec(history.shape, lambda h, b: (0, 0, 0))
  vma = jax.typeof(state).manual_axis_type
  return lowering.pallas_call(
    functools.partial(_kernel, beta_max=beta_max, eps=eps),
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=vma)
      for x in (z, history, state)
    ],
    grid=(key_heads, rows),
    in_specs=[
      *(columns(*part) for part in parts),
      columns(width, 0),
      *(columns(group, 0) for _ in range(2)),
      pl.BlockSpec((1,), lambda h, b: (b,)),
      *(filters(*part) for part in parts),
      head,
      head,
      pl.BlockSpec((dv,), lambda h, b: (0,)),
      whole,
      states,
    ],
    out_specs=[columns(width, 0), whole, states],
    input_output_aliases={13: 1, 14: 2},
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
    interpret=interpret,
    name="neumann_token",
  )(
    *(qkv, qkv, qkv, z, b, a, live),
    *(conv, conv, conv, a_log, dt_bias, norm),
    *(history, state),
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  z_ref,
  b_ref,
  a_ref,
  live_ref,
  q_conv_ref,
  k_conv_ref,
  v_conv_ref,
  a_log_ref,
  dt_ref,
  norm_ref,
  history_ref,
  state_ref,
  out_ref,
  new_ref,
  final_ref,
  *,
  beta_max,
  eps,
):
  dtype = z_ref.dtype
  h, row = pl.program_id(0), pl.program_id(1)
  group, dk, dv = state_ref.shape[1:]
  keys = pl.num_programs(0) * dk
  live = live_ref[0] != 0
  # The first of all loads: the convolution hides behind these.
  old = [state_ref[0, n] for n in range(group)]
  shifted = []

  def convolved(x, weight, first):
    """[D] of D columns; remembers their history after the token."""
    channels = pl.ds(first, x.shape[0])
    before = [history_ref[row, channels, n] for n in range(len(weight))]
    after = [*before[1:], x]
    y = sum(_wide(column) * _wide(tap) for column, tap in zip(after, weight))
    shifted.append((channels, before, after))
    return _wide((y * lax.logistic(y)).astype(dtype))

  def unit(x):
    return _wide((x * lax.rsqrt(jnp.sum(x * x) + 1e-6)).astype(dtype))

  def taps(ref, at=slice(None)):
    return [ref[n, at] for n in range(ref.shape[0])]

  k = unit(convolved(k_ref[0, :], taps(k_conv_ref), keys + h * dk))
  q = unit(convolved(q_ref[0, :], taps(q_conv_ref), h * dk)) * dk**-0.5
  for n in range(group):
    at = pl.ds(n * dv, dv)
    first = 2 * keys + (h * group + n) * dv
    v = convolved(v_ref[0, at], taps(v_conv_ref, at), first)
    beta = beta_max * lax.logistic(_wide(b_ref[0, n]))
    a = _wide(a_ref[0, n]) + dt_ref[n]
    state = jnp.exp(log_decay(a_log_ref[n], a)) * old[n]
    delta = beta * (v - jnp.sum(k[:, None] * state, axis=0))
    state = state + k[:, None] * delta[None, :]
    out = _wide(jnp.sum(q[:, None] * state, axis=0).astype(dtype))
    final_ref[0, n] = jnp.where(live, state, old[n])
    normed = (out * lax.rsqrt(jnp.sum(out * out) / dv + eps)).astype(dtype)
    scaled = _wide(norm_ref[:].astype(dtype) * normed)
    z = _wide(z_ref[0, at])
    y = scaled * (z * lax.logistic(z))
    out_ref[0, at] = jnp.where(live, y, 0.0).astype(dtype)
  # At the end, when all warps have read: several hold the same column.
  for channels, before, after in shifted:
    for n, (x, y) in enumerate(zip(before, after)):
      new_ref[row, channels, n] = jnp.where(live, y, x)


def _wide(x):
  return x.astype(jnp.float32)


def log_decay(a_log: Any, a: Any) -> Any:
  """`gates.log_decay` in operations that Triton has, of scalars or arrays."""
  near = jnp.maximum(a, gates.LINEAR)
  softplus = jnp.maximum(near, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(near)))
  log_step = jnp.where(a < gates.LINEAR, a, jnp.log(softplus))
  return -jnp.exp(jnp.minimum(a_log + log_step, math.log(gates.FORGOTTEN)))
