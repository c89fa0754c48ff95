"""The gradients of one pack, two heads of a chunk, see `backward_kernel`."""

from collections.abc import Generator

import jax
import jax.numpy as jnp

from neumann_jax.chunk_inverse.kernels import products
from neumann_jax.delta_rule.tpu import packs
from neumann_jax.delta_rule.tpu.backward_operands import Pack
from neumann_jax.delta_rule.tpu.grid_plan import CHUNK, LANES
from neumann_jax.delta_rule.tpu.packs import (
  above,
  apart,
  beside,
  iota,
  lanes,
  rows,
  split,
  spread,
)


def gradients(
  pack: Pack,
  d_keys: dict[int, jax.Array],
  d_gates: dict[int, jax.Array],
  *,
  integers: bool,
) -> packs.Pieces:
  """All gradients of a pack.

  Args:
    pack: which.
    d_keys: of q and k, one above the other, by key head; added to.
    d_gates: gets, by their lane, what stands in columns of those of the gates.
    integers: as of `backward_kernel.gradients`.
  """
  ref, scale, place = pack.ref, pack.ref.scale[0, 0], rows(pack.chunk)
  if ref.again is None or pack.chunk:
    reads, new = yield from _forward(pack)
  else:
    reads = [ref.again.reads[head] for head in pack.heads]
    new = [ref.again.new[head] for head in pack.heads]
  t = ref.t[0, 0, pack.at]
  by_query, by_key = packs.grams(pack.q, pack.k, products.kind_of(ref.k))
  decay = packs.decay(pack.gates, pack.pair)
  yield
  # The new values and what was read, backward.
  left = pack.by_group(pack.k, pack.narrow)
  d_new = pack.diagonal(scale * by_query * decay, pack.d_out)
  d_new = [x + e * y for x, e, y in zip(d_new, pack.leave, left)]
  yield
  dv = pack.diagonal(t, pack.narrowed(d_new))
  yield
  for head, x in zip(pack.heads, dv):
    ref.dv[0, place, lanes(head)] = x.astype(ref.dv.dtype)
  w, m = _weights(pack, new, dv, decay)
  yield
  by_error = m * by_key
  pairs = w * by_query + by_error
  # What a pair of tokens takes off the gate of the earlier one, in a row.
  sums = jnp.sum(pairs, axis=0, keepdims=True)
  ref.d_rows[0, 0, 0, pack.at : pack.at + 1] = sums
  leaving = [e * x for e, x in zip(pack.leave, new)]
  _through_keys(pack, above(w, m), leaving, dv, d_keys)
  yield
  for i, head in enumerate(pack.heads):
    dg = _through_decay(pack, i, reads[i], leaving[i] * left[i], pairs, dv[i])
    d_gates[head] = dg
    errors = (_errors(pack, i, reads[i]), by_error) if integers else None
    d_beta = _through_beta(pack, i, dv[i], new[i], errors)
    d_gates[head + pack.gates.values] = d_beta


def enter(pack: Pack) -> packs.Pieces:
  """Runs the first of two chunks forward, and writes what it leaves.

  Args:
    pack: of the chunk.
  """
  reads, new = yield from _forward(pack)
  ref = pack.ref
  assert ref.again is not None
  leaving = {
    head: e * x for head, e, x in zip(pack.heads, pack.leave, new, strict=True)
  }
  written = []
  for key, group in zip(pack.k, pack.groups):
    some = beside([leaving[head] for head in group])
    written += split(pack.dot(key, some, (0, 0)))
  yield
  for i, head in enumerate(pack.heads):
    keep = spread(pack.gates.enter[CHUNK - 1 :], head)
    state = keep * pack.states[head].astype(jnp.float32) + written[i]
    ref.again.state[head] = state.astype(ref.k.dtype)
    ref.again.reads[head] = reads[i]
    ref.again.new[head] = new[i]


def _forward(
  pack: Pack,
) -> Generator[None, None, tuple[list[jax.Array], list[jax.Array]]]:
  """What was read and the new values, from T and the state before."""
  reads = pack.by_group(
    [above(x, y) for x, y in zip(pack.q, pack.k)], pack.states
  )
  errors = [_errors(pack, i, x) for i, x in enumerate(reads)]
  yield
  t = pack.ref.t[0, 0, pack.at]
  return reads, split(pack.dot(t, apart(pack.narrowed(errors))))


def _errors(pack: Pack, i: int, reads: jax.Array) -> jax.Array:
  """v less what the state before the chunk gives for k, [C, Dv] float32."""
  v = pack.ref.v[0, rows(pack.chunk), lanes(pack.heads[i])]
  return v.astype(jnp.float32) - pack.enter[i] * reads[CHUNK:]


