"""What one program of each stage of a layer's kernel does."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from neumann_jax.layers import norms
from neumann_jax.layers.kernels import attention_stages, stages, token_gpu
from neumann_jax.layers.kernels.layer_plan import PART, Plan
from neumann_jax.layers.kernels.layer_weights import (
  Attention,
  FeedForward,
  Mixer,
  Static,
)
from neumann_jax.layers.kernels.stages import ROWS, Counters, added, wide

# Blocks of columns in a tile of the row that they make.
BLOCKS = ROWS // stages.COLUMNS


class Refs(NamedTuple):
  """What the stages read and write.

  Attributes:
    x: the row.
    weights: of the second half.
    mixer: of the first half, or what another left of it.
    out: the result.
    kept: what the mixer keeps, see `Operands`.
    inner: sums of gate and up.
    down: sums of down.
    projected: sums of the mixer's projections.
    mixed: sums of the output's projection.
    heads: what the mixer makes of them: outputs of the rule [Hv Dv], or of
      attention sums of values [parts H D], highest scores [parts H] and sums of
      weights [parts H], float32, see `attention_stages`.
    middle: the sum after the mixer [K].
  """

  x: Any
  weights: FeedForward
  mixer: Any
  out: Any
  kept: Any
  inner: Any
  down: Any
  projected: Any
  mixed: Any
  heads: Any
  middle: Any


def projections(
  static: Static, plan: Plan, counters: Counters, refs: Refs, unit: Any
) -> None:
  """The normed row times columns of the mixer's projections."""
  assert plan.projections
  stages.product(
    *(unit, plan.projections, refs.mixer.projections, refs.projected),
    ready=functools.partial(stages.normed, refs.x, refs.mixer.norm, static.eps),
    done=lambda _: counters.add(plan.projected),
  )


def token(
  static: Static, plan: Plan, counters: Counters, refs: Refs, unit: Any
) -> None:
  """The rule on some columns of the state of a head."""
  assert plan.projections
  mixer, dtype = refs.mixer, refs.x.dtype
  head, part = unit // plan.parts, unit % plan.parts
  key = head // (plan.heads // static.key_heads)
  _, dk, dv = refs.kept[1].shape[1:]
  keys = static.key_heads * dk
  own = pl.ds(part * PART, PART)
  places = {
    "q": (key * dk, dk),
    "k": (keys + key * dk, dk),
    "v": (2 * keys + head * dv + part * PART, PART),
  }
  # All that was there before the token is asked for before the program waits.
  old = refs.kept[1][0, head, :, own]
  before = {name: _columns(refs, *at) for name, at in places.items()}
  counters.wait(plan.projected, plan.projections.units)
  shares = plan.projections.shares

  def convolved(name):
    first, count = places[name]
    taps, columns = before[name]
    new = added(refs.projected[0], shares, first, count).astype(dtype)
    columns = [*columns[1:], new]
    terms = [wide(column) * wide(tap) for column, tap in zip(columns, taps)]
    y = sum(terms[1:], terms[0])
    return wide(stages.silu(y).astype(dtype)), columns

  def unit_norm(x):
    return wide((x * lax.rsqrt(jnp.sum(x * x) + norms.UNIT_EPS)).astype(dtype))

  def gate(n):
    sums = refs.projected[n]
    columns = [sums[share * plan.heads + head] for share in range(shares)]
    return wide(sum(columns[1:], columns[0]).astype(dtype))

  k, q = unit_norm(convolved("k")[0]), unit_norm(convolved("q")[0])
  v, columns = convolved("v")
  beta = static.beta_max * lax.logistic(gate(2))
  a = gate(3) + mixer.dt_bias[head]
  state = jnp.exp(token_gpu.log_decay(mixer.a_log[head], a)) * old
  delta = beta * (v - jnp.sum(k[:, None] * state, axis=0))
  state = state + k[:, None] * delta[None, :]
  out = jnp.sum((q * dk**-0.5)[:, None] * state, axis=0)
  refs.kept[1][0, head, :, own] = state
  refs.heads[0][pl.ds(head * dv + part * PART, PART)] = out.astype(dtype)
  # Columns of values are this program's alone, see `gate_and_up` for others. At
  # the end, when all warps have read: several hold the same column.
  _keep(refs, columns, *places["v"])
  counters.add(plan.told + head)


