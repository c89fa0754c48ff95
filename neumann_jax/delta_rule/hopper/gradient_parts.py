"""What the three warpgroups of `gradients` do that own dq, dk_write, dk_read.

Each goes through the items of its program with its sums in registers, and
begins anew with every key head. W comes from the first, M from the third; the
sums of dG meet in the first, dk_write and dk_read in the third.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper.gradient_program import Program, along
from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  HALF,
  ROWS,
  WIDTH,
  accumulate,
  registers,
  rows,
  zeros,
)


def _each_item(p: Program, step: Callable[..., tuple]) -> None:
  """step(item, sum, its part of dG) -> the next two, from 0 at every chunk."""
  plgpu.set_max_registers(160, action="increase")

  def item_step(item, carry):
    place = p.place(item)
    fresh = jnp.where(place.r == 0, 0.0, 1.0)
    total, before = (x * fresh for x in carry)
    p.keys_ready(place)
    return step(item, place, total, before)

  carry = zeros((CHUNK, WIDTH)), zeros((CHUNK,))
  lax.fori_loop(0, p.items, item_step, carry)


def _weighted(x_ref, weight):
  x = registers(x_ref)
  return (x.astype(jnp.float32) * rows(weight, HALF)).astype(x.dtype)


def _publish(item, tile, ref, full, free):
  """Hands a tile of weights to whoever multiplies by it."""

  @pl.when(item > 0)
  def _slot():
    plgpu.barrier_wait(free)

  ref[...] = tile
  plgpu.commit_smem()
  plgpu.barrier_arrive(full)


def queries(p: Program) -> None:
  """dq, W, and dG of all three."""
  s, scale = p.s, p.refs.scale[0]

  def step(item, place, dq, before):
    gram = zeros((CHUNK, CHUNK))
    for half in range(p.halves):
      slot = half % 2
      plgpu.barrier_wait(s.full.at[slot])
      enter = jnp.exp2(registers(s.gate_rows.at[slot], layout=ROWS))
      do = _weighted(s.do[slot], enter * scale)
      gram, dq = accumulate(
        (gram, [(s.do[slot], s.y[slot].T)]),
        (dq, [(do, s.h[slot])]),
      )
      if half == p.halves - 1:
        weight = p.weights(strict=False)
      plgpu.barrier_arrive(s.free.at[slot])
    w = (gram * (weight * scale)).astype(s.w.dtype)

    # dq of the chunk before left through the buffer of its queries.
    @pl.when((place.r == 0) & (item > 0))
    def _queries_left():
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      plgpu.barrier_arrive(s.key_free.at[1 - place.slot])

    _publish(item, w, s.w, s.w_full, s.w_free)
    (dq,) = accumulate((dq, [(w, s.k.at[place.slot])]))
    after = along(s.q.at[place.slot], dq)
    _dq_leaves(p, place, dq, _dg(p, after - before))
    return dq, after

  _each_item(p, step)
  plgpu.wait_smem_to_gmem(0)


def _dg(p: Program, own: jax.Array) -> jax.Array:
  """With what the other two have summed, and the product of states."""
  s = p.s
  plgpu.barrier_wait(s.sums_full)
  dg = own + registers(s.sums.at[0], layout=ROWS)
  dg = dg + registers(s.sums.at[1], layout=ROWS)
  total = registers(s.end, layout=COLS).sum()
  place_of = plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=ROWS)
  dg = dg + total * (place_of == CHUNK - 1).astype(jnp.float32)
  plgpu.barrier_arrive(s.sums_free)
  return dg


def _dq_leaves(p: Program, place: Any, dq: jax.Array, dg: jax.Array) -> None:
  s, last = p.s, place.r == p.heads - 1
  mine = s.q.at[place.slot]
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  s.out.at[0][...] = dg

  @pl.when(last)
  def _dq_stays():
    mine[...] = dq.astype(mine.dtype)

  plgpu.commit_smem()
  dg_ref = p.refs.dg.at[p.block, p.row, place.head, place.at]
  plgpu.copy_smem_to_gmem(s.out.at[0], dg_ref)

  @pl.when(last)
  def _dq_is_written():
    dq_ref = p.refs.dq.at[p.row, place.at, p.key_head, p.columns]
    plgpu.copy_smem_to_gmem(mine, dq_ref)


def writes(p: Program) -> None:
  """dk_write, of the keys as what they write into the state."""
  s, scale = p.s, p.refs.scale[0]

  def step(item, place, dk, before):
    keys = s.k.at[place.slot]
    kept = zeros((HALF,))
    for half in range(p.halves):
      slot = half % 2
      plgpu.barrier_wait(s.full.at[slot])
      total = s.gate_cols[slot, CHUNK - 1]
      gate = registers(s.gate_rows.at[slot], layout=ROWS)
      leave = jnp.exp2(total - gate)
      leave = leave * registers(s.beta_rows.at[slot], layout=ROWS) * scale
      x = _weighted(s.y[slot], leave)
      (dk,) = accumulate((dk, [(x, s.dh[slot])]))
      dh = registers(s.dh[slot]).astype(jnp.float32)
      kept = kept + along(s.h[slot], dh)
      plgpu.barrier_arrive(s.free.at[slot])
    carried = along(keys, dk) - before
    plgpu.barrier_wait(s.w_full)
    plgpu.barrier_wait(s.m_full)
    pairs = [(s.w.T, s.q.at[place.slot]), (s.m.T, keys)]
    (dk,) = accumulate((dk, pairs))
    plgpu.barrier_arrive(s.w_free)
    plgpu.barrier_arrive(s.m_free)
    after = along(keys, dk)
    p.keys_done(place)
    # [C] of tokens and [64] of columns: only their sum is wanted.
    end = carried + kept * (jnp.exp2(total) * scale)
    _hand_over(p, item, place, dk, (before - after, end))
    return dk, after

  _each_item(p, step)


def _hand_over(p: Program, item: jax.Array, place: Any, dk, sums) -> None:
  s = p.s

  @pl.when(item > 0)
  def _sums_slot():
    plgpu.barrier_wait(s.sums_free)

  s.sums.at[0][...], s.end[...] = sums
  plgpu.commit_smem()
  plgpu.barrier_arrive(s.sums_full)

  @pl.when(place.r == p.heads - 1)
  def _dk_is_handed_over():
    @pl.when(item >= p.heads)
    def _dk_slot():
      plgpu.barrier_wait(s.dk_free)

    s.dk[...] = dk.astype(s.dk.dtype)
    plgpu.barrier_arrive(s.dk_full)


def reads(p: Program) -> None:
  """dk_read, of the keys as what they read of the state, M, and dbeta."""
  s = p.s

  def step(item, place, dk, before):
    keys = s.k.at[place.slot]
    gram = zeros((CHUNK, CHUNK))
    db = zeros((CHUNK,))
    for half in range(p.halves):
      slot = half % 2
      plgpu.barrier_wait(s.full.at[slot])
      enter = jnp.exp2(registers(s.gate_rows.at[slot], layout=ROWS))
      dv = registers(s.dv[slot]).astype(jnp.float32)
      db = db + along(s.y[slot], dv)
      gram, dk = accumulate(
        (gram, [(s.dv[slot], s.y[slot].T)]),
        (dk, [((dv * rows(-enter, HALF)).astype(s.m.dtype), s.h[slot])]),
      )
      if half == p.halves - 1:
        weight = p.weights(strict=True)
        beta = registers(s.beta_rows.at[1], layout=ROWS)
      plgpu.barrier_arrive(s.free.at[slot])
    m = (gram * (weight * -1.0)).astype(s.m.dtype)
    _publish(item, m, s.m, s.m_full, s.m_free)
    (dk,) = accumulate((dk, [(m, keys)]))
    after = along(keys, dk)
    p.keys_done(place)

    @pl.when(item > 0)
    def _sums_slot():
      plgpu.barrier_wait(s.sums_free)

    s.sums.at[1][...] = after - before
    plgpu.barrier_arrive(s.sums_full)
    _dk_leaves(p, place, dk, db / beta)
    return dk, after

  _each_item(p, step)
  plgpu.wait_smem_to_gmem(0)


def _dk_leaves(p: Program, place: Any, dk: jax.Array, db: jax.Array) -> None:
  s, last = p.s, place.r == p.heads - 1
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  s.out.at[1][...] = db

  @pl.when(last)
  def _take_over():
    plgpu.barrier_wait(s.dk_full)
    other = registers(s.dk).astype(jnp.float32)
    s.dk[...] = (dk + other).astype(s.dk.dtype)

  plgpu.commit_smem()
  db_ref = p.refs.dbeta.at[p.block, p.row, place.head, place.at]
  plgpu.copy_smem_to_gmem(s.out.at[1], db_ref)

  @pl.when(last)
  def _dk_is_written():
    dk_ref = p.refs.dk.at[p.row, place.at, p.key_head, p.columns]
    plgpu.copy_smem_to_gmem(s.dk, dk_ref)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    plgpu.barrier_arrive(s.dk_free)


# Of warpgroups 0, 1 and 2.
ROLES = (queries, writes, reads)
