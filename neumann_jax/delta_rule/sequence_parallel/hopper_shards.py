"""The rule on a Hopper GPU with its tokens split over a mesh axis.

A shard's map S -> M S + b is what its last chunks make of the columns of an
identity and of 0: as many of them as it takes until everything before has
decayed below rounding, or all. Once the maps have told it what state enters, a
shard is a row like any other, forward and backward. So is the way back: what
its first chunks make of the outputs' cotangents goes to the shards in front.

Beyond the rule of one device, a shard runs the recurrence twice over its last
chunks and once backward over its first.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import reverse_mode
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.delta_rule import kept_names, layout
from neumann_jax.delta_rule.hopper import passes
from neumann_jax.delta_rule.hopper import rule as one_device
from neumann_jax.delta_rule.hopper.rule import Plain
from neumann_jax.delta_rule.hopper.tiles import CHUNK
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.sequence_parallel import shard_maps


def rule(
  arrays: Operands,
  scale: jax.Array,
  state: jax.Array,
  reads: jax.Array,
  segment_ids: jax.Array | None,
  how: RuleOptions,
  plain: Plain,
) -> tuple[jax.Array, jax.Array]:
  """One shard of `sharded_delta_rule`, where `one_device.takes` says so.

  Args:
    arrays: the operands of this shard.
    scale: of the output.
    state: [B, Hv, Dk, Dv], before the first shard, the same in all shards.
    reads: [B] bool, whether the first document began before this shard.
    segment_ids: [B, L] or None.
    how: the options of the rule, with a sequence axis.
    plain: the same without these kernels, for "auto" on other platforms.

  Returns:
    The outputs, and the state that leaves this shard.
  """
  arrays, scale = one_device.prepared(arrays, scale, segment_ids)
  args = reverse_mode.marked(layout.varying_alike((arrays, scale, state)))
  return _rule(*args, reads, segment_ids, how, plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _rule(arrays, scale, state, reads, segment_ids, how, plain):
  return _rule_fwd(arrays, scale, state, reads, segment_ids, how, plain)[0]


def _rule_fwd(arrays, scale, state, reads, segment_ids, how, plain):
  def elsewhere(arrays, scale, state, reads, segment_ids):
    found = plain(arrays, scale, state, reads, segment_ids, how)
    t = one_device.no_inverse(arrays)
    return found, t, (state, jnp.zeros_like(_identity(state)))

  def kernels(arrays, scale, state, reads, segment_ids):
    del segment_ids  # its documents have become decays
    return _forward(arrays, scale, state, reads, how)

  args = (arrays, scale, state, reads, segment_ids)
  out, t, maps = one_device.on_hopper(how, kernels, elsewhere, *args)
  t = kept_names.named(t, kept_names.INVERSE)
  maps = kept_names.named(maps, kept_names.STATES)
  return out, (*args, t, maps)


def _rule_bwd(how, plain, residuals, cotangents):
  def elsewhere(arrays, scale, state, reads, segment_ids, t, maps, *cotangents):
    del t, maps
    _, pull = jax.vjp(
      lambda *x: plain(*x, reads, segment_ids, how), arrays, scale, state
    )
    return pull(cotangents)

  def kernels(arrays, scale, state, reads, segment_ids, t, maps, *cotangents):
    del state, segment_ids
    return _backward(how, arrays, scale, reads, t, maps, *cotangents)

  args = (*residuals, *cotangents)
  out = one_device.on_hopper(how, kernels, elsewhere, *args)
  return (*out, None, None)


_rule.defvjp(_rule_fwd, _rule_bwd)


def _forward(arrays, scale, first, reads, how):
  """(out, last state), R, and the entering state with M."""
  axis_name = how.sequence_axis
  t = passes.inverse(arrays, resolve(how.spec, CHUNK))
  nothing = arrays._replace(v=jnp.zeros_like(arrays.v))
  m = passes.final_state(nothing, scale, _identity(first), t)
  m = _where(reads, m)
  b = passes.final_state(arrays, scale, jnp.zeros_like(first), t)
  state = _where(reads, shard_maps.entering(first, b, m, axis_name))
  return passes.outputs(arrays, scale, state, t), t, (state, m)


def _identity(state):
  """[B, Hv, Dk, Dk] of a state [B, Hv, Dk, Dv]."""
  shape = *state.shape[:3], state.shape[2]
  return jnp.broadcast_to(jnp.eye(shape[-1], dtype=state.dtype), shape)


def _backward(how, arrays, scale, reads, t, maps, do, dlast):
  """Cotangents of the operands, the scale and the state before all shards."""
  state, m = maps
  begin = passes.initial_cotangent(arrays, scale, t, do, dlast)
  behind = shard_maps.leaving(_where(reads, begin), m, how.sequence_axis)
  operands, dscale, dstate = passes.cotangents(
    arrays, scale, state, t, do, dlast + behind
  )
  first = lax.axis_index(how.sequence_axis) == 0
  return operands, dscale, jnp.where(first, dstate, 0)


def _where(rows: jax.Array, state: jax.Array) -> jax.Array:
  """[B, ...] with 0 for the rows that are not asked for."""
  return jnp.where(rows[:, None, None, None], state, 0)
