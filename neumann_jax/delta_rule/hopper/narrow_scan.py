"""A program of `scan` for keys of 128.

Two warpgroups carry 64 columns of values each, through three waits a chunk; a
third loads and forms P.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

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
  zeros,
)

_STAGES = 3


def scratch(width: int, dtype: DTypeLike, *, forward: bool) -> dict[str, Any]:
  """Shared memory and barriers.

  Args:
    width: of keys.
    dtype: of operands.
    forward: for outputs, else for the states that the backward pass reads.
  """
  vector = plgpu.SMEM((_STAGES, CHUNK), jnp.float32)
  loads, keys = 8 if forward else 6, shared((_STAGES, CHUNK, width), dtype)
  found = {
    "k": keys,
    "v": shared((_STAGES, 2, CHUNK, HALF), dtype),
    "t": shared((_STAGES, CHUNK, CHUNK), dtype),
    "gates": vector,
    "beta": vector,
    "x": shared((2, CHUNK, HALF), dtype),
    "full": plgpu.Barrier(num_arrivals=loads, num_barriers=_STAGES),
    "free": plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
  }
  if not forward:
    return found | {"h": shared((2, HALF, width), dtype)}
  return found | {
    "q": keys,
    # Memory is read in one layout each: rows of P and columns of all else.
    "rows": vector,
    "p": shared((2, CHUNK, CHUNK), dtype),
    "p_full": plgpu.Barrier(num_barriers=2),
    "p_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
  }


def program(
  refs: Any, s: Any, piece: Piece, count: int, *, forward: bool
) -> None:
  """What the three warpgroups do.

  Args:
    refs: arrays in the card's memory, by the names of `scan`.
    s: what `scratch` has named.
    piece: which chunks of which head.
    count: chunks of a row.
    forward: as for `scratch`.
  """
  given = refs, s, piece, forward
  pl.when(piece.group == 2)(lambda: _produce(*given))
  pl.when(piece.group < 2)(lambda: _carry(*given, count))


def _load(refs, s, piece, forward, n):
  slot = lax.rem(n, _STAGES)
  at = pl.ds((piece.run + n) * CHUNK, CHUNK)
  bar, copy = s.full.at[slot], plgpu.copy_gmem_to_smem
  row, head, key_head = piece.row, piece.head, piece.key_head
  copy(refs.k.at[row, at, key_head], s.k.at[slot], bar)
  copy(refs.t.at[row, head, at], s.t.at[slot], bar)
  if forward:
    copy(refs.q.at[row, at, key_head], s.q.at[slot], bar)
    copy(refs.gates.at[row, head, at], s.rows.at[slot], bar)
  for i in range(2):
    given = refs.v.at[row, at, head, piece.columns(i)]
    copy(given, s.v.at[slot, i], bar)
  copy(refs.gates.at[row, head, at], s.gates.at[slot], bar)
  copy(refs.beta.at[row, head, at], s.beta.at[slot], bar)


def _produce(refs, s, piece, forward):
  # With 120 here and 192 for the others, a state's accumulators spill.
  plgpu.set_max_registers(88, action="decrease")
  steps = piece.end - piece.run
  load = functools.partial(_load, refs, s, piece, forward)
  for n in range(_STAGES):
    pl.when(n < steps)(functools.partial(load, n))

  @pl.loop(0, steps)
  def _chunk(n):
    if forward:
      _attend(s, n)

    # The chunk before this one: waiting for its buffers here, after P of
    # this chunk is out, leaves two chunks of loads in flight.
    @pl.when((n >= 1) & (n - 1 + _STAGES < steps))
    def _refill():
      plgpu.barrier_wait(s.free.at[lax.rem(n - 1, _STAGES)])
      load(n - 1 + _STAGES)


def _attend(s, n):
  """P of a chunk, into shared memory."""
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  plgpu.barrier_wait(s.full.at[slot])
  pair = s.q.at[slot], s.k.at[slot].T
  (gram,) = accumulate(((CHUNK, CHUNK), [pair]))
  by_row = registers(s.rows.at[slot], layout=ROWS)
  by_col = registers(s.gates.at[slot], layout=COLS)
  gram = gram * decay(by_row, by_col, strict=False)

  @pl.when(n >= 2)
  def _p_slot():
    plgpu.barrier_wait(s.p_free.at[two])

  s.p.at[two][...] = gram.astype(s.p.dtype)
  plgpu.commit_smem()
  plgpu.barrier_arrive(s.p_full.at[two])


def _carry(refs, s, piece, forward, count):
  plgpu.set_max_registers(208, action="increase")
  steps = piece.end - piece.run
  mine = steps * piece.carried
  pl.loop(0, steps - mine)(functools.partial(_leave, s, forward))
  mine_of = piece.row, piece.head, piece.columns(piece.group)
  write = functools.partial(_write, refs, s, piece, forward)
  scale = refs.scale[0] if forward else None
  step = functools.partial(_step, refs, s, piece, scale, write)
  given = registers(refs.state.at[mine_of], optimized=False)
  known = jnp.where(piece.run == 0, 1.0, 0.0)
  carry = given * known, zeros((HALF, CHUNK), s.k.dtype)
  state, before = lax.fori_loop(0, mine, step, carry)
  write(mine - 1, before)
  if forward:

    @pl.when((piece.end == count) & (piece.carried == 1))
    def _finish():
      refs.final.at[mine_of][...] = state

  plgpu.wait_smem_to_gmem(0)


def _leave(s, forward, n):
  """Whose columns another program carries only keeps the buffers moving."""
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  plgpu.barrier_wait(s.full.at[slot])
  plgpu.barrier_arrive(s.free.at[slot])
  if forward:
    plgpu.barrier_wait(s.p_full.at[two])
    plgpu.barrier_arrive(s.p_free.at[two])


def _write(refs, s, piece, forward, n, tile):
  """Outputs, or Y, of a chunk."""
  into = refs.out if forward else refs.y

  @pl.when((n >= 0) & (piece.run + n >= piece.write))
  def _is_written():
    at = pl.ds((piece.run + n) * CHUNK, CHUNK)
    mine = s.x.at[piece.group]
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    mine.T[...] = tile
    plgpu.commit_smem()
    columns = piece.columns(piece.group)
    plgpu.copy_smem_to_gmem(mine, into.at[piece.row, at, piece.head, columns])


def _keep_state(refs, s, piece, chunk, narrow):
  @pl.when(chunk >= piece.write)
  def _is_written():
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    mine = s.h.at[piece.group]
    mine[...] = narrow
    plgpu.commit_smem()
    columns = piece.columns(piece.group)
    h_ref = refs.h.at[piece.row, piece.head, chunk, columns]
    plgpu.copy_smem_to_gmem(mine, h_ref)


def _step(refs, s, piece, scale, write, n, carry):
  (state, before), forward = carry, scale is not None
  slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
  plgpu.barrier_wait(s.full.at[slot])
  gate = registers(s.gates.at[slot], layout=COLS)
  last = s.gates[slot, CHUNK - 1]
  narrow = state.astype(s.k.dtype)  # [64, Dk]
  reads = [((HALF, CHUNK), [(narrow, s.k.at[slot].T)])]
  if forward:
    reads.append(((HALF, CHUNK), [(narrow, s.q.at[slot].T)]))
  else:
    _keep_state(refs, s, piece, piece.run + n, narrow)
  # The chunk before is written while the tensor cores are busy.
  seen, *read = accumulate(
    *reads, meanwhile=functools.partial(write, n - 1, before)
  )
  enter = cols(jnp.exp2(gate), HALF)
  value = registers(s.v.at[slot, piece.group].T).astype(jnp.float32)
  beta = registers(s.beta.at[slot], layout=COLS)
  error = (value - seen * enter) * cols(beta, HALF)
  (new,) = accumulate((error, [(error.astype(s.t.dtype), s.t.at[slot].T)]))
  leave = (new * cols(jnp.exp2(last - gate), HALF)).astype(s.k.dtype)
  chains = [(state * jnp.exp2(last), [(leave, s.k.at[slot])])]
  if forward:
    plgpu.barrier_wait(s.p_full.at[two])
    pair = new.astype(s.p.dtype), s.p.at[two].T
    chains.append((read[0] * enter, [pair]))
  state, *out = accumulate(*chains)
  plgpu.barrier_arrive(s.free.at[slot])
  if forward:
    plgpu.barrier_arrive(s.p_free.at[two])
    new = out[0] * scale
  else:
    new = new * cols(1.0 / beta, HALF)
  return state, new.astype(s.x.dtype)
