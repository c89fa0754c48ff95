"""What a chunk's gradients are once its states are known, on a Hopper GPU.

In the notation of `scan` and `reverse`, with S before the chunk
and dS behind it, and three weights between tokens,

  W = tril(scale dO X^t 2^(G_i - G_j)),  M = -strict(dv X^t 2^(G_i - G_j)),
  dq       = 2^G scale dO S^t + W k,
  dk_write = 2^(G_C - G) scale X dS^t + W^t q + M^t k,
  dk_read  = -2^G dv S^t + M k.

A gate weighs what its token reads by 2^G and what it writes by 2^-G, so that
dG = q dq + k (dk_read - dk_write), summed over Dk, and the last token has the
product of the state that leaves the chunk with its cotangent besides; nothing
of T or of a product of keys is needed. The same rounded W and M stand in what
is read and what is written, so that their errors cancel in dG as they should.
With Y = X / beta, dbeta = dv Y / beta, summed over Dv.

A program takes the value heads of one key head, one after another, for a few
chunks, so that dq and dk are summed in registers: of 128 columns of keys, and
wider keys are as many programs, each with its part of dG and W and M of its
own. Three warpgroups own dq, dk_write and dk_read, see `gradient_parts`; a
fourth loads, 64 columns of values at a time.
"""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper import gradient_parts
from neumann_jax.delta_rule.hopper.gradient_program import Program, References
from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  HALF,
  WIDTH,
  launch,
  parted,
  shared,
)

# Chunks a program, at most: loads of the next chunk hide behind this one.
_CHUNKS = 8


def gradients(
  q: jax.Array,
  k: jax.Array,
  y: jax.Array,
  do: jax.Array,
  dv: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  h: jax.Array,
  dh: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, ...]:
  """Gradients of all chunks at once, given the states around them.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64, Dk and Dv of 128.
    k: [B, T, Hk, Dk] bfloat16.
    y: X / beta [B, T, Hv, Dv] bfloat16, from `scan.states`.
    do: [B, T, Hv, Dv] bfloat16, cotangent of the outputs.
    dv: [B, T, Hv, Dv] bfloat16, from `reverse.reverse`.
    gates: G [B, Hv, T] float32, in base 2.
    beta: [B, Hv, T] float32, above 0.
    scale: of the output, [1] float32.
    h: [B, Hv, N, Dv, Dk] bfloat16, from `scan.states`.
    dh: [B, Hv, N, Dv, Dk] bfloat16, from `reverse.reverse`.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    dq and dk [B, T, Hk, Dk] bfloat16, and dG and dbeta [B, Hv, T] float32, dG
    the cotangent of G's natural logarithm.
  """
  b, length, hk, width = k.shape
  hv, blocks = y.shape[2], width // WIDTH
  count = length // CHUNK
  each = next(n for n in (_CHUNKS, 4, 2, 1) if count % n == 0)

  def body(*refs, **scratch):
    # Blocks of a head beside each other: they read the same values.
    key_head, block = parted(lax.axis_index("h"), blocks)
    group = lax.axis_index("warpgroup")
    p = Program(
      References(*refs),
      types.SimpleNamespace(**scratch),
      heads=hv // hk,
      items=each * (hv // hk),
      halves=y.shape[3] // HALF,
      row=lax.axis_index("b"),
      # An axis of one program is a Python 0, which jax cannot multiply here.
      first=lax.axis_index("n") * each if count > each else 0,
      key_head=key_head,
      block=block,
    )
    roles = (*gradient_parts.ROLES, Program.load_all)
    for n in (3, 0, 1, 2):
      pl.when(group == n)(functools.partial(roles[n], p))

  gate = jax.ShapeDtypeStruct((blocks, b, hv, length), jnp.float32)
  keys = jax.ShapeDtypeStruct(k.shape, k.dtype)
  dq, dk, dg, db = launch(
    body,
    name="delta_rule_gradients",
    out_type=[keys, keys, gate, gate],
    scratch=_scratch(k.dtype),
    grid=(b, count // each, hk * blocks),
    grid_names=("b", "n", "h"),
    warpgroups=4,
    interpret=interpret,
  )(q, k, y, do, dv, gates, beta, scale, h, dh)
  # In a fixed order; every block has all of dbeta.
  return dq, dk, functools.reduce(jnp.add, list(dg)), db[0]


def _scratch(dtype) -> dict[str, Any]:
  vector = plgpu.SMEM((2, CHUNK), jnp.float32)
  keys = shared((2, CHUNK, WIDTH), dtype)
  slices = (shared((CHUNK, HALF), dtype),) * 2
  square = shared((CHUNK, CHUNK), dtype)
  states = (shared((HALF, WIDTH), dtype),) * 2
  one, two = (plgpu.Barrier(num_arrivals=n) for n in (1, 2))
  pair = functools.partial(plgpu.Barrier, num_barriers=2)
  return {
    "q": keys,
    "k": keys,
    "y": slices,
    "do": slices,
    "dv": slices,
    "h": states,
    "dh": states,
    # Memory is read in one layout each.
    "gate_cols": vector,
    "gate_rows": vector,
    "beta_rows": vector,
    "beta_cols": vector,
    "w": square,
    "m": square,
    "dk": shared((CHUNK, WIDTH), dtype),
    "sums": vector,
    "end": plgpu.SMEM((CHUNK,), jnp.float32),
    "out": vector,
    "full": pair(num_arrivals=9),
    "free": pair(num_arrivals=3),
    "key_full": pair(num_arrivals=2),
    "key_free": pair(num_arrivals=3),
    "w_full": one,
    "m_full": one,
    "w_free": one,
    "m_free": one,
    "sums_full": two,
    "sums_free": one,
    "dk_full": one,
    "dk_free": one,
  }