def _columns(refs, first, count):
  """Taps, and the columns before the token, of some channels."""
  at, taps = pl.ds(first, count), range(refs.mixer.conv.shape[0])
  return (
    [refs.mixer.conv[n, at] for n in taps],
    [refs.kept[0][0, at, n] for n in taps],
  )


def _keep(refs, columns, first, count):
  for n, column in enumerate(columns):
    refs.kept[0][0, pl.ds(first, count), n] = column


def output(
  static: Static, plan: Plan, counters: Counters, refs: Refs, unit: Any
) -> None:
  """Columns of the output's projection; the last one adds them to x."""
  mixer, cut = refs.mixer, plan.out

  def ready(tile):
    if plan.projections is None:
      return wide(mixer.row[pl.ds(tile * ROWS, ROWS)])
    if isinstance(mixer, Attention):
      return attention_stages.gated(plan, counters, refs, tile)
    # A tile is what a head gives: its norm needs no other program.
    counters.wait(plan.told + tile, plan.parts)
    return _gated(static, plan.projections.shares, refs, tile)

  def done(block):
    last = counters.add(plan.summed + block) == cut.shares - 1

    @pl.when(last)
    def finish():
      _sum_onto(refs.mixed[0], cut, block, refs.x, refs.middle)
      counters.add(plan.mixed)

  stages.product(unit, cut, [mixer.out], refs.mixed, ready, done)


def _gated(static, shares, refs, head):
  """The gated norm of what the rule gives for a head."""
  dtype, at = refs.x.dtype, head * ROWS
  out = wide(refs.heads[0][pl.ds(at, ROWS)])
  mean = jnp.sum(out * out) / ROWS
  scaled = wide((out * lax.rsqrt(mean + static.eps)).astype(dtype))
  scaled = wide(
    (wide(refs.mixer.out_norm[:].astype(dtype)) * scaled).astype(dtype)
  )
  z = added(refs.projected[1], shares, at, ROWS).astype(dtype)
  return wide((scaled * stages.silu(wide(z))).astype(dtype))


def _sum_onto(part, cut, block, x, out):
  """Adds what all shares of a block of columns have summed to x."""
  at = pl.ds(block * stages.COLUMNS, stages.COLUMNS)
  total = added(part, cut.shares, block * stages.COLUMNS, stages.COLUMNS)
  out[at] = (wide(x[at]) + wide(total.astype(x.dtype))).astype(x.dtype)


def gate_and_up(
  static: Static, plan: Plan, counters: Counters, refs: Refs, unit: Any
) -> None:
  """Columns of gate and up of the normed sum."""
  weights = refs.weights

  def ready(tile):
    counters.wait(plan.mixed, plan.out.starts[-1])
    return stages.normed(refs.middle, weights.norm, static.eps, tile)

  def done(block):
    # By the tile of down's row that these columns are of.
    counters.add(plan.gated + block // BLOCKS)

  matrices = [weights.gate, weights.up]
  stages.product(unit, plan.inner, matrices, refs.inner, ready, done)
  if isinstance(refs.mixer, Mixer):
    # Now that all programs of a head have read it, and nobody waits for it.
    pl.when(unit < 2 * static.key_heads)(
      functools.partial(_shift, plan, counters, refs, unit)
    )


def _shift(plan, counters, refs, unit):
  """Moves the history of the queries or the keys of a head on."""
  dk, dtype = refs.kept[1].shape[2], refs.x.dtype
  _, before = _columns(refs, unit * dk, dk)
  shares = plan.projections.shares
  new = added(refs.projected[0], shares, unit * dk, dk).astype(dtype)
  counters.barrier()
  _keep(refs, [*before[1:], new], unit * dk, dk)


def down(
  static: Static, plan: Plan, counters: Counters, refs: Refs, unit: Any
) -> None:
  """Columns of the last projection; the last one adds them."""
  del static
  dtype, cut = refs.x.dtype, plan.down

  def ready(tile):
    counters.wait(plan.gated + tile, 2 * BLOCKS * plan.inner.shares)
    gate, up = (
      added(sums, plan.inner.shares, tile * ROWS, ROWS).astype(dtype)
      for sums in refs.inner
    )
    return wide(stages.silu(wide(gate)).astype(dtype) * up)

  def done(block):
    last = counters.add(plan.ended + block) == cut.shares - 1
    end = functools.partial(
      _sum_onto, refs.down[0], cut, block, refs.middle, refs.out
    )
    pl.when(last)(end)

  stages.product(unit, cut, [refs.weights.down], refs.down, ready, done)
