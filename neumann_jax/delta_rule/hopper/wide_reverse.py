"""A program of `reverse` for keys of 256, as of `wide_scan`.

Keys, gates and the outputs' cotangents are there twice: 225 of 227 KB.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from neumann_jax.delta_rule.hopper.cotangent_walk import carry, write
from neumann_jax.delta_rule.hopper.pieces import Piece
from neumann_jax.delta_rule.hopper.single_buffers import (
  hidden_zero,
  leave,
  once_free,
)
from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  HALF,
  accumulate,
  cols,
  registers,
  shared,
)


def scratch(width: int, dtype: DTypeLike) -> dict[str, Any]:
  """As of `narrow_reverse`."""
  vector = plgpu.SMEM((2, CHUNK), jnp.float32)
  square = shared((1, CHUNK, CHUNK), dtype)
  one, both = plgpu.Barrier(), plgpu.Barrier(num_arrivals=2)
  return {
    "q": shared((1, CHUNK, width), dtype),
    "k": shared((2, CHUNK, width), dtype),
    "do": shared((2, 2, CHUNK, HALF), dtype),
    "t": square,
    "p": square,
    "gates": vector,
    "beta": vector,
    "ds": shared((2, HALF, width), dtype),
    "dv": shared((2, CHUNK, HALF), dtype),
    "k_full": plgpu.Barrier(num_arrivals=5, num_barriers=2),
    "k_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
    "q_full": one,
    "q_free": both,
    "t_full": one,
    "t_free": both,
    "p_full": one,
    "p_free": both,
  }


def program(refs: Any, s: Any, piece: Piece, count: int) -> None:
  """As of `narrow_reverse`."""
  pl.when(piece.group == 2)(lambda: _produce(refs, s, piece))
  pl.when(piece.group < 2)(lambda: _carry(refs, s, piece, count))


def _produce(refs, s, piece):
  plgpu.set_max_registers(24, action="decrease")
  row, head, key_head = piece.row, piece.head, piece.key_head
  copy = plgpu.copy_gmem_to_smem

  @pl.loop(0, piece.run - piece.end)
  def _chunk(n):
    slot = lax.rem(n, 2)
    at = pl.ds((piece.run - 1 - n) * CHUNK, CHUNK)

    @pl.when(n >= 2)
    def _k_slot():
      plgpu.barrier_wait(s.k_free.at[slot])

    bar = s.k_full.at[slot]
    copy(refs.k.at[row, at, key_head], s.k.at[slot], bar)
    for i in range(2):
      copy(refs.do.at[row, at, head, piece.columns(i)], s.do.at[slot, i], bar)
    copy(refs.gates.at[row, head, at], s.gates.at[slot], bar)
    copy(refs.beta.at[row, head, at], s.beta.at[slot], bar)
    # In the order in which the chunk before lets them go.
    once_free(n, s.p_free)
    copy(refs.p.at[row, head, at], s.p.at[0], s.p_full)
    once_free(n, s.t_free)
    copy(refs.t.at[row, head, at], s.t.at[0], s.t_full)
    once_free(n, s.q_free)
    copy(refs.q.at[row, at, key_head], s.q.at[0], s.q_full)


def _carry(refs, s, piece, count):
  plgpu.set_max_registers(240, action="increase")
  bars = [(s.p_full, s.p_free), (s.t_full, s.t_free), (s.q_full, s.q_free)]
  left = functools.partial(leave, s, bars)
  carry(refs, piece, count, left, functools.partial(_step, refs, s, piece))


def _step(refs, s, piece, scale, n, ds):
  slot, zero = lax.rem(n, 2), hidden_zero(n)
  chunk, group = piece.run - 1 - n, piece.group
  _keep_state(refs, s, piece, chunk, ds)
  plgpu.barrier_wait(s.k_full.at[slot])
  narrow = s.ds.at[group + zero]
  (new,) = accumulate(((HALF, CHUNK), [(narrow, s.k.at[slot].T)]))
  gate = registers(s.gates.at[slot], layout=COLS)
  total = s.gates[slot, CHUNK - 1]
  new = new * cols(jnp.exp2(total - gate), HALF)
  plgpu.barrier_wait(s.p_full)
  (new,) = accumulate((new, [(s.do.at[slot, group].T, s.p.at[zero])]))
  plgpu.barrier_arrive(s.p_free)
  plgpu.barrier_wait(s.t_full)
  (dv,) = accumulate((new, [(new.astype(s.t.dtype), s.t.at[zero])]))
  plgpu.barrier_arrive(s.t_free)
  dv = dv * cols(registers(s.beta.at[slot], layout=COLS), HALF)
  enter = cols(jnp.exp2(gate), HALF)
  do = registers(s.do.at[slot, group].T).astype(jnp.float32) * enter
  plgpu.barrier_wait(s.q_full)
  pairs = [
    (do.astype(s.q.dtype), s.q.at[zero]),
    ((dv * -enter).astype(s.k.dtype), s.k.at[slot]),
  ]
  (ds,) = accumulate((ds * jnp.exp2(total), pairs))
  plgpu.barrier_arrive(s.q_free)
  plgpu.barrier_arrive(s.k_free.at[slot])
  write(refs, s, piece, chunk, dv * scale)
  return ds


def _keep_state(refs, s, piece, chunk, ds):
  """The rounded cotangent, where products and `gradients` read it."""
  mine = s.ds.at[piece.group]
  # All but the copy begun last, that of dv.
  plgpu.wait_smem_to_gmem(1, wait_read_only=True)
  mine[...] = ds.astype(s.ds.dtype)
  plgpu.commit_smem()

  @pl.when(chunk < piece.write)
  def _is_written():
    columns = piece.columns(piece.group)
    ds_ref = refs.ds.at[piece.row, piece.head, chunk, columns]
    plgpu.copy_smem_to_gmem(mine, ds_ref)
