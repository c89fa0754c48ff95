"""The gated delta rule with its tokens split over a mesh axis.

A shard maps the state that enters it affinely, S -> M S + b with M [Dk, Dk] per
value head, and so does every read of the state on the way: o_t = a_t + P_t S.
One scan over a shard's chunks, started from the columns [0, I] instead of S,
yields b and M, and all a_t and P_t, before anything of the other shards is
known. Then the maps are gathered, every shard composes those before it into
the state that enters it, and adds P_t S to its outputs.

Per value head and token the scan takes Dv + Dk columns where one device takes
Dv, and the last product Dk Dv more: 7/3 of the state's products for Dk = Dv,
while the inverse and everything that needs no state stay the same. A device
receives shards (Dk + Dv) Dk numbers a value head and row, once: 33 MB for 8
shards, 32 heads of 128 and one row. A chain of neighbours would send Dk Dv a
hop, but each hop would wait for the one before it, forward and backward; a
parallel prefix would multiply the M, Dk / Dv of the gathered work for log2
rounds more. The products with gathered maps, shards Dk^2 Dv a head, are less
than the rest as soon as a shard is longer than Dk shards / 7.

On a Hopper GPU the map comes from a shard's last chunks alone, before the rule
of one device: see `hopper_shards`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import sequence_axis
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import (
  api,
  inputs,
  isolation,
  kept_names,
  layout,
  precision,
)
from neumann_jax.delta_rule.hopper import rule as hopper_rule
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.on_mesh import on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.sequence_parallel import (
  columns,
  hopper_shards,
  shard_maps,
)


def sharded_delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  axis_name: str,
  scale: float | None = None,
  initial_state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  chunk_size: int = 64,
  spec: InverseSpec = InverseSpec(),  # noqa: B008  (frozen)
  fused: bool = False,
  implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_rule` of the whole sequence, inside `jax.shard_map`.

  L = T / shards tokens are here. Chunks are cut a shard at a time: with L a
  multiple of C they are those of a single device, and so is what a rounded
  inverse makes of them. Exactly zero gradients between documents stay so
  across shards.

  Products take 16-bit q, k and v as `gated_delta_rule` does, and round b and M
  where one device rounds the state: both forms are equally near to the exact
  rule, not within float32 of each other. What shards exchange and how they
  compose it is float32.

  Args:
    q: [B, L, Hk, Dk], this shard's tokens, like all operands.
    k: [B, L, Hk, Dk].
    v: [B, L, Hv, Dv].
    log_decay: [B, L, Hv].
    beta: [B, L, Hv].
    axis_name: the mesh axis that splits the tokens.
    scale: of the output; None is Dk^-0.5.
    initial_state: [B, Hv, Dk, Dv] before the first shard, the same in all
      shards; None is zero.
    segment_ids: [B, L] integers, one of its own for each document of the whole
      sequence. A document goes on where a shard begins with the id that the
      one before ended with.
    chunk_size: as for `gated_delta_rule`, like all that follow.
    spec: of the inverse.
    fused: whether u and w come from one kernel.
    implementation: back end; the scan over chunks is that of XLA, or on a TPU
      the kernels of `gated_delta_rule` where they take the operands, of twice
      the value heads. Then a_t and P_t are rounded to v's type before they are
      added. On a Hopper GPU, where its kernels take the operands, see
      `hopper_shards`.

  Returns:
    out [B, L, Hv, Dv] in v's dtype, and the state after the last shard
    [B, Hv, Dk, Dv], the same in all shards.

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: as `gated_delta_rule`, or if the axis is unknown.
  """
  return over_shards(
    Operands(q, k, v, log_decay, beta),
    RuleOptions(
      chunk_size, spec, fused, implementation, sequence_axis=axis_name
    ),
    scale=scale,
    initial_state=initial_state,
    segment_ids=segment_ids,
  )


