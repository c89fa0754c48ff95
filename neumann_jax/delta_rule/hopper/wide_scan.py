"""A program of `scan` for keys of 256.

A warpgroup's 64 columns of a state, 64 x 256 in float32, are 128 registers a
thread, half of all that it can have. What is left does not hold the rounded
copy that the first products read beside their sums, nor does the third
warpgroup keep enough to form P. So the copy lies in shared memory, whence it
goes to the card's memory too where the backward pass reads it, and P comes from
`scores`. At most one sum of 64 x 64 is live beside the state but for the last
two, q S behind the update of the state, and P X into it.

Only keys and gates are there twice. All else is there once, has a barrier of
its own, and is loaded again as soon as it is read, most of a chunk ahead: 209
of 227 KB.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

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


def scratch(width: int, dtype: DTypeLike, *, forward: bool) -> dict[str, Any]:
  """As of `narrow_scan`."""
  vector = plgpu.SMEM((2, CHUNK), jnp.float32)
  halves = shared((2, CHUNK, HALF), dtype)
  square = shared((1, CHUNK, CHUNK), dtype)
  one, both = plgpu.Barrier(), plgpu.Barrier(num_arrivals=2)
  found = {
    "k": shared((2, CHUNK, width), dtype),
    "v": halves,
    "t": square,
    "gates": vector,
    "beta": vector,
    "h": shared((2, HALF, width), dtype),
    "x": halves,
    "k_full": plgpu.Barrier(num_arrivals=3, num_barriers=2),
    "k_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
    "v_full": both,
    "v_free": both,
    "t_full": one,
    "t_free": both,
  }
  if not forward:
    return found
  return found | {
    "q": shared((1, CHUNK, width), dtype),
    "p": square,
    "q_full": one,
    "q_free": both,
    "p_full": one,
    "p_free": both,
  }


def program(
  refs: Any, s: Any, piece: Piece, count: int, *, forward: bool
) -> None:
  """As of `narrow_scan`."""
  given = refs, s, piece, forward
  pl.when(piece.group == 2)(lambda: _produce(*given))
  pl.when(piece.group < 2)(lambda: _carry(*given, count))


def _produce(refs, s, piece, forward):
  plgpu.set_max_registers(24, action="decrease")
  row, head, key_head = piece.row, piece.head, piece.key_head
  copy = plgpu.copy_gmem_to_smem

  @pl.loop(0, piece.end - piece.run)
  def _chunk(n):
    slot = lax.rem(n, 2)
    at = pl.ds((piece.run + n) * CHUNK, CHUNK)

    @pl.when(n >= 2)
    def _k_slot():
      plgpu.barrier_wait(s.k_free.at[slot])

    bar = s.k_full.at[slot]
    copy(refs.k.at[row, at, key_head], s.k.at[slot], bar)
    copy(refs.gates.at[row, head, at], s.gates.at[slot], bar)
    copy(refs.beta.at[row, head, at], s.beta.at[slot], bar)
    # In the order in which the chunk before lets them go.
    once_free(n, s.v_free)
    for i in range(2):
      copy(refs.v.at[row, at, head, piece.columns(i)], s.v.at[i], s.v_full)
    once_free(n, s.t_free)
    copy(refs.t.at[row, head, at], s.t.at[0], s.t_full)
    if forward:
      once_free(n, s.q_free)
      copy(refs.q.at[row, at, key_head], s.q.at[0], s.q_full)
      once_free(n, s.p_free)
      copy(refs.p.at[row, head, at], s.p.at[0], s.p_full)


def _carry(refs, s, piece, forward, count):
  plgpu.set_max_registers(240, action="increase")
  steps = piece.end - piece.run
  mine = steps * piece.carried
  bars = [(s.v_full, s.v_free), (s.t_full, s.t_free)]
  if forward:
    bars += [(s.q_full, s.q_free), (s.p_full, s.p_free)]
  pl.loop(0, steps - mine)(functools.partial(leave, s, bars))
  mine_of = piece.row, piece.head, piece.columns(piece.group)
  scale = refs.scale[0] if forward else None
  step = functools.partial(_step, refs, s, piece, scale)
  given = registers(refs.state.at[mine_of], optimized=False)
  known = jnp.where(piece.run == 0, 1.0, 0.0)
  state = lax.fori_loop(0, mine, step, given * known)
  if forward:

    @pl.when((piece.end == count) & (piece.carried == 1))
    def _finish():
      refs.final.at[mine_of][...] = state

  plgpu.wait_smem_to_gmem(0)


def _step(refs, s, piece, scale, n, state):
  forward = scale is not None
  slot, zero, chunk = lax.rem(n, 2), hidden_zero(n), piece.run + n
  narrow = s.h.at[piece.group + zero]
  _keep_state(refs, s, piece, chunk, state, forward)
  plgpu.barrier_wait(s.k_full.at[slot])
  (seen,) = accumulate(((HALF, CHUNK), [(narrow, s.k.at[slot].T)]))
  gate = registers(s.gates.at[slot], layout=COLS)
  last = s.gates[slot, CHUNK - 1]
  enter = cols(jnp.exp2(gate), HALF)
  beta = registers(s.beta.at[slot], layout=COLS)
  plgpu.barrier_wait(s.v_full)
  value = registers(s.v.at[piece.group].T).astype(jnp.float32)
  plgpu.barrier_arrive(s.v_free)
  error = (value - seen * enter) * cols(beta, HALF)
  plgpu.barrier_wait(s.t_full)
  (new,) = accumulate((error, [(error.astype(s.t.dtype), s.t.at[zero].T)]))
  plgpu.barrier_arrive(s.t_free)
  left = (new * cols(jnp.exp2(last - gate), HALF)).astype(s.k.dtype)
  chains = [(state * jnp.exp2(last), [(left, s.k.at[slot])])]
  if forward:
    plgpu.barrier_wait(s.q_full)
    chains.append(((HALF, CHUNK), [(narrow, s.q.at[zero].T)]))
  state, *read = accumulate(*chains)
  plgpu.barrier_arrive(s.k_free.at[slot])
  if forward:
    plgpu.barrier_arrive(s.q_free)
    plgpu.barrier_wait(s.p_full)
    pair = new.astype(s.p.dtype), s.p.at[zero].T
    (out,) = accumulate((read[0] * cols(jnp.exp2(gate), HALF), [pair]))
    plgpu.barrier_arrive(s.p_free)
    _write(s, piece, chunk, out * scale, refs.out, others=0)
  else:
    new = new * cols(1.0 / beta, HALF)
    # Beside it only the copy of the state is under way, which is younger.
    _write(s, piece, chunk, new, refs.y, others=1)
  return state


def _keep_state(refs, s, piece, chunk, state, forward):
  """The rounded state, where products and the backward pass read it."""
  mine = s.h.at[piece.group]
  if not forward:
    # All but the copy of Y, which is younger.
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
  mine[...] = state.astype(s.h.dtype)
  plgpu.commit_smem()
  if not forward:

    @pl.when(chunk >= piece.write)
    def _is_written():
      columns = piece.columns(piece.group)
      h_ref = refs.h.at[piece.row, piece.head, chunk, columns]
      plgpu.copy_smem_to_gmem(mine, h_ref)


def _write(s, piece, chunk, tile, into, others):
  """Outputs, or Y, of a chunk, while so many other copies may be under way."""

  @pl.when(chunk >= piece.write)
  def _is_written():
    at, mine = pl.ds(chunk * CHUNK, CHUNK), s.x.at[piece.group]
    plgpu.wait_smem_to_gmem(others, wait_read_only=True)
    mine.T[...] = tile.astype(s.x.dtype)
    plgpu.commit_smem()
    columns = piece.columns(piece.group)
    plgpu.copy_smem_to_gmem(mine, into.at[piece.row, at, piece.head, columns])
