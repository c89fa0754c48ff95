"""The public door of the gated delta rule by chunks (arXiv 2412.06464).

Arguments are checked here, once, and `on_mesh` gives each device its rows and
heads; what a device computes is in `by_chunks`.
"""

import jax

from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import inputs, precision
from neumann_jax.delta_rule.chunks import by_chunks, wy
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.on_mesh import Rule, on_mesh
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

  Differentiable in every float operand, backward and, but for the kernels that
  compute all of a fused rule, forward; the inverse by its implicit gradient.
  The backward pass keeps, per value head, Dk + 2 Dv + C numbers per token and
  one state per chunk; A, T and the decays are computed again.

  Args:
    q: [B, T, Hk, Dk], normalised queries, T >= 1.
    k: [B, T, Hk, Dk], normalised keys: the inverse is tame for |k| <= 1.
    v: [B, T, Hv, Dv], Hv a whole multiple of Hk; value head h reads key head
      h // (Hv / Hk).
    log_decay: [B, T, Hv], log decay per token, <= 0; -inf forgets.
    beta: [B, T, Hv], write strength, in [0, 2].
    scale: of the output; None is Dk^-0.5.
    initial_state: [B, Hv, Dk, Dv], state before the first token; None is zero.
      Or [B, M, Hv, Dk, Dv] with segment_ids: of each of up to M documents of a
      row, in their order.
    segment_ids: [B, T] integers in any order, one of its own for each document
      of a row, padding included. A document sees nothing of the others, in
      value or gradient, even where they are not finite, except that a chunk
      shares the one scale of an envelope-quantised inverse. From a token that
      is not finite on, the outputs of its document are NaN. initial_state
      enters the first document and the final state leaves the last.
    chunk_size: C, a power of two.
    spec: method and arithmetic of the chunk inverse.
    fused: takes u and w from the kernel of `wy_representation`, which
      multiplies k and v in their own type, and never writes A or T. On a
      Hopper GPU, for bfloat16 operands, C = 64 and widths of 64, 128 and 256,
      all of the rule and of its derivative is kernels, but for an inverse by
      integers, see `hopper/rule.py`; on a TPU, for widths of 128 and float32
      operands too, see `tpu/rule.py`. These have first derivatives alone, in
      reverse mode. They, and the kernel of the scan, have one state a row: with
      a state for each document the scan over chunks is that of XLA.
    implementation: "auto", "tpu", "gpu", "xla" or "interpret". With "gpu",
      and with "auto" on a GPU, the scan over chunks is a kernel too
      for 16-bit operands, C up to 64 and widths that are powers of two.

  Returns:
    out [B, T, Hv, Dv] in v's dtype, and the final state [B, Hv, Dk, Dv] in
    float32 (float64 for float64 values); [B, M, Hv, Dk, Dv] for such an
    initial_state, of which a document without tokens keeps its own (NaN where
    it was not finite).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape, a value or an option out of range; values are
      checked on concrete arrays only.

  Example:
    One key, written twice with beta = 1: the second value replaces the first.

    >>> import jax.numpy as jnp
    >>> k = jnp.ones((1, 2, 1, 1))
    >>> v = jnp.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    >>> out, state = gated_delta_rule(
    ...   k, k, v, jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1)), chunk_size=2
    ... )
    >>> out.ravel(), state.ravel()
    (Array([3., 5.], dtype=float32), Array([5.], dtype=float32))

    Two documents of a token each, whose states go half of the way to 5:

    >>> _, states = gated_delta_rule(
    ...   *(k, k, 5 * k, jnp.zeros((1, 2, 1)), jnp.full((1, 2, 1), 0.5)),
    ...   initial_state=jnp.array([3.0, 7.0]).reshape(1, 2, 1, 1, 1),
    ...   segment_ids=jnp.array([[0, 1]]),
    ...   chunk_size=2,
    ... )
    >>> states.ravel()
    Array([4., 6.], dtype=float32)
  """
  # As `with_options`, and not by it: a frame less between here and a kernel.
  arrays = Operands(q, k, v, log_decay, beta)
  how = RuleOptions(chunk_size, spec, fused, implementation)
  check(arrays, initial_state, segment_ids, how)
  scale = precision.output_scale(scale, q)
  one, by_document = _form(initial_state, segment_ids)
  rule = on_mesh(one, arrays, how, by_document=by_document)
  return rule(arrays, scale, initial_state, segment_ids, how)


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
  scale = precision.output_scale(scale, arrays.q)
  one, by_document = _form(initial_state, segment_ids)
  rule = on_mesh(one, arrays, how, by_document=by_document)
  return rule(arrays, scale, initial_state, segment_ids, how)


def check(
  arrays: Operands,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> None:
  """Raises what `gated_delta_rule` raises for the same arguments.

  The one check of a call: nothing below it looks at an argument again.
  """
  inputs.check(
    arrays._asdict(),
    state=initial_state,
    segment_ids=segment_ids,
    # A shard has the states of its own documents and not of all.
    by_document=how.sequence_axis is None,
  )
  how.check_dtype(precision.compute_dtype(arrays.v))
  if how.fused:
    wy.check(how, arrays.k, arrays.v)


def _form(
  initial_state: jax.Array | None, segment_ids: jax.Array | None
) -> tuple[Rule, bool]:
  """The rule for what is packed, and whether documents have their states."""
  if segment_ids is None:
    return by_chunks.by_chunks, False
  if inputs.of_documents(initial_state, segment_ids):
    return by_chunks.with_states, True
  return by_chunks.of_documents, False
