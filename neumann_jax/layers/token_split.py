"""Tokens split over the mesh axis of heads, wherever none needs another.

Between blocks norms and sums take a token at a time, so that each of the n
devices of the axis takes its part of them. Before the first matrices of a block
the devices gather their tokens; after its last one they sum what each has made
of its columns, and keep their part of the sum: together what a sum that stays
whole would send. In [1] sequence parallelism.

Stated by `jax.shard_map`: the partitioner would send the gradient of the tokens
once for every matrix that they meet, and here it is summed on a device first.

Reference:
  [1] Korthikanti et al., Reducing Activation Recomputation in Large Transformer
      Models, arXiv 2205.05198.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from neumann_jax.delta_rule import kept_names, on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers import placement, row_products
from neumann_jax.layers.linear import product, wide_product

SUMS = "block_sums"  # for the policies of `jax.checkpoint`


class Ways(NamedTuple):
  """What the products of a block read of `RuleOptions`.

  Attributes:
    implementation: of products of a single row.
    batch_axes: mesh axes that split rows.
    head_axis: the one that splits heads, or None.
  """

  implementation: str
  batch_axes: tuple[str, ...]
  head_axis: str | None


class TokenSplit(NamedTuple):
  """Where tokens [B, T, ...] are.

  Attributes:
    mesh: that they live on.
    rows: axes that split rows.
    axis: of heads.
    dim: that `axis` splits between blocks: 0, rows, or 1, tokens of a row;
      None: neither.
  """

  mesh: AbstractMesh
  rows: tuple[str, ...]
  axis: str
  dim: int | None

  @property
  def between(self) -> P:
    """Of tokens between blocks."""
    if self.dim == 0:
      return P((*self.rows, self.axis))
    return P(self.rows, self.axis if self.dim else None)

  @property
  def columns(self) -> P:
    """Of tokens [B, T, columns] inside a block."""
    return P(self.rows, None, self.axis)

  def run(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """`jax.shard_map` on every device of the mesh."""
    return jax.shard_map(
      function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs
    )

  def gather(self, x: jax.Array) -> jax.Array:
    """Tokens of `between`, to all devices of the axis; inside `run`."""
    if self.dim is None:
      return x
    return lax.all_gather(x, self.axis, axis=self.dim, tiled=True)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sums over the axis, each device its part of `between`; inside `run`."""
    if self.dim is None:
      return lax.psum(x, self.axis)
    return lax.psum_scatter(
      x, self.axis, scatter_dimension=self.dim, tiled=True
    )

  def own_columns(self, x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """A device's part of each of the blocks that lie side by side in x.

    Args:
      x: [..., C / n], of [..., C] in n equal parts; inside `run`.
      sizes: of the blocks, whose sum is C; n divides each.

    Returns:
      [..., C / n], the parts of the blocks in their order.
    """
    # Gathered at once: as they lie, parts of a block would be sent one by one.
    x = lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)
    n, place = self.mesh.shape[self.axis], lax.axis_index(self.axis)
    starts = itertools.accumulate(sizes, initial=0)
    parts = [
      lax.dynamic_slice_in_dim(x, at + place * (size // n), size // n, axis=-1)
      for at, size in zip(starts, sizes)
    ]
    return jnp.concatenate(parts, axis=-1)


def ways(rule: RuleOptions) -> Ways:
  """Of the options of a rule."""
  return Ways(rule.implementation, rule.batch_axes, rule.head_axis)


def of(x: jax.Array, how: Ways, width: int) -> TokenSplit | None:
  """How a mesh splits tokens; None where no axis of heads does.

  Args:
    x: [B, T, ...], on a mesh or not.
    how: names the axes.
    width: of the residual stream. With fewer tokens, as in decoding, they stay
      where they are: matrices are then what takes the time.
  """
  mesh = placement.mesh_of(x)
  if mesh is None or x.ndim != 3 or x.shape[1] == 1:
    return None
  axis = on_mesh.head_axis(mesh, how.head_axis)
  if axis is None or mesh.shape[axis] == 1 or math.prod(x.shape[:2]) < width:
    return None
  found = on_mesh.row_axes(mesh, how.batch_axes, x.shape[0]) or ()
  # Over an axis of one device a gradient would be summed for nothing.
  rows = tuple(name for name in found if mesh.shape[name] > 1)
  over = math.prod(mesh.shape[name] for name in (*rows, axis))
  # Rows first: a gathered row is one piece of memory.
  if x.shape[0] % over == 0:
    return TokenSplit(mesh, rows, axis, 0)
  even = x.shape[1] % mesh.shape[axis] == 0
  return TokenSplit(mesh, rows, axis, 1 if even else None)


def between(x: jax.Array, how: Ways) -> jax.Array:
  """Tokens [B, T, hidden] as they lie between blocks."""
  split = of(x, how, x.shape[-1])
  if split is None:
    return placement.by_rows(x, how.batch_axes)
  return placement.placed(x, split.mesh, split.between)


def project(
  how: Ways, x: jax.Array, layers: Sequence[Any]
) -> tuple[jax.Array, ...]:
  """layer(x) of each layer, the first matrices of a block.

  Args:
    how: they are computed.
    x: [..., hidden], [B, T, hidden] between blocks.
    layers: `linear` layers, or what stands for them.
  """
  split = of(x, how, x.shape[-1])
  if split is None or not even(split, layers, 1):
    if x.ndim == 3:
      x = placement.by_rows(x, how.batch_axes)
    return row_products.project(how.implementation, x, layers)

  def run(x, kernels):
    x = split.gather(x)
    return tuple(product(x, kernel) for kernel in kernels)

  x = x.astype(layers[0].dtype)
  kernels = tuple(layer.kernel[...].astype(x.dtype) for layer in layers)
  specs = split.between, P(None, split.axis)
  return split.run(run, specs, split.columns)(x, kernels)


def output(how: Ways, y: jax.Array, layer: Any) -> jax.Array:
  """layer(y), the last matrix of a block: [..., columns] -> [..., hidden]."""
  split = _of_columns(y, how, layer)
  if split is None:
    return row_products.project(how.implementation, y, [layer])[0]
  return _sums(split, y, layer)


def gated(how: Ways, gate: jax.Array, up: jax.Array, layer: Any) -> jax.Array:
  """`output` of silu(gate) * up."""
  split = _of_columns(gate, how, layer)
  if split is None:
    return row_products.gated(how.implementation, gate, up, layer)
  return _sums(split, nnx.silu(gate) * up, layer)


def wide(how: Ways, x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
  """`wide_product`, as of the vocabulary: [..., hidden] -> [..., V] float32."""
  split = of(x, how, x.shape[-1])
  if split is None or kernel.shape[1 - axis] % split.mesh.shape[split.axis]:
    return wide_product(placement.by_rows(x, how.batch_axes), kernel, axis)
  spec: list[str | None] = [None, None]
  spec[1 - axis] = split.axis
  return split.run(
    lambda x, kernel: wide_product(split.gather(x), kernel, axis),
    (split.between, P(*spec)),
    split.columns,
  )(x, kernel)


def _of_columns(y: jax.Array, how: Ways, layer: Any) -> TokenSplit | None:
  if not is_matrix(layer):
    return None
  split = of(y, how, layer.kernel.shape[1])
  return split if split and even(split, [layer], 0) else None


def _sums(split: TokenSplit, y: jax.Array, layer: nnx.Linear) -> jax.Array:
  y = y.astype(layer.dtype)
  found = split.run(
    lambda y, kernel: split.sum(product(y, kernel)),
    (split.columns, P(split.axis)),
    split.between,
  )(y, layer.kernel[...].astype(y.dtype))
  # A part of the tokens for every device, where keeping it spares a sum.
  return found if split.dim is None else kept_names.named(found, SUMS)


def even(
  split: TokenSplit, layers: Sequence[Any], axis: int, *counts: int
) -> bool:
  """Whether it divides the layers' matrices along an axis, and such counts."""
  n = split.mesh.shape[split.axis]
  sizes = [
    layer.kernel.shape[axis] if is_matrix(layer) else None for layer in layers
  ]
  return all(size is not None and size % n == 0 for size in (*sizes, *counts))


def is_matrix(layer: Any) -> bool:
  """Whether a layer is a product with its matrix and nothing else."""
  return type(layer) is nnx.Linear and not layer.use_bias
