"""The gated delta rule by chunks (arXiv 2412.06464).

C tokens at once through T = (I + A)^-1, A_ij = beta_i <k_i, k_j> exp(G_i-G_j),
with S [Dk, Dv] the state of a value head and G_C the decay of the whole chunk:

  u = T (beta v),  w = T (beta exp(G) k),  x = u - w S,
  o = scale (exp(G) q S + tril(q k^t exp(G_i - G_j)) x),
  S <- exp(G_C) S + (exp(G_C - G) k)^t x.

Everything is computed in float32 with products at highest precision, float64
for float64 values; only the inverse follows its `InverseSpec`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import chunks, dispatch, operands, wy
from neumann_jax.operands import Operands
from neumann_jax.spec import InverseSpec

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


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
    implementation: "auto", "tpu", "gpu", "xla" or "interpret".

  Returns:
    out [B, T, Hv, Dv] in v's dtype, and the final state [B, Hv, Dk, Dv] in
    float32 (float64 for float64 values).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape, a value or an option out of range; values are
      checked on concrete arrays only.
  """
  arrays = Operands(q, k, v, log_decay, beta)
  how = Form(chunk_size, spec, implementation, fused)
  check(arrays, initial_state, segment_ids, how)
  scale = operands.output_scale(scale, q)
  return _by_chunks(arrays, scale, initial_state, segment_ids, how)


class Form(NamedTuple):
  """How the rule is computed: the static options of `gated_delta_rule`."""

  chunk_size: int
  spec: InverseSpec
  implementation: str
  fused: bool


def check(
  arrays: Operands,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: Form,
) -> None:
  """Raises what `gated_delta_rule` raises for the same arguments."""
  operands.check(arrays._asdict(), state=initial_state, segment_ids=segment_ids)
  dtype = operands.compute_dtype(arrays.v)
  dispatch.check(how.implementation, how.spec, how.chunk_size, dtype)
  if how.fused:
    wy.check(how.implementation, how.spec, how.chunk_size, arrays.k, arrays.v)


class Prepared(NamedTuple):
  """What the scan over chunks reads; all lead with [N, B, Hk]."""

  q: jax.Array  # [N, B, Hk, C, Dk], scaled
  k: jax.Array  # [N, B, Hk, C, Dk]
  u: jax.Array  # [N, B, Hk, R, C, Dv]
  w: jax.Array  # [N, B, Hk, R, C, Dk]
  attention: jax.Array  # [N, B, Hk, R, C, C]
  enter: jax.Array  # [N, B, Hk, R, C], weight of the incoming state
  leave: jax.Array  # [N, B, Hk, R, C], weight in the outgoing state


@functools.partial(jax.jit, static_argnums=4)
def _by_chunks(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: Form,
) -> tuple[jax.Array, jax.Array]:
  state = operands.grouped_state(initial_state, arrays)
  prepared = prepare(arrays, scale, segment_ids, how)
  state, out = advance(state, prepared)
  out = chunks.merge_values(out, arrays.v.shape[1])
  return out.astype(arrays.v.dtype), operands.flat_state(state)


def prepare(
  arrays: Operands,
  scale: jax.Array,
  segment_ids: jax.Array | None,
  how: Form,
) -> Prepared:
  """The part of the rule that does not need the state, all chunks at once.

  Args:
    arrays: the operands.
    scale: of the output.
    segment_ids: [B, T] or None.
    how: the static options.

  Returns:
    What `advance` reads, in the dtype of computation.
  """
  c, heads = how.chunk_size, arrays.k.shape[2]
  q, k, v, log_decay, beta = operands.widened(arrays, scale)
  given = None
  if how.fused:
    u, w = wy.compute(*arrays[1:], segment_ids, how.spec, c, how.implementation)
    given = (
      chunks.split_values(u.astype(v.dtype), c, heads),
      chunks.split_values(w.astype(v.dtype), c, heads),
    )
  norm = wy.key_norm(arrays.k)
  split = functools.partial(_prepare, how.spec, how.implementation, norm)
  return jax.checkpoint(split)(
    chunks.split_keys(q, c),
    chunks.split_keys(k, c),
    chunks.split_values(v, c, heads),
    chunks.split_gates(log_decay, c, heads),
    chunks.split_gates(beta, c, heads),
    chunks.split_documents(segment_ids, c),
    given,
  )


def advance(
  state: jax.Array, prepared: Prepared
) -> tuple[jax.Array, jax.Array]:
  """Takes a state through all chunks.

  Args:
    state: [B, Hk, R, Dk, D], D >= Dv. The columns from Dv on meet no values:
      they end as what becomes of an incoming state, so that the columns of an
      identity end as the propagator of the sequence.
    prepared: from `prepare`.

  Returns:
    The state after the last token, and what the tokens read of it on the way,
    [N, B, Hk, R, C, D].
  """
  body = jax.checkpoint(_chunk, prevent_cse=False)
  return lax.scan(body, state, prepared)


def _prepare(
  spec: InverseSpec,
  implementation: str,
  key_norm: float,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  documents: jax.Array | None,
  given: tuple[jax.Array, jax.Array] | None,
) -> Prepared:
  """`given` is u and w where a fused kernel has computed them."""
  gates = chunks.chunk_gates(log_decay, documents)
  u, w = given or wy.of_chunks(
    k,
    v,
    beta,
    log_decay,
    gates,
    spec=spec,
    implementation=implementation,
    key_norm=key_norm,
  )
  decay, enter = gates
  return Prepared(
    q=q,
    k=k,
    u=u,
    w=w,
    attention=_einsum("nbhid,nbhjd->nbhij", q, k)[:, :, :, None] * decay,
    enter=enter,
    leave=decay[..., -1, :],
  )


def _chunk(state: jax.Array, x: Prepared) -> tuple[jax.Array, jax.Array]:
  """Advances the state [B, Hk, R, Dk, D] by one chunk."""
  extra = state.shape[-1] - x.u.shape[-1]
  u = jnp.pad(x.u, [(0, 0)] * (x.u.ndim - 1) + [(0, extra)])
  new = u - _einsum("bhrcd,bhrdv->bhrcv", x.w, state)
  read = _einsum("bhcd,bhrdv->bhrcv", x.q, state)
  out = x.enter[..., None] * read
  out = out + _einsum("bhrij,bhrjv->bhriv", x.attention, new)
  written = _einsum("bhcd,bhrcv->bhrdv", x.k, x.leave[..., None] * new)
  return x.enter[..., -1, None, None] * state + written, out
