"""Where a layer's parameters and tokens are while it computes, on a mesh.

Left to itself the compiler would multiply tokens by the part of a matrix that a
device holds and sum tokens over the devices, where a matrix is smaller than
what it is multiplied with. So each layer asks for its tokens by rows and for
whole matrices along the residual stream: those that are split there are
gathered when the layer runs, and their gradients scattered.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from neumann_jax.delta_rule import on_mesh
from neumann_jax.layers.mixer import Axes

Module = TypeVar("Module", bound=nnx.Module)


def by_rows(x: jax.Array, batch_axes: tuple[str, ...]) -> jax.Array:
  """Tokens [B, T, hidden] with their rows over the axes that split batches.

  Args:
    x: on a mesh or not.
    batch_axes: as of `RuleOptions`.

  Returns:
    x; as it was where the axes have other names or do not divide the rows.
  """
  mesh = _mesh(x)
  rows = mesh and on_mesh.row_axes(mesh, batch_axes, x.shape[0])
  if mesh is None or rows is None:
    return x
  return _placed(x, mesh, P(rows))


def gathered(
  module: Module,
  logical: Callable[[tuple[Any, ...]], Axes],
  *,
  tokens: int,
  least: int,
  dtype: jnp.dtype,
) -> Module:
  """The module with its matrices whole along the residual stream.

  Args:
    module: whose parameters lie on a mesh, or do not.
    logical: logical axes of a parameter by its path in the module.
    tokens: that it will be given.
    least: tokens from which what else devices would send is more than the
      matrices; with fewer, as in decoding, the module is as it was.
    dtype: in which it multiplies; parameters that are gathered have it.
  """
  graph, state = nnx.split(module)
  known = [(path, x, logical(path)) for path, x in nnx.to_flat_state(state)]
  meshes = [_mesh(x[...]) if "embed" in axes else None for _, x, axes in known]
  # First, as a program that is exported for any batch has no number of tokens.
  if not any(meshes) or tokens < least:
    return module
  found = []
  for (path, variable, axes), mesh in zip(known, meshes):
    if mesh is not None:
      x = variable[...]
      free: tuple = (P.UNCONSTRAINED,) * (x.ndim - len(axes))
      free += tuple(None if a == "embed" else P.UNCONSTRAINED for a in axes)
      # Rounded before it is sent, as the layer would round it after; codes and
      # scales of quantised matrices are sent as they are.
      if variable.type is nnx.Param:
        x = x.astype(dtype)
      variable = variable.replace(_placed(x, mesh, P(*free)))
    found.append((path, variable))
  return nnx.merge(graph, nnx.from_flat_state(found))


def by_heads(x: jax.Array, axis: str | None) -> jax.Array:
  """An array whose last axis is one of heads, split over the axis of heads.

  Args:
    x: on a mesh or not.
    axis: from `split_of_heads`; None leaves it as it is.
  """
  mesh = _mesh(x)
  if mesh is None or axis is None:
    return x
  return _placed(x, mesh, P(*(P.UNCONSTRAINED,) * (x.ndim - 1), axis))


def split_of_heads(x: jax.Array, axis: str | None, *counts: int) -> str | None:
  """The axis of a mesh that splits so many heads; None where none does."""
  mesh = _mesh(x)
  if mesh is None:
    return None
  axis = on_mesh.head_axis(mesh, axis, *counts)
  return None if axis is None or mesh.shape[axis] == 1 else axis


def _mesh(x: jax.Array) -> AbstractMesh | None:
  """That the compiler splits a traced array over; None where it does not."""
  # What is computed at once follows the values, wherever they are. Inside
  # `jax.shard_map` over some of the axes the rest stays with the compiler.
  if not isinstance(x, jax.core.Tracer):
    return None
  mesh = on_mesh.mesh_of(x)
  whole = len(on_mesh.free_axes(mesh)) == len(mesh.axis_names)
  return mesh if mesh.size > 1 and whole else None


def _placed(x: jax.Array, mesh: AbstractMesh, spec: P) -> jax.Array:
  return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
