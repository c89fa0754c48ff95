"""One token of the rule for many rows: decoding, on any mesh.

On a TPU a kernel reads and writes each state once, see `tpu.token_kernel`;
elsewhere it is `gated_delta_step`, whose formula is in `recurrent`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from neumann_jax import backends
from neumann_jax.chunk_inverse.kernels import tpu
from neumann_jax.delta_rule import layout, on_mesh, precision, recurrent
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import token_kernel
from neumann_jax.delta_rule.tpu.grid_plan import LANES


def step(
  how: RuleOptions,
  arrays: Operands,
  scale: float,
  state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_step` of operands that have been checked.

  Args:
    how: the options of the rule.
    arrays: of one token.
    scale: of the output, scalar.
    state: [B, Hv, Dk, Dv], before the token.

  Returns:
    out [B, Hv, Dv] in v's dtype, and the state after the token, as
    `gated_delta_step` has it, or of 16 bits where it came with those.
  """

  def rule(arrays, scale, state, segment_ids, how):
    del segment_ids
    args = layout.varying_alike((arrays, scale, state))
    return backends.run(_OPERATION, how.implementation, None, *args)

  factor = jnp.asarray(scale, precision.compute_dtype(arrays.v))
  call = on_mesh.on_mesh(rule, arrays, how, state, tokens=False)
  return call(arrays, factor, state, None, how)


def _in_xla(
  static: None, arrays: Operands, scale: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del static
  out, new = recurrent.one_token(arrays, scale, state)
  if precision.is_narrow(state.dtype):
    new = new.astype(state.dtype)
  return out, new


def refusal(
  static: None, arrays: Operands, scale: jax.Array, state: jax.Array
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    static: not read.
    arrays: of one token; only shapes and types are read.
    scale: of the output.
    state: [B, Hv, Dk, Dv].
  """
  del static, scale
  types = [x.dtype for x in (arrays.q, arrays.k, arrays.v, state)]
  if any(x not in (jnp.bfloat16, jnp.float32) for x in types):
    named = ", ".join(map(str, types))
    return (
      f"q, k, v and the state must be bfloat16 or float32 each, got {named}"
    )
  dk, dv = state.shape[2:]
  if (dk, dv) != (LANES, LANES):
    return f"Dk and Dv must be {LANES}, got {dk} and {dv}"
  rows, hk, _ = arrays.k.shape
  plan = token_kernel.plan(rows, hk, state.shape[1])
  return tpu.too_large(plan.bytes(state.dtype.itemsize))


def _launch(
  static: None,
  arrays: Operands,
  scale: jax.Array,
  state: jax.Array,
  **options: Any,
) -> tuple[jax.Array, jax.Array]:
  del static
  return token_kernel.step(*arrays, scale, state, **options)


_OPERATION = backends.Operation(
  in_xla=_in_xla, kernels={"tpu": backends.Kernel(refusal, _launch)}
)
