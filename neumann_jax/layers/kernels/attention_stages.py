"""What programs do of one token of full attention, in a layer's kernel.

The slots that a query sees are split over programs. Each gives the sum of its
values under weights that are at most 1, the score that they are relative to,
and the sum of the weights; whoever reads a head adds what all of them gave.
These are the three arrays of `Refs.heads`, float32: [parts H D], [parts H] and
[parts H].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax.layers.kernels.layer_plan import SLOTS, Plan
from neumann_jax.layers.kernels.layer_weights import Static
from neumann_jax.layers.kernels.stages import ROWS, Counters, added, wide

# Below every score, and finite: of two that see nothing the difference is 0.
_LOW = -1e30


class _Place(NamedTuple):
  """What a program attends to.

  Attributes:
    query: its head.
    part: which of the programs of the query it is.
    head: of keys and values.
    slot: of the token.
    first: slot that the token sees.
    newest: slot that the cache has.
  """

  query: Any
  part: Any
  head: Any
  slot: Any
  first: Any
  newest: Any


def attend(
  static: Static, plan: Plan, counters: Counters, refs: Any, unit: Any
) -> None:
  """A query against some slots of its key head, the new one too.

  Args:
    static: what is static.
    plan: how the stages are cut.
    counters: of what is done.
    refs: `layer_stages.Refs`; writes to `heads`, and the new slot to `kept`.
    unit: which program of the stage, below H parts: those of a head in a row.
  """
  assert plan.projections
  mixer, (_, room, shared, dim) = refs.mixer, refs.kept[0].shape
  query, part = unit // plan.parts, unit % plan.parts
  head = lax.div(query, plan.heads // shared)
  slot, first = mixer.places[0], mixer.places[1]
  newest = jnp.minimum(slot, room - 1)
  place = _Place(query, part, head, slot, first, newest)
  # Asked for before the program waits for its token.
  held = _held(refs, place, part)
  counters.wait(plan.projected, plan.projections.units)
  q = _turned(static, plan, refs, 0, 2 * query, mixer.q_norm)
  k = _turned(static, plan, refs, 1, head, mixer.k_norm)
  at = lax.broadcasted_iota(jnp.int32, (dim,), 0)
  v = _columns(plan, refs, 2, head * dim + at)
  found = _summed(plan, refs, place, (q, k, v), held)
  _leave(plan, refs, place, (k, v), found)
  counters.add(plan.told + query)


def _held(refs, place, block):
  """Keys and values of a block of slots, 0 behind the newest: [SLOTS, D]."""
  # An array and not a number, by which the interpreter cannot index.
  tile, row = (SLOTS, refs.kept[0].shape[3]), lax.full((), 0, jnp.int32)
  at = row, pl.ds(block * SLOTS, SLOTS), place.head, slice(None)
  slots = block * SLOTS + lax.broadcasted_iota(jnp.int32, tile, 0)
  held = slots <= place.newest
  return [triton.load(ref.at[at], mask=held, other=0.0) for ref in refs.kept]


def _summed(plan, refs, place, token, held):
  """The highest score and the sums under it, of all blocks of a program."""

  def step(n, carry):
    *sums, old = carry
    block = place.part + n * plan.parts
    later = _held(refs, place, block + plan.parts)
    return *_seen(token, place, block, old, *sums), later

  start = (
    jnp.full((), _LOW, jnp.float32),
    jnp.zeros((), jnp.float32),
    jnp.zeros(token[0].shape, jnp.float32),
    held,
  )
  last = lax.div(place.newest, SLOTS)
  # Blocks that are left for a program of a later part may be none.
  steps = lax.div(last - place.part + plan.parts, plan.parts)
  return lax.fori_loop(0, steps, step, start)[:3]


def _leave(plan, refs, place, new, found):
  """Writes what a program has found, and the new slot where it is its own."""
  most, total, out = found
  _, room, shared, dim = refs.kept[0].shape
  at = place.part * plan.heads + place.query
  refs.heads[0][pl.ds(at * dim, dim)] = out
  refs.heads[1][at] = most
  refs.heads[2][at] = total
  # Of the programs that share a key head, one writes it.
  keeps = lax.rem(lax.div(place.newest, SLOTS), plan.parts) == place.part
  keeps &= lax.rem(place.query, plan.heads // shared) == 0

  @pl.when((place.slot < room) & keeps)
  def keep():
    for ref, x in zip(refs.kept, new):
      ref[0, place.slot, place.head, :] = x


def _seen(token, place, block, old, most, total, out):
  """The highest score and the sums under it, with a block of slots more."""
  q, k, v = token
  own = block * SLOTS + lax.broadcasted_iota(jnp.int32, old[0].shape, 0)
  at = block * SLOTS + lax.broadcasted_iota(jnp.int32, (SLOTS,), 0)
  # The cache need not hold the token yet.
  old_k, old_v = (
    jnp.where(own == place.slot, x[None], y) for x, y in zip((k, v), old)
  )
  scores = jnp.sum(wide(q)[None] * wide(old_k), axis=1) * q.shape[0] ** -0.5
  seen = (at <= place.newest) & (at >= place.first)
  scores = jnp.where(seen, scores, _LOW)
  above = jnp.maximum(most, jnp.max(scores))
  weights = jnp.where(seen, jnp.exp(scores - above), 0.0)
  less = jnp.exp(most - above)
  total = total * less + jnp.sum(weights)
  rounded = wide(weights.astype(old_v.dtype))
  out = out * less + jnp.sum(rounded[:, None] * wide(old_v), axis=0)
  return above, total, out


def _columns(plan, refs, n, at):
  """Of one of the projections, rounded."""
  size, part = plan.projections.sizes[n], refs.projected[n]
  shares = range(plan.projections.shares)
  found = [triton.load(part.at[share * size + at]) for share in shares]
  return sum(found[1:], found[0]).astype(refs.x.dtype)


def _turned(static, plan, refs, n, head, weight):
  """A head of queries or keys, normed and rotated: [D]."""
  mixer, dtype, dim = refs.mixer, refs.x.dtype, weight.shape[0]
  at, half = lax.broadcasted_iota(jnp.int32, (dim,), 0), mixer.cos.shape[0]
  low, turns = at < half, at < 2 * half
  x = wide(_columns(plan, refs, n, head * dim + at))
  scale = lax.rsqrt(jnp.sum(x * x) / dim + static.eps)

  def normed(x, at):
    factor = 1.0 + wide(triton.load(weight.at[at]))
    return wide((x * scale * factor).astype(dtype))

  # What an entry is turned with; those behind the rotary ones are not.
  partner = jnp.where(low, at + half, jnp.where(turns, at - half, at))
  angle = jnp.where(low, at, jnp.where(turns, at - half, 0))
  cos = triton.load(mixer.cos.at[angle], mask=turns, other=1.0)
  sin = triton.load(mixer.sin.at[angle], mask=turns, other=0.0)
  other = wide(_columns(plan, refs, n, head * dim + partner))
  sin = jnp.where(low, -sin, sin)
  return (normed(x, at) * cos + normed(other, partner) * sin).astype(dtype)


def gated(plan: Plan, counters: Counters, refs: Any, tile: Any) -> jax.Array:
  """A tile of the gated outputs of a head, rounded.

  Args:
    plan: how the stages are cut.
    counters: of what is done; waits for all parts of the head.
    refs: `layer_stages.Refs`; reads `heads` and the projected gate.
    tile: which ROWS of the H D outputs.

  Returns:
    [ROWS] float32.
  """
  assert plan.projections
  keys, dtype = refs.kept[0], refs.x.dtype
  room, dim = keys.shape[1], keys.shape[3]
  head, inner = lax.div(tile * ROWS, dim), lax.rem(tile * ROWS, dim)
  counters.wait(plan.told + head, plan.parts)
  # Parts that begin behind the newest slot were given nothing.
  newest = jnp.minimum(refs.mixer.places[0], room - 1)
  count = jnp.minimum(lax.div(newest, SLOTS) + 1, plan.parts)
  split = pl.next_power_of_2(plan.parts)

  def load(ref, n, size=1, entry=0, other=0.0):
    at = jnp.minimum(n, plan.parts - 1) * plan.heads + head
    return triton.load(ref.at[at * size + entry], mask=n < count, other=other)

  n = lax.broadcasted_iota(jnp.int32, (split,), 0)
  sums, most, total = refs.heads
  most, total = load(most, n, other=_LOW), load(total, n)
  n, column = (
    lax.broadcasted_iota(jnp.int32, (split, ROWS), axis) for axis in (0, 1)
  )
  parts = load(sums, n, dim, inner + column)
  weights = jnp.exp(most - jnp.max(most))
  out = jnp.sum(weights[:, None] * parts, axis=0) / jnp.sum(weights * total)
  first = (2 * head + 1) * dim + inner
  shares = plan.projections.shares
  gate = added(refs.projected[0], shares, first, ROWS).astype(dtype)
  gate = wide(lax.logistic(wide(gate)).astype(dtype))
  return wide((wide(out.astype(dtype)) * gate).astype(dtype))
