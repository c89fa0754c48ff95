"""One token of one row through a decoder layer, as one GPU kernel.

Its stages, see `stages`: the projections of the normed row; convolution, gates
and the delta rule of a head, or attention to some slots of the cache; the
output's projection, whose programs norm and gate what they read; gate and up of
the normed sum; down. Of a layer with another mixer the last three.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering
from neumann_jax.delta_rule import layout
from neumann_jax.layers.kernels import (
  attention_stages,
  layer_plan,
  layer_stages,
  stages,
)
from neumann_jax.layers.kernels.layer_weights import (
  Attention,
  FeedForward,
  Mixer,
  Operands,
  Static,
)
from neumann_jax.layers.kernels.stages import ROWS, Counters


def step(static: Static, given: Operands) -> tuple[jax.Array, ...]:
  """The layer's output, and what the mixer keeps after the token.

  Args:
    static: what is static.
    given: of the step, x [K].

  Returns:
    [K], and what is kept as it came.
  """
  y, _, *found = launched(static, given)
  return y, *found[: len(given.kept)]


def launched(
  static: Static, operands: Operands, *, interpret: bool = False
) -> list[jax.Array]:
  """What `step` gives, behind its first the counters, and sums at the end.

  Args:
    static: as of `step`.
    operands: likewise.
    interpret: runs the body on the CPU instead, one program after the other.
  """
  x, weights, mixer, kept = operands
  plan = layer_plan.planned(operands)
  size = weights.gate.shape[0]
  vma = jax.typeof(x).manual_axis_type
  shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=vma)

  def sums(cut):
    return [shape((cut.shares * n,), jnp.float32) for n in cut.sizes]

  zeros = layout.varying_as(stages.counters(plan.counters), [x])
  given, changed = [x, *weights, *mixer], [zeros, *kept]
  scratch = [*sums(plan.inner), *sums(plan.down)]
  scratch += [*sums(plan.out), shape((size,), x.dtype)]
  if plan.projections:
    scratch += sums(plan.projections)
  if isinstance(mixer, Mixer):
    scratch += [shape((plan.heads * ROWS,), x.dtype)]
  if isinstance(mixer, Attention):
    rows, dim = plan.parts * plan.heads, kept[0].shape[-1]
    scratch += [shape((n,), jnp.float32) for n in (rows * dim, rows, rows)]
  return lowering.pallas_call(
    functools.partial(_kernel, static, plan, type(mixer), interpret),
    out_shape=[
      shape((size,), x.dtype),
      *(shape(y.shape, y.dtype) for y in changed),
      *scratch,
    ],
    grid=(sum(plan.units),),
    input_output_aliases={len(given) + n: 1 + n for n in range(len(changed))},
    compiler_params=triton.CompilerParams(num_warps=stages.WARPS, num_stages=1),
    interpret=interpret,
    name="neumann_layer" if plan.projections else "neumann_feed_forward",
  )(*given, *changed)


def _kernel(static, plan, kind, interpret, *refs):
  left = list(refs)

  def take(count):
    return [left.pop(0) for _ in range(count)]

  x, weights = take(1)[0], FeedForward(*take(len(FeedForward._fields)))
  mixer = kind(*take(len(kind._fields)))
  keeps = 2 if plan.projections else 0
  take(1 + keeps)  # what is aliased, by its name as an input
  out, zeros = take(2)
  kept, inner, down = take(keeps), take(2), take(1)
  mixed, middle = take(1), take(1)[0]
  projected = take(len(plan.projections.sizes)) if plan.projections else []
  found = layer_stages.Refs(
    *(x, weights, mixer, out, kept, inner, down, projected, mixed),
    *(left, middle),
  )
  counters = Counters(zeros, interpret)
  ticket = counters.ticket()
  attends = kind is Attention
  bodies = (
    layer_stages.projections,
    attention_stages.attend if attends else layer_stages.token,
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
