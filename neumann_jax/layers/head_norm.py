"""The gated norm of the rule's outputs, in a kernel where the rule is one."""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers.kernels import both_passes, conv_tpu, norm_tpu
from neumann_jax.layers.norms import gated_rms_norm


def gated(
  how: RuleOptions,
  x: jax.Array,
  z: jax.Array,
  weight: jax.Array,
  eps: float,
) -> jax.Array:
  """`gated_rms_norm` of each head, [B, T, Hv, Dv] -> [B, T, Hv Dv].

  Args:
    how: the options of the rule, which `head_columns.takes` allows.
    x: [B, T, Hv, Dv], outputs of the rule.
    z: [B, T, Hv Dv].
    weight: [Dv].
    eps: added to the mean square.
  """
  mesh = on_mesh.mesh_of(x, z, weight)
  flat = x.reshape(z.shape)

  def run(x, z, weight, ids):
    del ids
    given = layout.varying_alike((x, z, weight))
    return backends.run_with_backward(
      _OPERATION, how.implementation, eps, *given
    )

  if mesh.size > 1 and on_mesh.free_axes(mesh):
    rows = on_mesh.row_axes(mesh, how.batch_axes, x.shape[0])
    heads = on_mesh.head_axis(mesh, how.head_axis, x.shape[2])
    token = P(rows, None, heads)
    run = on_mesh.spread(
      run, mesh=mesh, in_specs=(token, token, P(), P()), out_specs=token
    )
  return run(flat, z.astype(x.dtype), weight, None)


def _in_xla(
  eps: float, x: jax.Array, z: jax.Array, weight: jax.Array
) -> jax.Array:
  heads = (*x.shape[:2], -1, weight.shape[0])
  y = gated_rms_norm(x.reshape(heads), z.reshape(heads), weight, eps)
  return y.reshape(x.shape)


def _launch(eps: float, x, z, weight, **options: Any) -> jax.Array:
  return norm_tpu.forward(x, z, weight.astype(x.dtype), eps=eps, **options)


def _gradients(eps: float, x, z, weight, cotangent, **options: Any):
  tokens = conv_tpu.block(x.shape[1], 0, x.shape[2] // conv_tpu.LANES)[0]
  given = (layout.padded(y, tokens) for y in (x, z, cotangent.astype(x.dtype)))
  wide_x, wide_z, wide_cotangent = given
  d_x, d_z, d_weight = norm_tpu.gradients(
    wide_x,
    wide_z,
    weight.astype(x.dtype),
    wide_cotangent,
    eps=eps,
    **options,
  )
  length = x.shape[1]
  return d_x[:, :length], d_z[:, :length], d_weight.astype(weight.dtype)


_OPERATION = both_passes.operation(_in_xla, _launch, _gradients, floats=3)
