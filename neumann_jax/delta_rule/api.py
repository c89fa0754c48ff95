"""The gated delta rule by chunks (arXiv 2412.06464).

C tokens at once through T = (I + A)^-1, A_ij = beta_i <k_i, k_j> exp(G_i-G_j),
gives u = T (beta v) and w = T (beta exp(G) k), see `wy.py`; the recurrence over
chunks in `state.py` takes them.

Products take bfloat16 or float16 operands as they are where q, k and v have
that type, and round T, the state and what else they take to it; their sums,
the gates, A and the state are float32. Everything else is computed in float32
with products at highest precision, or in float64 for float64 values. The
inverse follows its `InverseSpec`.
"""

import functools

import jax

from neumann_jax.chunk_inverse import dispatch
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import chunk_scan, inputs, wy
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions


def gated_delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  scale: float | None = None,
  initial_state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  chunk_size: int = 64,
  spec: InverseSpec = InverseSpec(),  # noqa: B008  (frozen)
  fused: bool = False,
  implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """The gated delta rule by chunks of C tokens.

  Differentiable in every float operand; the inverse by its implicit gradient.
  The backward pass keeps, per value head, Dk + 2 Dv + C numbers a token and one
  state a chunk; A, T and the decays are computed again.

  Args:
    q: [B, T, Hk, Dk], normalised queries, T >= 1.
    k: [B, T, Hk, Dk], normalised keys: the inverse is tame for |k| <= 1.
    v: [B, T, Hv, Dv], Hv a whole multiple of Hk; value head h reads key head
      h // (Hv / Hk).
    log_decay: [B, T, Hv], log decay of each token, <= 0; -inf forgets.
    beta: [B, T, Hv], write strength, in [0, 2].
    scale: of the output; None is Dk^-0.5.
    initial_state: [B, Hv, Dk, Dv], state before the first token; None is zero.
    segment_ids: [B, T] integers, non-decreasing along a row. A document sees
      nothing of the others, in value or gradient, except that a chunk shares
      the one scale of an envelope-quantised inverse. initial_state enters the
      first document and the final state leaves the last.
    chunk_size: C, a power of two.
    spec: method and arithmetic of the chunk inverse.
    fused: takes u and w from the kernel of `wy_representation`, which
      multiplies k and v in their own type, and never writes A or T.
    implementation: "auto", "tpu", "gpu", "xla" or "interpret". With "gpu",
      and with "auto" on a GPU, the recurrence over chunks is a kernel too
      for 16-bit operands, C up to 64 and widths that are powers of two.

  Returns:
    out [B, T, Hv, Dv] in v's dtype, and the final state [B, Hv, Dk, Dv] in
    float32 (float64 for float64 values).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape, a value or an option out of range; values are
      checked on concrete arrays only.
  """
  return with_options(
    Operands(q, k, v, log_decay, beta),
    RuleOptions(chunk_size, spec, fused, implementation),
    scale=scale,
    initial_state=initial_state,
    segment_ids=segment_ids,
  )


def with_options(
  arrays: Operands,
  how: RuleOptions,
  *,
  scale: float | None = None,
  initial_state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_rule` of packed operands and options; raises as it does."""
  check(arrays, initial_state, segment_ids, how)
  scale = inputs.output_scale(scale, arrays.q)
  return _by_chunks(arrays, scale, initial_state, segment_ids, how)


def check(
  arrays: Operands,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> None:
  """Raises what `gated_delta_rule` raises for the same arguments."""
  inputs.check(arrays._asdict(), state=initial_state, segment_ids=segment_ids)
  dtype = inputs.compute_dtype(arrays.v)
  dispatch.check(how.implementation, how.spec, how.chunk_size, dtype)
  if how.fused:
    wy.check(how.implementation, how.spec, how.chunk_size, arrays.k, arrays.v)


@functools.partial(jax.jit, static_argnums=4)
def _by_chunks(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  out, final = chunk_scan.recurrence(
    recurrence_inputs(arrays, scale, initial_state, segment_ids, how),
    segment_ids,
    chunk_size=how.chunk_size,
    implementation=how.implementation,
  )
  return out.astype(arrays.v.dtype), final


def recurrence_inputs(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> chunk_scan.Inputs:
  """What the recurrence over chunks reads: all that needs no state.

  Args:
    arrays: the operands.
    scale: of the output.
    initial_state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.
    how: the static options.
  """
  q, k, v, log_decay, beta = arrays
  dtype = inputs.product_dtype(v, q, k)
  if how.fused:
    u, w = wy.compute(
      *arrays[1:], segment_ids, how.spec, how.chunk_size, how.implementation
    )
  else:
    represent = functools.partial(
      wy.in_xla,
      spec=how.spec,
      chunk_size=how.chunk_size,
      dtype=dtype,
      implementation=how.implementation,
      gradient=how.gradient,
    )
    u, w = jax.checkpoint(represent)(k, v, log_decay, beta, segment_ids)
  q, k, u, w = (x.astype(dtype) for x in (q, k, u, w))
  log_decay = log_decay.astype(inputs.compute_dtype(v))
  return chunk_scan.Inputs(q, k, u, w, log_decay, scale, initial_state)
