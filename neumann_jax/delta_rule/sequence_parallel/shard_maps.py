"""What the shards of a row tell each other: affine maps of a state, composed.

A shard maps the state that enters it to the one that leaves it, S -> M S + b.
Every shard gathers the maps of all and composes those before it; backward, the
transposed maps of those behind it. All is float32: maps of whole shards
multiply each other, and their roundings would compound.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import sequence_axis
from neumann_jax.delta_rule import layout

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def moved(m: jax.Array, state: jax.Array) -> jax.Array:
  """M S, [B, Hv, Dk, Dv]."""
  return _einsum("bhde,bhev->bhdv", m, state)


def entering(
  first: jax.Array, b: jax.Array, m: jax.Array, axis_name: str
) -> jax.Array:
  """The state that enters this shard.

  Args:
    first: [B, Hv, Dk, Dv], before the first shard, the same in all shards.
    b: [B, Hv, Dk, Dv], what this shard makes of a state of 0.
    m: [B, Hv, Dk, Dk], and of the columns of an identity.
    axis_name: the mesh axis that splits the tokens.
  """

  def after(state, shard):
    b, m = shard
    return b + moved(m, state), state

  # Every shard composes all maps rather than those before it: the scan has one
  # length everywhere.
  maps = lax.all_gather((b, m), axis_name)  # [shards, B, Hv, Dk, ...]
  _, found = lax.scan(after, layout.varying_as(first, maps), maps)
  return sequence_axis.own(found, axis_name)


def leaving(begin: jax.Array, m: jax.Array, axis_name: str) -> jax.Array:
  """The cotangent of the state that leaves this shard, from those behind it.

  Args:
    begin: [B, Hv, Dk, Dv], of the state that enters this shard, as if nothing
      came of the one that leaves it.
    m: [B, Hv, Dk, Dk], as of `entering`.
    axis_name: the mesh axis that splits the tokens.
  """

  def before(state, shard):
    begin, m = shard
    return begin + moved(jnp.swapaxes(m, 2, 3), state), state

  maps = lax.all_gather((begin, m), axis_name)
  last = layout.varying_as(jnp.zeros_like(begin), maps)
  _, found = lax.scan(before, last, maps, reverse=True)
  return sequence_axis.own(found, axis_name)
