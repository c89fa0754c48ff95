"""The gated delta rule on a TPU, forward: all of it in one kernel.

With G the cumulative log decay of a chunk, S [Dk, Dv] the state of a value head
and T = (I + A)^-1, A_ij = beta_i <k_i, k_j> exp(G_i - G_j) below the diagonal:

  E = v - exp(G) k S,  X = T (beta E),
  o = scale (exp(G) q S + P X),  P = tril(q k^t exp(G_i - G_j)),
  S <- exp(G_C) S + k^t (exp(G_C - G) X).

A, T, P and all that is C wide stay in vector memory, and so does the state,
from the first chunk of a row to its last.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import products
from neumann_jax.delta_rule.tpu import packs
from neumann_jax.delta_rule.tpu.grid_plan import (
  CHUNK,
  LANES,
  Blocks,
  Plan,
)
from neumann_jax.delta_rule.tpu.packs import (
  Gates,
  above,
  apart,
  beside,
  lanes,
  rows,
  split,
  spread,
)


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  state: jax.Array,
  *,
  spec: InverseSpec,
  how: Plan,
  keep: bool = False,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, ...]:
  """Outputs of all tokens and the final state.

  Args:
    q: [B, T, Hk, 128] bfloat16 or float32, T a multiple of `how.tokens`.
    k: [B, T, Hk, 128] of q's type.
    v: [B, T, Hv, 128] of q's type.
    log_decay: [B, T, Hv], at least -104.
    beta: [B, T, Hv].
    scale: of the output, scalar.
    state: [B, Hv, 128, 128] float32, before the first token.
    spec: of the inverse, from `inverse_spec.resolve`.
    how: what a grid step holds, from `grid_plan.plan`.
    keep: whether to write what the backward pass reads.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    out [B, T, Hv, 128] in v's type and the final state, float32. With `keep`
    also, in v's type, T beta by packs [B, groups, N packs, C, 2 C] and the
    state before every chunk, or every second one, [B, N / how.kept_every, Hv,
    128, 128].
  """
  (b, t, hk, _), (hv, dv) = k.shape, v.shape[2:]
  layout = Blocks(how, b, t, hk)
  scratch = (how.packs, CHUNK, LANES)
  shaped = functools.partial(
    jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(k).manual_axis_type
  )
  results = [
    (shaped((b, t, hv * dv), v.dtype), layout.tokens(how.values)),
    (shaped(state.shape, jnp.float32), layout.state()),
  ]
  if keep:
    results += [
      (shaped(layout.packs_shape, v.dtype), layout.packs()),
      (shaped(layout.states_shape(hv), v.dtype), layout.states()),
    ]
  out_shape, out_specs = zip(*results)
  out, *rest = lowering.pallas_call(
    functools.partial(_kernel, spec=spec, how=how),
    out_shape=out_shape,
    grid=layout.grid,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      layout.tokens(how.keys),
      layout.tokens(how.keys),
      layout.tokens(how.values),
      layout.gates(),
      layout.state(),
    ],
    out_specs=out_specs,
    scratch_shapes=[
      pltpu.VMEM(scratch, jnp.float32),
      pltpu.VMEM(scratch, jnp.float32),
      pltpu.VMEM(scratch, k.dtype),
    ],
    compiler_params=layout.compiler_params,
    interpret=interpret,
    name="neumann_rule_forward",
  )(
    # Whole in its last two axes, also where `jax.vmap` puts one before.
    scale.reshape(1, 1).astype(jnp.float32),
    *(x.reshape(b, t, -1) for x in (q, k, v)),
    packs.pack_gates(log_decay, beta, how),
    state,
  )
  return out.reshape(v.shape), *rest


def _kernel(
  scale_ref,
  q_ref,
  k_ref,
  v_ref,
  gates_ref,
  init_ref,
  out_ref,
  state_ref,
  *refs,
  spec: InverseSpec,
  how: Plan,
) -> None:
  *kept, a_ref, t_ref, p_ref = refs

  @pl.when(pl.program_id(2) == 0)
  def _enter():
    state_ref[...] = init_ref[...]

  places = list(how.places())
  gates = packs.gates_of(gates_ref, how)
  for at, chunk, pair in places:
    _build(at, chunk, pair, gates[chunk], q_ref, k_ref, a_ref, p_ref, how.ratio)
  packs.invert(a_ref, t_ref, spec)
  refs = (q_ref, k_ref, v_ref, out_ref, state_ref, how.ratio)

  def advance(at: int, chunk: int, pair: tuple[int, int]) -> packs.Pieces:
    # The weights of what T multiplies, on its columns.
    t = t_ref[at] * packs.beta_row(gates[chunk], pair)
    t = t.astype(k_ref.dtype)
    if kept:
      kept[0][0, 0, at] = t
      for head in sorted(set(pair)) if chunk % how.kept_every == 0 else ():
        at_state = (0, chunk // how.kept_every, head)
        kept[1][at_state] = state_ref[0, head].astype(k_ref.dtype)
    return _advance(
      chunk, pair, gates[chunk], t, p_ref[at], scale_ref[0, 0], *refs
    )

  for chunk in range(how.chunks):
    packs.interleave(advance(*x) for x in places if x[1] == chunk)


def _build(
  at: int,
  chunk: int,
  pair: tuple[int, int],
  gates: Gates,
  q_ref,
  k_ref,
  a_ref,
  p_ref,
  ratio: int,
) -> None:
  """A and P of a pack; above the diagonal A is 0 as well."""
  keys = sorted({head // ratio for head in pair})
  at_keys = [(0, rows(chunk), lanes(key)) for key in keys]
  by_query, by_key = packs.grams(
    [q_ref[x] for x in at_keys],
    [k_ref[x] for x in at_keys],
    products.kind_of(k_ref),
  )
  decay = packs.decay(gates, pair)
  p_ref[at] = (by_query * decay).astype(p_ref.dtype)
  a_ref[at] = by_key * decay * packs.beta_col(gates, pair)


def _advance(
  chunk: int,
  pair: tuple[int, int],
  gates: Gates,
  t: jax.Array,
  p: jax.Array,
  scale,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  state_ref,
  ratio: int,
) -> packs.Pieces:
  """Takes the states of a pack's heads through a chunk, and writes outputs."""
  kind, dtype = products.kind_of(k_ref), k_ref.dtype
  dot = functools.partial(packs.dot, kind=kind)
  groups, at = packs.groups(pair, ratio), rows(chunk)
  heads = [head for group in groups for head in group]

  def read(group: list[int]) -> jax.Array:
    """q S and k S, one above the other, of heads side by side."""
    key = lanes(group[0] // ratio)
    states = [state_ref[0, head].astype(dtype) for head in group]
    return dot(above(q_ref[0, at, key], k_ref[0, at, key]), beside(states))

  reads = split(beside([read(group) for group in groups]))  # [2 C, Dv] each
  yield
  enter = [spread(gates.enter, head) for head in heads]
  errors = [
    v_ref[0, at, lanes(head)].astype(jnp.float32) - e * x[CHUNK:]
    for head, e, x in zip(heads, enter, reads)
  ]
  new = split(dot(t, apart([x.astype(dtype) for x in errors])))
  yield
  inner = split(dot(p, apart([x.astype(dtype) for x in new])))
  leaving = {
    head: (spread(gates.leave, head) * x).astype(dtype)
    for head, x in zip(heads, new)
  }
  written = []
  for group in groups:
    k = k_ref[0, at, lanes(group[0] // ratio)]
    some = beside([leaving[head] for head in group])
    written += split(dot(k, some, contracted=(0, 0)))
  yield
  for head, e, x, y in zip(heads, enter, reads, inner):
    out = scale * (e * x[:CHUNK] + y)
    out_ref[0, at, lanes(head)] = out.astype(out_ref.dtype)
  for head, x in zip(heads, written):
    keep = spread(gates.enter[CHUNK - 1 :], head)
    state_ref[0, head] = keep * state_ref[0, head] + x
