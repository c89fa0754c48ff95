"""The rule on a mesh of devices: each computes its own rows and heads.

A kernel cannot be partitioned by the compiler: XLA would have to gather its
operands, and a TPU refuses to lower it at all. So the rule runs inside
`jax.shard_map` over every axis of the mesh that its operands live on, rows
split over the axes that hold batches and heads over the one that holds heads;
neither meets another row or head on the way. The mesh is read from the operands
(`jax.typeof(x).sharding`), which carry it through every trace, so that nobody
needs to name it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions

Rule = Callable[..., tuple[jax.Array, jax.Array]]


def on_mesh(
  rule: Rule,
  arrays: Operands,
  how: RuleOptions,
  *others: jax.Array,
  tokens: bool = True,
  by_document: bool = False,
) -> Rule:
  """The rule, for whatever mesh its operands live on.

  Rows stay whole where `how.batch_axes` do not divide them, heads where
  `how.head_axis` does not divide both kinds of them: every device of the axis
  then computes all.

  Args:
    rule: (arrays, scale, initial_state, segment_ids, how) -> (out, state).
    arrays: operands that have been checked.
    how: the static options.
    *others: arrays whose mesh counts where the operands have none.
    tokens: whether operands have an axis of them.
    by_document: whether a row has a state for each document.

  Returns:
    A function of the same arguments: the rule itself on one device.
  """
  mesh = mesh_of(*arrays, *others)
  free = free_axes(mesh)
  if mesh.size == 1 or not free:
    return rule
  _say_unnamed(mesh, free, how)
  rows = row_axes(mesh, how.batch_axes, arrays.v.shape[0])
  counts = arrays.k.shape[-2], arrays.v.shape[-2]
  heads = head_axis(mesh, how.head_axis, *counts)
  state = P(rows, heads)  # [B, Hv, Dk, Dv]
  token = P(rows, None, heads) if tokens else state  # [B, T, heads, ...]
  if by_document:
    state = P(rows, None, heads)  # [B, M, Hv, Dk, Dv]
  operands: Any = jax.tree.map(lambda _: token, arrays)
  on_all = spread(
    functools.partial(rule, how=how),
    mesh=mesh,
    in_specs=(operands, P(), state, P(rows)),
    out_specs=(token, state),
  )
  return lambda *operands: on_all(*operands[:-1])


def spread(
  function: Callable[..., Any],
  *,
  mesh: AbstractMesh,
  in_specs: tuple,
  out_specs: Any,
) -> Callable[..., Any]:
  """`jax.shard_map` over every axis of a mesh that is still to be split.

  Args:
    function: of floating-point arguments and a last one of integers or None.
    mesh: that its arguments live on.
    in_specs: of each argument, over `free_axes` alone.
    out_specs: of the results.
  """
  free = free_axes(mesh)
  partly = len(free) < len(mesh.axis_names)
  return (_nested if partly else jax.shard_map)(
    function,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=set(free),
  )


def _nested(
  function: Callable[..., Any],
  *,
  in_specs: tuple,
  out_specs: Any,
  **where: Any,
) -> Callable[..., Any]:
  """`jax.shard_map` of a function inside another one, over the axes left.

  The residuals of a nested one would be split over the axes that the outer one
  has taken already, which Shardy refuses (jax 0.10 to 0.12). So none leave it:
  the backward pass computes the function again.
  """
  forward = jax.shard_map(
    function, in_specs=in_specs, out_specs=out_specs, **where
  )

  def pull(operands, cotangents):
    *floats, ids = operands
    _, vjp = jax.vjp(lambda *floats: function(*floats, ids), *floats)
    return vjp(cotangents)

  backward = jax.shard_map(
    pull, in_specs=(in_specs, out_specs), out_specs=in_specs[:-1], **where
  )
  call = jax.custom_vjp(forward)
  call.defvjp(
    lambda *operands: (forward(*operands), operands),
    lambda operands, cotangents: (*backward(operands, cotangents), None),
  )
  return call


def mesh_of(*arrays: jax.Array) -> AbstractMesh:
  """The mesh of the first array that has one; an empty mesh if none has."""
  meshes = [_mesh_of(x) for x in arrays]
  return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def _mesh_of(x: jax.Array) -> AbstractMesh:
  """Of a value where there is one, else of its type.

  NOTE: an array that `jax.device_put` took from a mesh to a bare device keeps
  the mesh in its type (jax 0.10 to 0.12), and so in a trace.
  """
  where = getattr(x, "sharding", None)
  if isinstance(x, jax.core.Tracer) or where is None:
    return jax.typeof(x).sharding.mesh
  if isinstance(where, jax.sharding.NamedSharding):
    return where.mesh.abstract_mesh
  return AbstractMesh((), ())


def free_axes(mesh: AbstractMesh) -> tuple[str, ...]:
  """Axes that no enclosing `jax.shard_map` has taken."""
  return tuple(
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types)
    if kind != AxisType.Manual
  )


def row_axes(
  mesh: AbstractMesh, batch_axes: tuple[str, ...], rows: int
) -> tuple[str, ...] | None:
  """The free axes that so many rows are split over; None: they stay whole."""
  axes = tuple(axis for axis in batch_axes if axis in free_axes(mesh))
  uneven = rows % math.prod(mesh.shape[axis] for axis in axes)
  return None if uneven or not axes else axes


def head_axis(mesh: AbstractMesh, axis: str | None, *counts: int) -> str | None:
  """The axis, if it is free and divides the heads; None: they stay whole."""
  if axis not in free_axes(mesh):
    return None
  return None if any(count % mesh.shape[axis] for count in counts) else axis


def _say_unnamed(
  mesh: AbstractMesh, free: tuple[str, ...], how: RuleOptions
) -> None:
  known = (*how.batch_axes, how.head_axis, how.sequence_axis)
  for axis in free:
    if mesh.shape[axis] > 1 and axis not in known:
      _log_unnamed(axis)


@functools.cache
def _log_unnamed(axis: str) -> None:
  logging.warning(
    "mesh axis %r is neither in batch_axes nor head_axis of RuleOptions: each "
    "of its devices computes the whole rule",
    axis,
  )
