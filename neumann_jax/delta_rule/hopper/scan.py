"""The recurrence over chunks, forward, on a Hopper GPU.

With R = T - I of every chunk, S^T [Dv, Dk] the state and G the gates' sums in
base 2:

  E = beta (v - 2^G k S),  X = T E = E + R E,
  o = scale (2^G q S + P X),  P = tril(q k^t 2^(G_i - G_j)),
  S <- 2^G_C S + k^t (2^(G_C - G) X).

The diagonal of T multiplies E as it is, only R takes it rounded.

Two warpgroups carry 64 columns of values each, through three waits a chunk; a
third loads and forms P. A row is cut into pieces that run side by side. Each
starts early enough, at a chunk before its own, that what it does not know has
decayed below the rounding of float32: `start` says where it begins to run, 0
being exact, and where to write. Where nothing decays, a row is one chain, and
two programs carry half of its columns each: alone on a multiprocessor, a
warpgroup takes a chunk in 1.6 us in place of 2.3 (H200).
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
  zeros,
)

_STAGES = 3


def outputs(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  start: jax.Array,
  state: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Outputs of all tokens and the final state.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64.
    k: [B, T, Hk, Dk] bfloat16.
    v: [B, T, Hv, Dv] bfloat16.
    t: R = T - I [B, Hv, T, C] bfloat16, from `wy_gpu.inverse`.
    gates: G [B, Hv, T] float32, in base 2.
    beta: [B, Hv, T] float32, above 0.
    scale: of the output, [1] float32.
    start: [B, Hv, P, 4] int32, the chunks at which each piece of a row begins
      to run and to write, the end of both, and its halves of the columns, 3
      being both.
    state: [B, Hv, Dv, Dk] float32, the transposed state before the first token.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    out [B, T, Hv, Dv] and the final state, transposed, [B, Hv, Dv, Dk] float32.
  """
  return _scan(q, k, v, t, gates, beta, scale, start, state, interpret)


