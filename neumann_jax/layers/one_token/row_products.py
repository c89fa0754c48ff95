"""The products of a block with its weights, several of one input at once.

A step of decoding one row is bound by how fast weights are read. On a GPU one
kernel reads all that an input meets, see `kernels.row_gpu`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax import lax

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.layers.kernels import row_gpu


def project(
  implementation: str, x: jax.Array, layers: Sequence[Any]
) -> tuple[jax.Array, ...]:
  """layer(x) of each layer.

  Args:
    implementation: as of `RuleOptions`.
    x: [..., K].
    layers: `linear` layers, or what stands for them.
  """
  found = _one_row(implementation, (x,), layers)
  return tuple(layer(x) for layer in layers) if found is None else found


def gated(
  implementation: str, gate: jax.Array, up: jax.Array, layer: Any
) -> jax.Array:
  """layer(silu(gate) * up).

  Args:
    implementation: as of `RuleOptions`.
    gate: [..., K].
    up: [..., K].
    layer: a `linear` layer, or what stands for one.
  """
  found = _one_row(implementation, (gate, up), [layer])
  return layer(nnx.silu(gate) * up) if found is None else found[0]


def _one_row(
  implementation: str, inputs: tuple[jax.Array, ...], layers: Sequence[Any]
) -> tuple[jax.Array, ...] | None:
  """By the operation, where a kernel may be what runs it; else None."""
  x = inputs[0]
  if implementation not in ("auto", "gpu") or x.size != x.shape[-1]:
    return None
  if any(type(one) is not nnx.Linear or one.use_bias for one in layers):
    return None
  kernels = tuple(layer.kernel[...] for layer in layers)
  # Asked here, and not left to the operation: most rows are no row of decoding
  # on a GPU, and "gpu" need not warn of them.
  if row_gpu.refusal(inputs, kernels) is not None:
    return None
  mesh = on_mesh.mesh_of(*inputs, *kernels)
  if mesh.size > 1 and on_mesh.free_axes(mesh):
    return None
  # Inside `jax.shard_map` a kernel says of its results what of its operands.
  operands = layout.varying_alike((inputs, kernels))
  return backends.run(_OPERATION, implementation, None, *operands)


def in_xla(
  static: None,
  inputs: tuple[jax.Array, ...],
  kernels: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
  """x times each kernel; of two inputs x is silu(first) * second."""
  del static
  x = inputs[0] if len(inputs) == 1 else nnx.silu(inputs[0]) * inputs[1]
  contract = (((x.ndim - 1,), (0,)), ((), ()))
  return tuple(
    lax.dot_general(x, kernel, contract, precision=lax.Precision.HIGHEST)
    for kernel in kernels
  )


def _launch(
  static: None,
  inputs: tuple[jax.Array, ...],
  kernels: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
  del static
  rows = tuple(x.reshape(-1) for x in inputs)
  lead = inputs[0].shape[:-1]
  return tuple(y.reshape(*lead, -1) for y in row_gpu.products(rows, kernels))


_OPERATION = backends.Operation(
  in_xla=in_xla,
  kernels={
    "gpu": backends.Kernel(
      lambda static, inputs, kernels: row_gpu.refusal(inputs, kernels), _launch
    )
  },
)
