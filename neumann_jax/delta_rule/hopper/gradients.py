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
chunks, so that dq and dk are summed in registers. Three warpgroups own dq,
dk_write and dk_read; a fourth loads, 64 columns of values at a time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  HALF,
  ROWS,
  WIDTH,
  accumulate,
  cols,
  decay,
  launch,
  registers,
  rows,
  shared,
  zeros,
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
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64.
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
  b, length, hk, _ = k.shape
  hv = y.shape[2]
  heads = hv // hk
  count = length // CHUNK
  each = next(n for n in (_CHUNKS, 4, 2, 1) if count % n == 0)
  items = each * heads
  dtype = k.dtype
  vector = plgpu.SMEM((2, CHUNK), jnp.float32)
  halves = (shared((CHUNK, HALF), dtype),) * 2
  square = shared((CHUNK, CHUNK), dtype)
  states = (shared((HALF, WIDTH), dtype),) * 2
  scratch = {
    "q_s": shared((2, CHUNK, WIDTH), dtype),
    "k_s": shared((2, CHUNK, WIDTH), dtype),
    "y_s": halves,
    "do_s": halves,
    "dv_s": halves,
    "h_s": states,
    "dh_s": states,
    "g_s": vector,
    "r_s": vector,
    "b_s": vector,
    "c_s": vector,
    "w_s": square,
    "m_s": square,
    "dk_s": shared((CHUNK, WIDTH), dtype),
    "sums_s": vector,
    "end_s": plgpu.SMEM((CHUNK,), jnp.float32),
    "gate_s": vector,
    "full": plgpu.Barrier(num_arrivals=9, num_barriers=2),
    "free": plgpu.Barrier(num_arrivals=3, num_barriers=2),
    "key_full": plgpu.Barrier(num_arrivals=2, num_barriers=2),
    "key_free": plgpu.Barrier(num_arrivals=3, num_barriers=2),
    "w_full": plgpu.Barrier(),
    "m_full": plgpu.Barrier(),
    "w_free": plgpu.Barrier(),
    "m_free": plgpu.Barrier(),
    "sums_full": plgpu.Barrier(num_arrivals=2),
    "sums_free": plgpu.Barrier(),
    "dk_full": plgpu.Barrier(),
    "dk_free": plgpu.Barrier(),
  }

  def body(
    q_ref, k_ref, y_ref, do_ref, dv_ref, g_ref, b_ref, scale_ref, h_ref,
    dh_ref, dq_ref, dk_ref, dg_ref, db_ref,
    *, q_s, k_s, y_s, do_s, dv_s, h_s, dh_s, g_s, r_s, b_s, c_s, w_s, m_s,
    dk_s, sums_s, end_s, gate_s, full, free,
    key_full, key_free, w_full, m_full, w_free, m_free, sums_full, sums_free,
    dk_full, dk_free,
  ):  # fmt: skip
    row, key_head = lax.axis_index("b"), lax.axis_index("h")
    group = lax.axis_index("warpgroup")
    # An axis of one program is a Python 0, which jax cannot multiply here.
    first = lax.axis_index("n") * each if count > each else 0
    scale = scale_ref[0]

    def place(item):
      """Chunk, value head and the slot of the keys of an item."""
      n, r = lax.div(item, heads), lax.rem(item, heads)
      return first + n, key_head * heads + r, r, lax.rem(n, 2)

    def load(item, half):
      chunk, head, r, two = place(item)
      at, bar = pl.ds(chunk * CHUNK, CHUNK), full.at[half]
      copy = plgpu.copy_gmem_to_smem
      if half == 0:

        @pl.when(r == 0)
        def _load_keys():
          copy(q_ref.at[row, at, key_head], q_s.at[two], key_full.at[two])
          copy(k_ref.at[row, at, key_head], k_s.at[two], key_full.at[two])

      value = pl.ds(half * HALF, HALF)
      copy(y_ref.at[row, at, head, value], y_s[half], bar)
      copy(do_ref.at[row, at, head, value], do_s[half], bar)
      copy(dv_ref.at[row, at, head, value], dv_s[half], bar)
      copy(h_ref.at[row, head, chunk, value], h_s[half], bar)
      copy(dh_ref.at[row, head, chunk, value], dh_s[half], bar)
      copy(g_ref.at[row, head, at], g_s.at[half], bar)
      copy(g_ref.at[row, head, at], r_s.at[half], bar)
      copy(b_ref.at[row, head, at], b_s.at[half], bar)
      copy(b_ref.at[row, head, at], c_s.at[half], bar)

    @pl.when(group == 3)
    def _producer():
      plgpu.set_max_registers(24, action="decrease")

      @pl.loop(0, items)
      def _item(item):
        _, _, r, two = place(item)

        @pl.when((r == 0) & (item >= 2 * heads))
        def _key_slot():
          plgpu.barrier_wait(key_free.at[two])

        for half in range(2):

          @pl.when(item > 0)
          def _slot(half=half):
            plgpu.barrier_wait(free.at[half])

          load(item, half)

    def weights(*, strict):
      """beta_j 2^(G_i - G_j), from the second slot: both hold the same."""
      by_row = registers(r_s.at[1], layout=ROWS)
      by_col = registers(g_s.at[1], layout=COLS)
      beta = registers(c_s.at[1], layout=COLS)
      return decay(by_row, by_col, strict=strict) * cols(beta, CHUNK)

    def keys_ready(item):
      _, _, r, two = place(item)

      @pl.when(r == 0)
      def _keys_are_here():
        plgpu.barrier_wait(key_full.at[two])

    def keys_done(item):
      _, _, r, two = place(item)

      @pl.when(r == heads - 1)
      def _last_use():
        plgpu.barrier_arrive(key_free.at[two])

    def along(x_ref, y):
      """The sum over columns of a 16-bit tile times a float32 one."""
      return (registers(x_ref).astype(jnp.float32) * y).sum(axis=1)

    def weighted(x_ref, weight):
      x = registers(x_ref).astype(jnp.float32)
      return (x * rows(weight, HALF)).astype(dtype)

    wide = (CHUNK, WIDTH)

    @pl.when(group == 0)
    def _queries():
      plgpu.set_max_registers(160, action="increase")

      def item_step(item, carry):
        dq, before = carry
        chunk, head, r, two = place(item)
        fresh = jnp.where(r == 0, 0.0, 1.0)
        dq, before = dq * fresh, before * fresh
        keys_ready(item)
        gram = zeros((CHUNK, CHUNK))
        for half in range(2):
          plgpu.barrier_wait(full.at[half])
          enter = jnp.exp2(registers(r_s.at[half], layout=ROWS))
          do = weighted(do_s[half], enter * scale)
          gram, dq = accumulate(
            (gram, [(do_s[half], y_s[half].T)]),
            (dq, [(do, h_s[half])]),
          )
          if half == 1:
            weight = weights(strict=False)
          plgpu.barrier_arrive(free.at[half])
        w = (gram * (weight * scale)).astype(dtype)

        # dq of the chunk before left through the buffer of its queries.
        @pl.when((r == 0) & (item > 0))
        def _queries_left():
          plgpu.wait_smem_to_gmem(0, wait_read_only=True)
          plgpu.barrier_arrive(key_free.at[1 - two])

        @pl.when(item > 0)
        def _w_slot():
          plgpu.barrier_wait(w_free)

        w_s[...] = w
        plgpu.commit_smem()
        plgpu.barrier_arrive(w_full)
        (dq,) = accumulate((dq, [(w, k_s.at[two])]))
        after = along(q_s.at[two], dq)
        plgpu.barrier_wait(sums_full)
        dg = after - before + registers(sums_s.at[0], layout=ROWS)
        dg = dg + registers(sums_s.at[1], layout=ROWS)
        total = registers(end_s, layout=COLS).sum()
        place_of = plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=ROWS)
        dg = dg + total * (place_of == CHUNK - 1).astype(jnp.float32)
        plgpu.barrier_arrive(sums_free)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        gate_s.at[0][...] = dg

        @pl.when(r == heads - 1)
        def _dq_stays():
          q_s.at[two][...] = dq.astype(dtype)

        plgpu.commit_smem()
        at = pl.ds(chunk * CHUNK, CHUNK)
        plgpu.copy_smem_to_gmem(gate_s.at[0], dg_ref.at[row, head, at])

        @pl.when(r == heads - 1)
        def _dq_leaves():
          plgpu.copy_smem_to_gmem(q_s.at[two], dq_ref.at[row, at, key_head])

        return dq, after

      lax.fori_loop(0, items, item_step, (zeros(wide), zeros((CHUNK,))))
      plgpu.wait_smem_to_gmem(0)

    @pl.when(group == 1)
    def _writes():
      plgpu.set_max_registers(160, action="increase")

      def item_step(item, carry):
        dk, before = carry
        _, _, r, two = place(item)
        fresh = jnp.where(r == 0, 0.0, 1.0)
        dk, before = dk * fresh, before * fresh
        keys_ready(item)
        kept = zeros((HALF,))
        for half in range(2):
          plgpu.barrier_wait(full.at[half])
          total = g_s[half, CHUNK - 1]
          leave = jnp.exp2(total - registers(r_s.at[half], layout=ROWS))
          leave = leave * registers(b_s.at[half], layout=ROWS) * scale
          x = weighted(y_s[half], leave)
          (dk,) = accumulate((dk, [(x, dh_s[half])]))
          dh = registers(dh_s[half]).astype(jnp.float32)
          kept = kept + along(h_s[half], dh)
          plgpu.barrier_arrive(free.at[half])
        carried = along(k_s.at[two], dk) - before
        plgpu.barrier_wait(w_full)
        plgpu.barrier_wait(m_full)
        (dk,) = accumulate((dk, [(w_s.T, q_s.at[two]), (m_s.T, k_s.at[two])]))
        plgpu.barrier_arrive(w_free)
        plgpu.barrier_arrive(m_free)
        after = along(k_s.at[two], dk)
        keys_done(item)

        @pl.when(item > 0)
        def _sums_slot():
          plgpu.barrier_wait(sums_free)

        sums_s.at[0][...] = before - after
        # [C] of tokens and [64] of columns: only their sum is wanted.
        end_s[...] = carried + kept * (jnp.exp2(total) * scale)
        plgpu.commit_smem()
        plgpu.barrier_arrive(sums_full)

        @pl.when(r == heads - 1)
        def _hand_over():
          @pl.when(item >= heads)
          def _dk_slot():
            plgpu.barrier_wait(dk_free)

          dk_s[...] = dk.astype(dtype)
          plgpu.barrier_arrive(dk_full)

        return dk, after

      lax.fori_loop(0, items, item_step, (zeros(wide), zeros((CHUNK,))))

    @pl.when(group == 2)
    def _reads():
      plgpu.set_max_registers(160, action="increase")

      def item_step(item, carry):
        dk, before = carry
        chunk, head, r, two = place(item)
        fresh = jnp.where(r == 0, 0.0, 1.0)
        dk, before = dk * fresh, before * fresh
        keys_ready(item)
        gram = zeros((CHUNK, CHUNK))
        db = zeros((CHUNK,))
        for half in range(2):
          plgpu.barrier_wait(full.at[half])
          enter = jnp.exp2(registers(r_s.at[half], layout=ROWS))
          dv = registers(dv_s[half]).astype(jnp.float32)
          db = db + along(y_s[half], dv)
          gram, dk = accumulate(
            (gram, [(dv_s[half], y_s[half].T)]),
            (dk, [((dv * rows(-enter, HALF)).astype(dtype), h_s[half])]),
          )
          if half == 1:
            weight = weights(strict=True)
            beta = registers(b_s.at[1], layout=ROWS)
          plgpu.barrier_arrive(free.at[half])
        m = (gram * (weight * -1.0)).astype(dtype)

        @pl.when(item > 0)
        def _m_slot():
          plgpu.barrier_wait(m_free)

        m_s[...] = m
        plgpu.commit_smem()
        plgpu.barrier_arrive(m_full)
        (dk,) = accumulate((dk, [(m, k_s.at[two])]))
        after = along(k_s.at[two], dk)
        keys_done(item)

        @pl.when(item > 0)
        def _sums_slot():
          plgpu.barrier_wait(sums_free)

        sums_s.at[1][...] = after - before
        plgpu.barrier_arrive(sums_full)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        gate_s.at[1][...] = db / beta
        at = pl.ds(chunk * CHUNK, CHUNK)

        @pl.when(r == heads - 1)
        def _take_over():
          plgpu.barrier_wait(dk_full)
          other = registers(dk_s).astype(jnp.float32)
          dk_s[...] = (dk + other).astype(dtype)

        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(gate_s.at[1], db_ref.at[row, head, at])

        @pl.when(r == heads - 1)
        def _dk_leaves():
          plgpu.copy_smem_to_gmem(dk_s, dk_ref.at[row, at, key_head])
          plgpu.wait_smem_to_gmem(0, wait_read_only=True)
          plgpu.barrier_arrive(dk_free)

        return dk, after

      lax.fori_loop(0, items, item_step, (zeros(wide), zeros((CHUNK,))))
      plgpu.wait_smem_to_gmem(0)

  gate = jax.ShapeDtypeStruct((b, hv, length), jnp.float32)
  return launch(
    body,
    name="delta_rule_gradients",
    out_type=[
      jax.ShapeDtypeStruct(q.shape, dtype),
      jax.ShapeDtypeStruct(k.shape, dtype),
      gate,
      gate,
    ],
    scratch=scratch,
    grid=(b, count // each, hk),
    grid_names=("b", "n", "h"),
    warpgroups=4,
    interpret=interpret,
  )(q, k, y, do, dv, gates, beta, scale, h, dh)
