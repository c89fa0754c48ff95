"""A program of `reverse` for keys of 128, as of `narrow_scan`."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from neumann_jax.delta_rule.hopper.cotangent_walk import carry, write
from neumann_jax.delta_rule.hopper.pieces import Piece
from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  HALF,
  ROWS,
  accumulate,
  cols,
  decay,
  registers,
  shared,
)

_STAGES = 2


def scratch(width: int, dtype: DTypeLike) -> dict[str, Any]:
  """Shared memory and barriers.

  Args:
    width: of keys.
    dtype: of operands.
  """
  vector = plgpu.SMEM((_STAGES, CHUNK), jnp.float32)
  keys = shared((_STAGES, CHUNK, width), dtype)
  return {
    "q": keys,
    "k": keys,
    "do": shared((_STAGES, 2, CHUNK, HALF), dtype),
    "t": shared((_STAGES, CHUNK, CHUNK), dtype),
    "gates": vector,
    "rows": vector,
    "beta": vector,
    "p": shared((2, CHUNK, CHUNK), dtype),
    "ds": shared((2, HALF, width), dtype),
    "dv": shared((2, CHUNK, HALF), dtype),
    "full": plgpu.Barrier(num_arrivals=8, num_barriers=_STAGES),
    "free": plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
    "p_full": plgpu.Barrier(num_barriers=2),
    "p_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
  }


def program(refs: Any, s: Any, piece: Piece, count: int) -> None:
  """What the three warpgroups do.

  Args:
    refs: arrays in the card's memory, by the names of `reverse`.
    s: what `scratch` has named.
    piece: which chunks of which head.
    count: chunks of a row.
  """
  pl.when(piece.group == 2)(lambda: _produce(refs, s, piece))
  pl.when(piece.group < 2)(lambda: _carry(refs, s, piece, count))


def _load(refs, s, piece, n):
  slot = lax.rem(n, _STAGES)
  at = pl.ds((piece.run - 1 - n) * CHUNK, CHUNK)
  bar, copy = s.full.at[slot], plgpu.copy_gmem_to_smem
  row, head, key_head = piece.row, piece.head, piece.key_head
  copy(refs.q.at[row, at, key_head], s.q.at[slot], bar)
  copy(refs.k.at[row, at, key_head], s.k.at[slot], bar)
  for i in range(2):
    copy(refs.do.at[row, at, head, piece.columns(i)], s.do.at[slot, i], bar)
  copy(refs.t.at[row, head, at], s.t.at[slot], bar)
  copy(refs.gates.at[row, head, at], s.gates.at[slot], bar)
  copy(refs.gates.at[row, head, at], s.rows.at[slot], bar)
  copy(refs.beta.at[row, head, at], s.beta.at[slot], bar)


def _produce(refs, s, piece):
  # With 120 here and 192 for the others, a state's accumulators spill.
  plgpu.set_max_registers(88, action="decrease")
  steps = piece.run - piece.end
  load = functools.partial(_load, refs, s, piece)
  for n in range(_STAGES):
    pl.when(n < steps)(functools.partial(load, n))

  @pl.loop(0, steps)
  def _chunk(n):
    _attend(s, n)

    @pl.when((n >= 1) & (n - 1 + _STAGES < steps))
    def _refill():
      plgpu.barrier_wait(s.free.at[lax.rem(n - 1, _STAGES)])
      load(n - 1 + _STAGES)


def _attend(s, n):
  """P of a chunk, into shared memory."""
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  plgpu.barrier_wait(s.full.at[slot])
  by_row = registers(s.rows.at[slot], layout=ROWS)
  by_col = registers(s.gates.at[slot], layout=COLS)
  pair = s.q.at[slot], s.k.at[slot].T
  (gram,) = accumulate(((CHUNK, CHUNK), [pair]))
  gram = gram * decay(by_row, by_col, strict=False)

  @pl.when(n >= 2)
  def _p_slot():
    plgpu.barrier_wait(s.p_free.at[two])

  s.p.at[two][...] = gram.astype(s.p.dtype)
  plgpu.commit_smem()
  plgpu.barrier_arrive(s.p_full.at[two])


def _carry(refs, s, piece, count):
  plgpu.set_max_registers(208, action="increase")
  leave = functools.partial(_leave, s)
  carry(refs, piece, count, leave, functools.partial(_step, refs, s, piece))


def _leave(s, n):
  """Whose columns another program carries only keeps the buffers moving."""
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  plgpu.barrier_wait(s.full.at[slot])
  plgpu.barrier_wait(s.p_full.at[two])
  plgpu.barrier_arrive(s.p_free.at[two])
  plgpu.barrier_arrive(s.free.at[slot])


def _step(refs, s, piece, scale, n, ds):
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  chunk, group = piece.run - 1 - n, piece.group
  plgpu.barrier_wait(s.full.at[slot])
  narrow = ds.astype(s.k.dtype)  # [64, Dk]
  _keep_state(refs, s, piece, chunk, narrow)
  gate = registers(s.gates.at[slot], layout=COLS)
  total = s.gates[slot, CHUNK - 1]
  plgpu.barrier_wait(s.p_full.at[two])
  left, new = accumulate(
    ((HALF, CHUNK), [(narrow, s.k.at[slot].T)]),
    ((HALF, CHUNK), [(s.do.at[slot, group].T, s.p.at[two])]),
  )
  plgpu.barrier_arrive(s.p_free.at[two])
  new = new + left * cols(jnp.exp2(total - gate), HALF)
  (dv,) = accumulate((new, [(new.astype(s.t.dtype), s.t.at[slot])]))
  dv = dv * cols(registers(s.beta.at[slot], layout=COLS), HALF)
  enter = cols(jnp.exp2(gate), HALF)
  do = registers(s.do.at[slot, group].T).astype(jnp.float32) * enter
  pairs = [
    (do.astype(s.q.dtype), s.q.at[slot]),
    ((dv * -enter).astype(s.k.dtype), s.k.at[slot]),
  ]
  (ds,) = accumulate((ds * jnp.exp2(total), pairs))
  plgpu.barrier_arrive(s.free.at[slot])
  write(refs, s, piece, chunk, dv * scale)
  return ds


def _keep_state(refs, s, piece, chunk, narrow):
  # Waiting for all but the copy begun last: this buffer's own is older.
  @pl.when(chunk < piece.write)
  def _is_written():
    mine = s.ds.at[piece.group]
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    mine[...] = narrow
    plgpu.commit_smem()
    columns = piece.columns(piece.group)
    ds_ref = refs.ds.at[piece.row, piece.head, chunk, columns]
    plgpu.copy_smem_to_gmem(mine, ds_ref)
