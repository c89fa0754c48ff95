"""P = tril(q k^t 2^(G_i - G_j)) of every chunk, on a Hopper GPU.

For the kernels of wide keys, whose states leave a warpgroup no registers to
form it in. A program takes one chunk of a key head and all its value heads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  ROWS,
  accumulate,
  decay,
  launch,
  registers,
  shared,
)


def scores(
  q: jax.Array, k: jax.Array, gates: jax.Array, *, interpret: Any = None
) -> jax.Array:
  """P of every chunk.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64.
    k: [B, T, Hk, Dk] bfloat16.
    gates: G [B, Hv, T] float32, in base 2.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    [B, Hv, T, C] bfloat16, lower triangular.
  """
  b, length, hk, width = k.shape
  hv, dtype = gates.shape[1], k.dtype
  heads = hv // hk
  scratch = {
    "q_s": shared((CHUNK, width), dtype),
    "k_s": shared((CHUNK, width), dtype),
    "g_s": plgpu.SMEM((heads, CHUNK), jnp.float32),
    "r_s": plgpu.SMEM((heads, CHUNK), jnp.float32),
    "p_s": shared((2, CHUNK, CHUNK), dtype),
    "full": plgpu.Barrier(num_arrivals=2 + 2 * heads),
  }
  return launch(
    functools.partial(_program, heads),
    name="delta_rule_scores",
    out_type=jax.ShapeDtypeStruct((b, hv, length, CHUNK), dtype),
    scratch=scratch,
    grid=(b, length // CHUNK, hk),
    grid_names=("b", "n", "h"),
    warpgroups=1,
    interpret=interpret,
  )(q, k, gates)


def _program(
  heads, q_ref, k_ref, g_ref, p_ref, *, q_s, k_s, g_s, r_s, p_s, full
):
  row, key_head = lax.axis_index("b"), lax.axis_index("h")
  at = pl.ds(lax.axis_index("n") * CHUNK, CHUNK)
  first = key_head * heads
  copy = plgpu.copy_gmem_to_smem
  copy(q_ref.at[row, at, key_head], q_s, full)
  copy(k_ref.at[row, at, key_head], k_s, full)
  for r in range(heads):
    copy(g_ref.at[row, first + r, at], g_s.at[r], full)
    copy(g_ref.at[row, first + r, at], r_s.at[r], full)
  plgpu.barrier_wait(full)
  (gram,) = accumulate(((CHUNK, CHUNK), [(q_s, k_s.T)]))
  for r in range(heads):
    by_row = registers(r_s.at[r], layout=ROWS)
    by_col = registers(g_s.at[r], layout=COLS)
    weight = decay(by_row, by_col, strict=False)
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    p_s.at[r % 2][...] = (gram * weight).astype(p_s.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(p_s.at[r % 2], p_ref.at[row, first + r, at])
  plgpu.wait_smem_to_gmem(0)
