"""The recurrence over chunks, backward, on a Hopper GPU.

In the notation of `scan`, from the last chunk to the first, dS the
cotangent of the state that leaves a chunk:

  dX = P^t dO + 2^(G_C - G) (k dS),  dv = beta (dX + R^t dX),
  dS <- 2^G_C dS + q^t (2^G dO) - k^t (2^G dv).

dS and dX are those of outputs without their scale, which only dv and the
initial state's cotangent get: a factor on dO would round it once more, and
where nothing decays such errors would never leave the state.

Pieces run side by side as they do forward; `stop` has the chunks before which
a piece begins to walk back and to write, where it ends, and its columns.
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
  HALF,
  ROWS,
  WIDTH,
  accumulate,
  cols,
  decay,
  launch,
  registers,
  shared,
)

_STAGES = 2


def reverse(
  q: jax.Array,
  k: jax.Array,
  do: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  stop: jax.Array,
  ds: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The recurrence backward, over all chunks.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64.
    k: [B, T, Hk, Dk] bfloat16.
    do: [B, T, Hv, Dv] bfloat16, cotangent of the outputs.
    t: R = T - I [B, Hv, T, C] bfloat16.
    gates: G [B, Hv, T] float32, in base 2.
    beta: [B, Hv, T] float32.
    scale: of the output, [1] float32, not 0.
    stop: [B, Hv, P, 4] int32, the chunks before which each piece of a row
      begins to walk back and to write, its first chunk, and its halves of the
      columns, 3 being both.
    ds: [B, Hv, Dv, Dk] float32, cotangent of the transposed final state.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    dv [B, T, Hv, Dv]; dS / scale behind every chunk, transposed,
    [B, Hv, N, Dv, Dk] bfloat16; and the cotangent of the transposed initial
    state [B, Hv, Dv, Dk] float32.
  """
  b, length, hk, _ = k.shape
  hv, pieces = do.shape[2], stop.shape[2]
  count = length // CHUNK
  dtype = k.dtype
  vector = plgpu.SMEM((_STAGES, CHUNK), jnp.float32)
  scratch = {
    "q_s": shared((_STAGES, CHUNK, WIDTH), dtype),
    "k_s": shared((_STAGES, CHUNK, WIDTH), dtype),
    "do_s": shared((_STAGES, 2, CHUNK, HALF), dtype),
    "t_s": shared((_STAGES, CHUNK, CHUNK), dtype),
    "g_s": vector,
    "r_s": vector,
    "b_s": vector,
    "p_s": shared((2, CHUNK, CHUNK), dtype),
    "ds_s": shared((2, HALF, WIDTH), dtype),
    "dv_s": shared((2, CHUNK, HALF), dtype),
    "full": plgpu.Barrier(num_arrivals=8, num_barriers=_STAGES),
    "free": plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
    "p_full": plgpu.Barrier(num_barriers=2),
    "p_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
  }

  def body(
    q_ref, k_ref, do_ref, t_ref, g_ref, b_ref, scale_ref, stop_ref, end_ref,
    dv_ref, ds_ref, start_ref,
    *, q_s, k_s, do_s, t_s, g_s, r_s, b_s, p_s, ds_s, dv_s,
    full, free, p_full, p_free,
  ):  # fmt: skip
    row, head = lax.axis_index("b"), lax.axis_index("h")
    piece, group = lax.axis_index("p"), lax.axis_index("warpgroup")
    key_head = lax.div(head, hv // hk)
    last = stop_ref[row, head, piece, 0]
    end = stop_ref[row, head, piece, 1]
    first = stop_ref[row, head, piece, 2]
    halves = stop_ref[row, head, piece, 3]
    steps = last - first
    scale = scale_ref[0]

    def load(n):
      slot = lax.rem(n, _STAGES)
      at = pl.ds((last - 1 - n) * CHUNK, CHUNK)
      bar = full.at[slot]
      copy = plgpu.copy_gmem_to_smem
      copy(q_ref.at[row, at, key_head], q_s.at[slot], bar)
      copy(k_ref.at[row, at, key_head], k_s.at[slot], bar)
      for i in range(2):
        half = pl.ds(i * HALF, HALF)
        copy(do_ref.at[row, at, head, half], do_s.at[slot, i], bar)
      copy(t_ref.at[row, head, at], t_s.at[slot], bar)
      copy(g_ref.at[row, head, at], g_s.at[slot], bar)
      copy(g_ref.at[row, head, at], r_s.at[slot], bar)
      copy(b_ref.at[row, head, at], b_s.at[slot], bar)

    @pl.when(group == 2)
    def _producer():
      # With 120 here and 192 for the others, a state's accumulators spill.
      plgpu.set_max_registers(88, action="decrease")
      for n in range(_STAGES):
        pl.when(n < steps)(functools.partial(load, n))

      @pl.loop(0, steps)
      def _chunk(n):
        slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
        plgpu.barrier_wait(full.at[slot])
        by_row = registers(r_s.at[slot], layout=ROWS)
        by_col = registers(g_s.at[slot], layout=COLS)
        (gram,) = accumulate(((CHUNK, CHUNK), [(q_s.at[slot], k_s.at[slot].T)]))
        gram = gram * decay(by_row, by_col, strict=False)

        @pl.when(n >= 2)
        def _p_slot():
          plgpu.barrier_wait(p_free.at[two])

        p_s.at[two][...] = gram.astype(dtype)
        plgpu.commit_smem()
        plgpu.barrier_arrive(p_full.at[two])

        @pl.when((n >= 1) & (n - 1 + _STAGES < steps))
        def _refill():
          plgpu.barrier_wait(free.at[lax.rem(n - 1, _STAGES)])
          load(n - 1 + _STAGES)

    @pl.when(group < 2)
    def _state():
      plgpu.set_max_registers(208, action="increase")
      # Whose columns another program carries only keeps the buffers moving.
      carried = lax.rem(lax.div(halves, group + 1), 2)
      mine = steps * carried

      @pl.loop(0, steps - mine)
      def _leave(n):
        slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
        plgpu.barrier_wait(full.at[slot])
        plgpu.barrier_wait(p_full.at[two])
        plgpu.barrier_arrive(p_free.at[two])
        plgpu.barrier_arrive(free.at[slot])

      v0 = group * HALF

      def step(n, ds):
        slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
        chunk = last - 1 - n
        plgpu.barrier_wait(full.at[slot])
        narrow = ds.astype(dtype)  # [64, Dk]

        # Waiting for all but the copy begun last: this buffer's own is older.
        @pl.when(chunk < end)
        def _keep_state():
          plgpu.wait_smem_to_gmem(1, wait_read_only=True)
          ds_s.at[group][...] = narrow
          plgpu.commit_smem()
          plgpu.copy_smem_to_gmem(
            ds_s.at[group], ds_ref.at[row, head, chunk, pl.ds(v0, HALF)]
          )

        gate = registers(g_s.at[slot], layout=COLS)
        total = g_s[slot, CHUNK - 1]
        plgpu.barrier_wait(p_full.at[two])
        left, new = accumulate(
          ((HALF, CHUNK), [(narrow, k_s.at[slot].T)]),
          ((HALF, CHUNK), [(do_s.at[slot, group].T, p_s.at[two])]),
        )
        plgpu.barrier_arrive(p_free.at[two])
        new = new + left * cols(jnp.exp2(total - gate), HALF)
        (dv,) = accumulate((new, [(new.astype(dtype), t_s.at[slot])]))
        dv = dv * cols(registers(b_s.at[slot], layout=COLS), HALF)
        enter = cols(jnp.exp2(gate), HALF)
        do = registers(do_s.at[slot, group].T).astype(jnp.float32) * enter
        (ds,) = accumulate(
          (
            ds * jnp.exp2(total),
            [
              (do.astype(dtype), q_s.at[slot]),
              ((dv * -enter).astype(dtype), k_s.at[slot]),
            ],
          )
        )
        plgpu.barrier_arrive(free.at[slot])

        @pl.when(chunk < end)
        def _write():
          at = pl.ds(chunk * CHUNK, CHUNK)
          plgpu.wait_smem_to_gmem(1, wait_read_only=True)
          dv_s.at[group].T[...] = (dv * scale).astype(dtype)
          plgpu.commit_smem()
          plgpu.copy_smem_to_gmem(
            dv_s.at[group], dv_ref.at[row, at, head, pl.ds(v0, HALF)]
          )

        return ds

      given = registers(end_ref.at[row, head, pl.ds(v0, HALF)], optimized=False)
      known = jnp.where(last == count, 1.0 / scale, 0.0)
      ds = lax.fori_loop(0, mine, step, given * known)

      @pl.when((first == 0) & (carried == 1))
      def _finish():
        start_ref.at[row, head, pl.ds(v0, HALF)][...] = ds * scale

      plgpu.wait_smem_to_gmem(0)

  state = (b, hv, WIDTH, WIDTH)
  return launch(
    body,
    name="delta_rule_reverse",
    out_type=[
      jax.ShapeDtypeStruct(do.shape, dtype),
      jax.ShapeDtypeStruct((b, hv, count, WIDTH, WIDTH), dtype),
      jax.ShapeDtypeStruct(state, jnp.float32),
    ],
    scratch=scratch,
    grid=(b, hv, pieces),
    grid_names=("b", "h", "p"),
    warpgroups=3,
    interpret=interpret,
  )(q, k, do, t, gates, beta, scale, stop, ds)
