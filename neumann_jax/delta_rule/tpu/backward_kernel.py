"""The gradient of the gated delta rule on a TPU: all of it in one kernel.

A row is walked from its end, a kept state at a time: of its two chunks the
first runs forward again, for the state before the second. In the notation of
`forward_kernel`, with dS the cotangent of the state after a chunk, scale inside
P and w, and D_ij = exp(G_i - G_j):

  dX = P^t dO + exp(G_C - G) k dS,  dv = beta T^t dX,
  w = scale tril(dO X^t) D,  m = -tril(dv X^t, -1) D,
  dq = scale exp(G) dO S^t + w k,
  dk = exp(G_C - G) X dS^t - exp(G) dv S^t + w^t q + m k + m^t k,
  dbeta = <dv, X> / beta^2,
  dS <- exp(G_C) dS + q^t (scale exp(G) dO) - k^t (exp(G) dv).

A pair of tokens adds what it weighs, w_ij <q_i, k_j> + m_ij <k_i, k_j>, to dG_i
and takes it off dG_j; the states add what their weights carry.

An inverse by integers has an error that does not shrink with beta, which X /
beta would enlarge. With one, dbeta is taken as

  dbeta = (<dv, v - exp(G) k S> + sum_j m_ij <k_i, k_j>) / beta.

Floating types round T by a share of beta, and the first form is then the nearer
one: 0.038 beside 0.043 in bfloat16 on the worst keys, beta to 2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.delta_rule.tpu import backward_operands, backward_step, packs
from neumann_jax.delta_rule.tpu.grid_plan import CHUNK, LANES, Blocks, Plan
from neumann_jax.delta_rule.tpu.packs import iota, lanes, rows


class Gradients(NamedTuple):
  """Cotangents of what `forward_kernel` takes, in float32 but for dv."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  log_decay: jax.Array
  beta: jax.Array
  state: jax.Array


def gradients(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  t: jax.Array,
  states: jax.Array,
  d_out: jax.Array,
  d_final: jax.Array,
  *,
  how: Plan,
  integers: bool,
  interpret: bool | pltpu.InterpretParams = False,
) -> Gradients:
  """Cotangents of all operands.

  Args:
    q: as of `forward_kernel.forward`, like all that it takes as well.
    k: likewise.
    v: likewise.
    log_decay: likewise.
    beta: likewise; above 0.
    scale: likewise.
    t: from `forward_kernel.forward`.
    states: likewise.
    d_out: [B, T, Hv, 128], cotangent of the outputs.
    d_final: [B, Hv, 128, 128] float32, of the final state.
    how: the plan of the forward pass, with the chunks of one kept state.
    integers: whether those of the inverse made `t`.
    interpret: True or InterpretParams runs the body on the CPU instead.
  """
  (b, length, hk, dk), (hv, dv) = k.shape, v.shape[2:]
  layout = Blocks(how, b, length, hk, back=True)
  shaped = functools.partial(
    jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(k).manual_axis_type
  )
  gates = packs.pack_gates(log_decay, beta, how)
  out = lowering.pallas_call(
    functools.partial(_kernel, how=how, integers=integers),
    out_shape=[
      shaped((b, length, hk * dk), q.dtype),
      shaped((b, length, hk * dk), k.dtype),
      shaped((b, length, hv * dv), v.dtype),
      shaped(layout.columns_shape, jnp.float32),
      shaped(layout.rows_shape, jnp.float32),
      shaped(d_final.shape, jnp.float32),
    ],
    grid=layout.grid,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      layout.tokens(how.keys),
      layout.tokens(how.keys),
      layout.tokens(how.values),
      layout.tokens(how.values),
      layout.gates(),
      layout.packs(),
      layout.states(),
      layout.state(),
    ],
    out_specs=[
      layout.tokens(how.keys),
      layout.tokens(how.keys),
      layout.tokens(how.values),
      layout.columns(),
      layout.rows(),
      layout.state(),
    ],
    # Gradients take the place of what they are of, block by block.
    input_output_aliases={1: 0, 2: 1, 3: 2, 8: 5},
    scratch_shapes=[
      pltpu.VMEM((how.values, 2 * CHUNK, LANES), jnp.float32),
      pltpu.VMEM((how.values, CHUNK, LANES), jnp.float32),
      pltpu.VMEM((how.values, LANES, LANES), k.dtype),
    ]
    if how.chunks == 2
    else [],
    compiler_params=layout.compiler_params,
    interpret=interpret,
    name="neumann_rule_backward",
  )(
    # Whole in its last two axes, also where `jax.vmap` puts one before.
    scale.reshape(1, 1).astype(jnp.float32),
    *(x.reshape(b, length, -1) for x in (q, k, v, d_out)),
    *(gates, t, states, d_final),
  )
  dq, dk_, dv_, d_columns, d_rows, d_state = out
  dg, d_beta = _unpacked(d_columns, d_rows, how)
  return Gradients(
    dq.reshape(q.shape),
    dk_.reshape(k.shape),
    dv_.reshape(v.shape),
    dg,
    d_beta,
    d_state,
  )