def over_shards(
  arrays: Operands,
  how: RuleOptions,
  *,
  scale: float | None = None,
  initial_state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`sharded_delta_rule` of packed operands and options; raises as it does."""
  if how.sequence_axis is None:
    raise ValueError("sequence_axis must name the mesh axis of the tokens")
  sequence_axis.axis_size(how.sequence_axis)
  api.check(arrays, initial_state, segment_ids, how)
  scale = precision.output_scale(scale, arrays.q)
  rule = on_mesh(_by_shards, arrays, how)
  return rule(arrays, scale, initial_state, segment_ids, how)


@functools.partial(jax.jit, static_argnums=4)
def _by_shards(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  axis_name = how.sequence_axis
  assert axis_name is not None  # over_shards has checked
  if segment_ids is None:
    return _of_finite(arrays, scale, initial_state, None, how, axis_name)
  arrays, state, taint = _isolated(
    arrays, initial_state, segment_ids, axis_name
  )
  found = _of_finite(arrays, scale, state, segment_ids, how, axis_name)
  return isolation.restore(*found, taint)


def _isolated(
  arrays: Operands,
  state: jax.Array | None,
  segment_ids: jax.Array,
  axis_name: str,
) -> tuple[Operands, jax.Array | None, isolation.Taint]:
  """`isolation.isolate`, for documents that go on from shard to shard."""
  own = isolation.isolate(arrays, None, segment_ids)[2].state  # [B, Hv]
  first = jnp.zeros_like(own)
  if state is not None:
    bad = ~jnp.isfinite(state).all(axis=(-2, -1))
    state = isolation.clean(state, bad[..., None, None])
    first = layout.varying_as(bad, (own,))
  single = ~inputs.segment_starts(segment_ids).any(axis=1)  # [B]
  joins = sequence_axis.continues(segment_ids, own.shape[0], axis_name)
  flags = lax.all_gather((own, single, joins), axis_name)

  def after(entering, shard):
    own, single, joins = shard
    entering = entering & joins[:, None]
    return own | (entering & single[:, None]), entering

  first = layout.varying_as(first, flags)
  _, entering = lax.scan(after, first, flags)
  before = sequence_axis.own(entering, axis_name)
  arrays, _, taint = isolation.isolate(arrays, None, segment_ids, before)
  last = sequence_axis.from_last(taint.state.astype(jnp.int32), axis_name)
  return arrays, state, taint._replace(state=last > 0)


def _of_finite(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
  axis_name: str,
) -> tuple[jax.Array, jax.Array]:
  q, k, v, log_decay, beta = arrays
  first = layout.grouped_state(initial_state, k, v, q, log_decay, beta)
  first = layout.flat_state(first)
  # A shard that begins with a new document reads nothing of those before it.
  reads = sequence_axis.continues(segment_ids, v.shape[0], axis_name)
  given = arrays, scale, first, reads, segment_ids, how
  if hopper_rule.takes(arrays, how):
    out, last = hopper_shards.rule(*given, _by_columns)
  else:
    out, last = _by_columns(*given)
  found = out, sequence_axis.from_last(last, axis_name)
  return kept_names.named(found, kept_names.OUTPUTS)


def _by_columns(arrays, scale, first, reads, segment_ids, how):
  """The outputs, and the state that leaves this shard."""
  dk, dv = first.shape[-2:]
  identity = jnp.eye(dk, dtype=first.dtype)
  # Not read, the propagator starts from 0.
  identity = jnp.where(reads[:, None, None, None], identity, 0)
  identity = jnp.broadcast_to(identity, (*first.shape[:-1], dk))
  # One scan for both: b from a state of 0, M from the columns of I.
  start = jnp.concatenate([jnp.zeros_like(first), identity], axis=-1)
  batch, heads = start.shape[0], arrays.k.shape[2]
  start = start.reshape(batch, heads, -1, *start.shape[2:])
  out, own = columns.columns(arrays, scale, start, segment_ids, how)
  b, m = jnp.split(layout.flat_state(own), [dv], axis=-1)
  state = shard_maps.entering(first, b, m, how.sequence_axis)
  read = _read(out[..., dv:], state)
  out = out[..., :dv].astype(read.dtype) + read
  return out.astype(arrays.v.dtype), b + shard_maps.moved(m, state)


@jax.custom_jvp
def _read(p: jax.Array, state: jax.Array) -> jax.Array:
  """P_t S, [B, T, Hv, Dv] float32; S is rounded to P's type, as in kernels."""
  return _product(p, state, jnp.float32)


@_read.defjvp
def _read_jvp(primals, tangents):
  (p, state), (dp, dstate) = primals, tangents
  # A float32 cotangent would take P in 16 bits away from the matrix unit.
  tangent = _product(dp, state) + _product(p, dstate)
  return _read(p, state), tangent.astype(jnp.float32)


def _product(p, state, preferred=None):
  state = state.astype(p.dtype)
  return jnp.einsum(
    "bthd,bhdv->bthv",
    *(p, state),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=preferred,
  )
