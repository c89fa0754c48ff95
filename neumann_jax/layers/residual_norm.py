"""The norm of the residual stream, in a TPU kernel where `fused` asks for them.

That is in layers of any mixer and for any chunk size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from neumann_jax import backends
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from neumann_jax.layers.kernels import both_passes, conv_tpu, rms_tpu
from neumann_jax.layers.norms import RMSNorm, from_zero, rms_norm


def normed(how: RuleOptions, norm: RMSNorm, x: jax.Array) -> jax.Array:
  """norm(x), in a kernel on a TPU where the options ask for such.

  Args:
    how: the options of the rule: a fused one asks for kernels around it.
    norm: of the residual stream.
    x: [B, T, hidden]; one token, a step of decoding, is XLA's.
  """
  if x.shape[1] == 1 or not _takes(how, x):
    return norm(x)
  weight = norm.weight[...]
  mesh = on_mesh.mesh_of(x, weight)

  def run(x, weight, ids):
    del ids
    given = layout.varying_alike((x, weight))
    return backends.run_with_backward(
      _OPERATION, how.implementation, norm.eps, *given
    )

  if mesh.size > 1 and on_mesh.free_axes(mesh):
    rows = P(on_mesh.row_axes(mesh, how.batch_axes, x.shape[0]))
    run = on_mesh.spread(
      run, mesh=mesh, in_specs=(rows, P(), P()), out_specs=rows
    )
  return run(x, weight, None)


def _takes(how: RuleOptions, x: jax.Array) -> bool:
  if not tpu_rule.asked(how):
    return False
  reason = _refusal(x)
  if reason is not None:
    backends.say_fallback(how.implementation, "tpu", reason)
  return reason is None


def _refusal(x: jax.Array) -> str | None:
  """Why the kernels cannot run, as a clause, or None if they can."""
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    return f"the residual stream must be bfloat16 or float32, got {x.dtype}"
  width, lanes, widest = x.shape[-1], conv_tpu.LANES, rms_tpu.WIDEST
  if width % lanes or width > widest:
    return (
      f"the norm of the residual stream must have a multiple of {lanes} "
      f"columns up to {widest}, got {width}"
    )
  return None


def _in_xla(eps: float, x: jax.Array, weight: jax.Array) -> jax.Array:
  return rms_norm(x, weight, eps)


def _launch(eps: float, x, weight, **options: Any) -> jax.Array:
  return rms_tpu.forward(x, from_zero(weight), eps=eps, **options)


def _gradients(eps: float, x, weight, cotangent, **options: Any):
  tokens = rms_tpu.block(x)
  wide, d_out = (layout.padded(y, tokens) for y in (x, cotangent))
  d_x, d_scale = rms_tpu.gradients(
    wide, from_zero(weight), d_out.astype(x.dtype), eps=eps, **options
  )
  return d_x[:, : x.shape[1]], d_scale.astype(weight.dtype)


_OPERATION = both_passes.operation(_in_xla, _launch, _gradients, floats=2)
