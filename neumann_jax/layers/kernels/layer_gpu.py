"""One token of one row through a decoder layer, as one GPU kernel.

Its stages, see `stages`: the projections of the normed row; convolution, gates
and the delta rule of a head; the output's projection, whose programs norm and
gate what they read; gate and up of the normed sum; down. Of a layer with
another mixer the last two.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering
from neumann_jax.delta_rule import layout
from neumann_jax.layers.kernels import layer_plan, layer_stages, stages
from neumann_jax.layers.kernels.layer_plan import (
  FeedForward,
  Mixed,
  Mixer,
  Static,
)
from neumann_jax.layers.kernels.stages import ROWS, Counters


def step(
  static: Static,
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  history: jax.Array | None,
  state: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """The layer's output, the history and the state after the token.

  Args:
    static: what is static.
    x: [K].
    weights: of the second half.
    mixer: of the first half, or what another left of it.
    history: [1, 2 Hk Dk + Hv Dv, W], or None.
    state: [1, Hv, Dk, Dv] float32, or None.

  Returns:
    [K], and the last two as they came.
  """
  y, _, *kept = launched(static, x, weights, mixer, history, state)
  return y, *(kept[:2] if isinstance(mixer, Mixer) else (None, None))


def launched(
  static: Static,
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  history: jax.Array | None,
  state: jax.Array | None,
  *,
  interpret: bool = False,
) -> list[jax.Array]:
  """What `step` gives, behind its first the counters, and sums at the end.

  Args:
    static: as of `step`, like all others but the last.
    x: likewise.
    weights: likewise.
    mixer: likewise.
    history: likewise.
    state: likewise.
    interpret: runs the body on the CPU instead, one program after the other.
  """
  plan = layer_plan.planned(weights, mixer, state)
  size = weights.gate.shape[0]
  vma = jax.typeof(x).manual_axis_type
  shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=vma)

  def sums(cut):
    return [shape((cut.shares * n,), jnp.float32) for n in cut.sizes]

  zeros = layout.varying_as(stages.counters(plan.counters), [x])
  kept: list[Any] = [zeros] if state is None else [zeros, history, state]
  given = [x, *weights, *mixer]
  results = [shape((size,), x.dtype)]
  scratch = [*sums(plan.inner), *sums(plan.down)]
  scratch += [*sums(plan.out), shape((size,), x.dtype)]
  if plan.projections:
    values = shape((plan.heads * ROWS,), x.dtype)
    scratch += [*sums(plan.projections), values]
  return lowering.pallas_call(
    functools.partial(_kernel, static, plan, interpret),
    out_shape=[
      *results,
      *(shape(y.shape, y.dtype) for y in kept),
      *scratch,
    ],
    grid=(sum(plan.units),),
    input_output_aliases={len(given) + n: 1 + n for n in range(len(kept))},
    compiler_params=triton.CompilerParams(num_warps=stages.WARPS, num_stages=1),
    interpret=interpret,
    name="neumann_layer" if plan.projections else "neumann_feed_forward",
  )(*given, *kept)


def _kernel(static, plan, interpret, *refs):
  left = list(refs)

  def take(count):
    return [left.pop(0) for _ in range(count)]

  whole = plan.projections is not None
  x, weights = take(1)[0], FeedForward(*take(len(FeedForward._fields)))
  kind: Any = Mixer if whole else Mixed
  mixer = kind(*take(len(kind._fields)))
  take(3 if whole else 1)  # what is aliased, by its name as an input
  out, zeros = take(2)
  history, state = take(2) if whole else (None, None)
  inner, down = take(2), take(1)
  mixed, middle = take(1), take(1)[0]
  projected, heads = None, None
  if plan.projections:
    projected, heads = take(len(plan.projections.sizes)), take(1)[0]
  found = layer_stages.Refs(
    *(x, weights, mixer, out, history, state, inner, down),
    *(projected, mixed, heads, middle),
  )
  counters = Counters(zeros, interpret)
  ticket = counters.ticket()
  bodies = (
    layer_stages.projections,
    layer_stages.token,
    layer_stages.output,
    layer_stages.gate_and_up,
    layer_stages.down,
  )
  first = 0
  for body, units in zip(bodies, plan.units):
    if units:
      own = (ticket >= first) & (ticket < first + units)
      run = functools.partial(
        body, static, plan, counters, found, ticket - first
      )
      pl.when(own)(run)
    first += units