def states(
  k: jax.Array,
  v: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  start: jax.Array,
  state: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """What the backward pass reads of the recurrence; arguments as `outputs`.

  Returns:
    Y = X / beta [B, T, Hv, Dv] and the transposed state before every chunk
    [B, Hv, N, Dv, Dk], both bfloat16.
  """
  return _scan(None, k, v, t, gates, beta, None, start, state, interpret)


def _scan(q, k, v, t, gates, beta, scale, start, state, interpret):
  b, length, hk, _ = k.shape
  hv, pieces = v.shape[2], start.shape[2]
  count = length // CHUNK
  dtype, forward = k.dtype, q is not None
  value = jax.ShapeDtypeStruct(v.shape, dtype)
  if forward:
    out_type = [value, jax.ShapeDtypeStruct((b, hv, WIDTH, WIDTH), jnp.float32)]
  else:
    out_type = [
      value,
      jax.ShapeDtypeStruct((b, hv, count, WIDTH, WIDTH), dtype),
    ]
  vector = plgpu.SMEM((_STAGES, CHUNK), jnp.float32)
  scratch = {
    "k_s": shared((_STAGES, CHUNK, WIDTH), dtype),
    "v_s": shared((_STAGES, 2, CHUNK, HALF), dtype),
    "t_s": shared((_STAGES, CHUNK, CHUNK), dtype),
    "g_s": vector,
    "b_s": vector,
    "x_s": shared((2, CHUNK, HALF), dtype),
    "full": plgpu.Barrier(
      num_arrivals=8 if forward else 6, num_barriers=_STAGES
    ),
    "free": plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
  }
  if forward:
    scratch |= {
      "q_s": shared((_STAGES, CHUNK, WIDTH), dtype),
      # Memory is read in one layout each: rows of P and columns of all else.
      "r_s": vector,
      "p_s": shared((2, CHUNK, CHUNK), dtype),
      "p_full": plgpu.Barrier(num_barriers=2),
      "p_free": plgpu.Barrier(num_arrivals=2, num_barriers=2),
    }
  else:
    scratch |= {"h_s": shared((2, HALF, WIDTH), dtype)}

  def body(*refs, k_s, v_s, t_s, g_s, b_s, x_s, full, free, **rest):
    if forward:
      q_ref, k_ref, v_ref, t_ref, g_ref, b_ref, scale_ref, *others = refs
      q_s, r_s, p_s, p_full, p_free = (
        rest[n] for n in ("q_s", "r_s", "p_s", "p_full", "p_free")
      )
    else:
      k_ref, v_ref, t_ref, g_ref, b_ref, *others = refs
      h_s = rest["h_s"]
    start_ref, s_ref, x_ref, h_ref = others
    row, head = lax.axis_index("b"), lax.axis_index("h")
    piece, group = lax.axis_index("p"), lax.axis_index("warpgroup")
    key_head = lax.div(head, hv // hk)
    first = start_ref[row, head, piece, 0]
    own = start_ref[row, head, piece, 1]
    end = start_ref[row, head, piece, 2]
    halves = start_ref[row, head, piece, 3]
    steps = end - first

    def load(n):
      slot = lax.rem(n, _STAGES)
      at = pl.ds((first + n) * CHUNK, CHUNK)
      bar = full.at[slot]
      copy = plgpu.copy_gmem_to_smem
      copy(k_ref.at[row, at, key_head], k_s.at[slot], bar)
      copy(t_ref.at[row, head, at], t_s.at[slot], bar)
      if forward:
        copy(q_ref.at[row, at, key_head], q_s.at[slot], bar)
        copy(g_ref.at[row, head, at], r_s.at[slot], bar)
      for i in range(2):
        half = pl.ds(i * HALF, HALF)
        copy(v_ref.at[row, at, head, half], v_s.at[slot, i], bar)
      copy(g_ref.at[row, head, at], g_s.at[slot], bar)
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
        if forward:
          plgpu.barrier_wait(full.at[slot])
          (gram,) = accumulate(
            ((CHUNK, CHUNK), [(q_s.at[slot], k_s.at[slot].T)])
          )
          by_row = registers(r_s.at[slot], layout=ROWS)
          by_col = registers(g_s.at[slot], layout=COLS)
          gram = gram * decay(by_row, by_col, strict=False)

          @pl.when(n >= 2)
          def _p_slot():
            plgpu.barrier_wait(p_free.at[two])

          p_s.at[two][...] = gram.astype(dtype)
          plgpu.commit_smem()
          plgpu.barrier_arrive(p_full.at[two])

        # The chunk before this one: waiting for its buffers here, after P of
        # this chunk is out, leaves two chunks of loads in flight.
        @pl.when((n >= 1) & (n - 1 + _STAGES < steps))
        def _refill():
          plgpu.barrier_wait(free.at[lax.rem(n - 1, _STAGES)])
          load(n - 1 + _STAGES)

    @pl.when(group < 2)
    def _state():
      plgpu.set_max_registers(208, action="increase")
      scale = scale_ref[0] if forward else 1.0
      # Whose columns another program carries only keeps the buffers moving.
      carried = lax.rem(lax.div(halves, group + 1), 2)
      mine = steps * carried

      @pl.loop(0, steps - mine)
      def _leave(n):
        slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
        plgpu.barrier_wait(full.at[slot])
        plgpu.barrier_arrive(free.at[slot])
        if forward:
          plgpu.barrier_wait(p_full.at[two])
          plgpu.barrier_arrive(p_free.at[two])

      v0 = group * HALF

      def write(n, tile):
        @pl.when((n >= 0) & (first + n >= own))
        def _write():
          at = pl.ds((first + n) * CHUNK, CHUNK)
          plgpu.wait_smem_to_gmem(0, wait_read_only=True)
          x_s.at[group].T[...] = tile
          plgpu.commit_smem()
          plgpu.copy_smem_to_gmem(
            x_s.at[group], x_ref.at[row, at, head, pl.ds(v0, HALF)]
          )

      def step(n, carry):
        state, before = carry
        slot, two = lax.rem(n, _STAGES), lax.rem(n, 2)
        plgpu.barrier_wait(full.at[slot])
        gate = registers(g_s.at[slot], layout=COLS)
        last = g_s[slot, CHUNK - 1]
        narrow = state.astype(dtype)  # [64, Dk]
        if not forward:

          @pl.when(first + n >= own)
          def _keep_state():
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            h_s.at[group][...] = narrow
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
              h_s.at[group], h_ref.at[row, head, first + n, pl.ds(v0, HALF)]
            )

        reads = [((HALF, CHUNK), [(narrow, k_s.at[slot].T)])]
        if forward:
          reads.append(((HALF, CHUNK), [(narrow, q_s.at[slot].T)]))
        # The chunk before is written while the tensor cores are busy.
        seen, *read = accumulate(
          *reads, meanwhile=functools.partial(write, n - 1, before)
        )
        enter = cols(jnp.exp2(gate), HALF)
        value = registers(v_s.at[slot, group].T).astype(jnp.float32)
        beta = registers(b_s.at[slot], layout=COLS)
        error = (value - seen * enter) * cols(beta, HALF)
        (new,) = accumulate((error, [(error.astype(dtype), t_s.at[slot].T)]))
        leave = cols(jnp.exp2(last - gate), HALF)
        chains = [
          (
            state * jnp.exp2(last),
            [((new * leave).astype(dtype), k_s.at[slot])],
          )
        ]
        if forward:
          plgpu.barrier_wait(p_full.at[two])
          chains.append((read[0] * enter, [(new.astype(dtype), p_s.at[two].T)]))
        state, *out = accumulate(*chains)
        plgpu.barrier_arrive(free.at[slot])
        if forward:
          plgpu.barrier_arrive(p_free.at[two])
          new = out[0] * scale
        else:
          new = new * cols(1.0 / beta, HALF)
        return state, new.astype(dtype)

      given = registers(s_ref.at[row, head, pl.ds(v0, HALF)], optimized=False)
      known = jnp.where(first == 0, 1.0, 0.0)
      carry = given * known, zeros((HALF, CHUNK), dtype)
      state, before = lax.fori_loop(0, mine, step, carry)
      write(mine - 1, before)
      if forward:

        @pl.when((end == count) & (carried == 1))
        def _finish():
          h_ref.at[row, head, pl.ds(v0, HALF)][...] = state

      plgpu.wait_smem_to_gmem(0)

  shared_by_both = (k, v, t, gates, beta)
  arrays = (q, *shared_by_both, scale) if forward else shared_by_both
  return launch(
    body,
    name="delta_rule_outputs" if forward else "delta_rule_states",
    out_type=out_type,
    scratch=scratch,
    grid=(b, hv, pieces),
    grid_names=("b", "h", "p"),
    warpgroups=3,
    interpret=interpret,
  )(*arrays, start, state)