def _unpacked(d_columns, d_rows, how: Plan) -> tuple[jax.Array, jax.Array]:
  """Cotangents of log_decay and beta, [B, T, Hv] each."""
  b, groups = d_columns.shape[:2]
  width, values = LANES // how.parts, how.values
  # [B, groups, N, tokens of a run, runs, lanes of a run]
  x = d_columns.reshape(b, groups, -1, CHUNK // how.parts, how.parts, width)
  x = jnp.swapaxes(x, 3, 4).reshape(*x.shape[:3], CHUNK, width)
  pairs = d_rows.reshape(b, groups, x.shape[2], -1, CHUNK)
  # Not the second half of a pack whose second head is missing.
  pairs = jnp.swapaxes(pairs[..., :values, :], 3, 4)
  # A token's gate is in the sum of every later token of its chunk.
  dg = jax.lax.cumsum(x[..., :values] - pairs, axis=3, reverse=True)
  dg, d_beta = (
    jnp.moveaxis(y, 1, 3).reshape(b, -1, groups * values)
    for y in (dg, x[..., values : 2 * values])
  )
  return dg, d_beta


def _kernel(*refs: Any, how: Plan, integers: bool) -> None:
  again, count = None, len(backward_operands.Refs._fields) - 1
  if how.chunks == 2:
    again = backward_operands.Again(*refs[count:])
  ref = backward_operands.Refs._make([*refs[:count], again])

  @pl.when(pl.program_id(2) == 0)
  def _enter():
    ref.d_state[...] = ref.d_final[...]

  gates = packs.gates_of(ref.gates, how)
  places = list(how.places())
  if how.chunks == 2:
    packs.interleave(
      backward_step.enter(
        backward_operands.load(ref, at, 0, pair, gates[0], how.ratio)
      )
      for at, own, pair in places
      if own == 0
    )
  for chunk in reversed(range(how.chunks)):
    d_keys: dict[int, jax.Array] = {}
    d_gates: dict[int, jax.Array] = {}
    packs.interleave(
      backward_step.gradients(
        backward_operands.load(ref, at, chunk, pair, gates[chunk], how.ratio),
        d_keys,
        d_gates,
        integers=integers,
      )
      for at, own, pair in places
      if own == chunk
    )
    for key, x in d_keys.items():
      place = (0, rows(chunk), lanes(key))
      ref.dq[place] = x[:CHUNK].astype(ref.dq.dtype)
      ref.dk[place] = x[CHUNK:].astype(ref.dk.dtype)
    run = CHUNK // how.parts
    ref.d_columns[0, 0, slice(chunk * run, (chunk + 1) * run), :] = _columns(
      d_gates, how
    )


def _columns(d_gates: dict[int, jax.Array], how: Plan) -> jax.Array:
  """Columns of a chunk by their lane, [C, 1] each, run beside run."""
  run, width = CHUNK // how.parts, LANES // how.parts
  lane = iota((run, LANES), 1)
  columns = jnp.zeros((run, LANES), jnp.float32)
  for at, x in d_gates.items():
    for part in range(how.parts):
      tokens = x[part * run : (part + 1) * run]
      columns = jnp.where(lane == part * width + at, tokens, columns)
  return columns