def _weights(
  pack: Pack, new: list[jax.Array], dv: list[jax.Array], decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """w and m, [C, 2 C] each; 0 in the half of a missing head."""
  both = above(beside(pack.d_out), beside(pack.narrowed(dv)))
  found = pack.dot(both, apart(pack.narrowed(new)), (1, 1))  # [2 C, 2 C]
  row, lane = iota((CHUNK, LANES), 0), iota((CHUNK, LANES), 1)
  strictly = row > (lane & CHUNK - 1)
  w = pack.ref.scale[0, 0] * found[:CHUNK] * decay
  return w, jnp.where(strictly, -found[CHUNK:] * decay, 0.0)


def _through_keys(
  pack: Pack,
  weights: jax.Array,
  leaving: list[jax.Array],
  dv: list[jax.Array],
  d_keys: dict[int, jax.Array],
) -> None:
  """Gradients of q and k, and the cotangents of the states before the chunk."""
  ref = pack.ref
  leaving = pack.narrowed(leaving)
  # The weight of the state in a token's output, and in its error.
  reading = [
    above(ref.scale[0, 0] * e * x.astype(jnp.float32), -e * y)
    for e, x, y in zip(pack.enter, pack.d_out, dv)
  ]
  reading = pack.narrowed(reading)
  weights = weights.astype(ref.k.dtype)
  for i, (key, group) in enumerate(zip(pack.keys, pack.groups)):
    own = [pack.heads.index(head) for head in group]
    q_k = above(pack.q[i], pack.k[i])
    zero = jnp.zeros_like(pack.k[i])
    by_row = above(*(pack.k[i] if n in own else zero for n in range(2)))
    turned = pack.dot(weights, q_k, (0, 0))  # [2 C, Dk]
    inputs = beside([reading[n] for n in own])  # [2 C, Dv] a head
    states = beside([pack.states[head] for head in group])
    found = pack.dot(inputs, states, (1, 1)) + pack.dot(weights, by_row)
    written = pack.dot(
      beside([leaving[n] for n in own]),
      beside([pack.narrow[head] for head in group]),
      (1, 1),
    )
    written = written + sum(turned[rows(n)] for n in own)
    found = found + above(jnp.zeros_like(written), written)
    d_keys[key] = d_keys[key] + found if key in d_keys else found
    before = split(pack.dot(q_k, inputs, (0, 0)))
    for head, x in zip(group, before):
      keep = spread(pack.gates.enter[CHUNK - 1 :], head)
      ref.d_state[0, head] = keep * pack.d_states[head] + x


def _through_decay(
  pack: Pack,
  i: int,
  reads: jax.Array,
  carried: jax.Array,
  pairs: jax.Array,
  dv: jax.Array,
) -> jax.Array:
  """What a column holds of the gradient of G: [C, 1]."""
  head, scale = pack.heads[i], pack.ref.scale[0, 0]
  d_out = pack.d_out[i].astype(jnp.float32)
  reading = scale * d_out * reads[:CHUNK] - dv * reads[CHUNK:]
  own = jnp.where(_half(i), pairs, 0.0)
  dg = _total(pack.enter[i] * reading - carried + own)
  # All that leaves a chunk has the decay of its last token.
  keep = spread(pack.gates.enter[CHUNK - 1 :], head)
  held = keep * pack.states[head].astype(jnp.float32) * pack.d_states[head]
  whole = jnp.sum(held, axis=0, keepdims=True)
  whole = _total(whole + jnp.sum(carried, axis=0, keepdims=True))
  return dg + jnp.where(iota((CHUNK, 1), 0) == CHUNK - 1, whole, 0.0)


def _through_beta(
  pack: Pack,
  i: int,
  dv: jax.Array,
  new: jax.Array,
  errors: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
  """The gradient of beta, [C, 1].

  Args:
    pack: which.
    i: which of its heads.
    dv: cotangent of v, [C, Dv].
    new: X, [C, Dv].
    errors: what v is less what the state gives [C, Dv], and m of pairs times
      their product of keys [C, 2 C], for an inverse by integers; else None.
  """
  at = pack.heads[i] + 2 * pack.gates.values
  beta = pack.gates.cols[:, at : at + 1]
  if errors is None:
    return _total(dv * new) / (beta * beta)
  own, by_error = errors
  return _total(dv * own + jnp.where(_half(i), by_error, 0.0)) / beta


def _total(x: jax.Array) -> jax.Array:
  return jnp.sum(x, axis=1, keepdims=True)


def _half(i: int) -> jax.Array:
  """Where a pack's half of its head `i` is, [C, 2 C]."""
  return iota((CHUNK, LANES), 1) >> 6 == i
