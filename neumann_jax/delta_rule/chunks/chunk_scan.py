"""The scan over chunks: all of the delta rule that needs the state.

With u and w of every chunk, S [Dk, Dv] the state of a value head and G_C the
decay of a whole chunk:

  x = u - w S,
  o = scale (exp(G) q S + tril(q k^t exp(G_i - G_j)) x),
  S <- exp(G_C) S + (exp(G_C - G) k)^t x,

by a scan in XLA, or by a kernel on the GPU where operands have 16 bits.
"""

import functools
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import backends
from neumann_jax.delta_rule import kept_names, layout
from neumann_jax.delta_rule.chunks import intra_chunk
from neumann_jax.delta_rule.chunks.intra_chunk import Terms
from neumann_jax.delta_rule.gates import finite_decay
from neumann_jax.delta_rule.kernels import chunk_scan_gpu
from neumann_jax.delta_rule.layout import Chunks
from neumann_jax.delta_rule.precision import einsum


class Inputs(NamedTuple):
  """What the scan reads where u and w are known, as a kernel can take it.

  Attributes:
    q: [N, B, Hk, C, Dk], not scaled where it has 16 bits.
    k: [N, B, Hk, C, Dk].
    u: [N, B, Hk, R, C, Dv].
    w: [N, B, Hk, R, C, Dk].
    log_decay: [N, B, Hk, R, C], float32 or float64.
    documents: [N, B, 1, 1, C] or None.
    factor: on the output, as far as q does not have it.
    state: [B, Hk, R, Dk, Dv], before the first token.
  """

  q: jax.Array
  k: jax.Array
  u: jax.Array
  w: jax.Array
  log_decay: jax.Array
  documents: jax.Array | None
  factor: jax.Array
  state: jax.Array

  @classmethod
  def of(
    cls,
    chunks: Chunks,
    u: jax.Array,
    w: jax.Array,
    factor: jax.Array,
    state: jax.Array,
  ) -> Self:
    """What is left of the operands once u and w are known."""
    q, k, _, log_decay, _, documents = chunks
    assert q is not None
    return cls(q, k, u, w, log_decay, documents, factor, state)


def advance(state: jax.Array, terms: Terms) -> tuple[jax.Array, jax.Array]:
  """Takes a state through all chunks.

  Args:
    state: [B, Hk, R, Dk, D], D >= Dv. The columns from Dv on meet no values:
      they end as what becomes of an incoming state, so that the columns of an
      identity end as the propagator of the sequence.
    terms: of all chunks, attention among them.

  Returns:
    The state after the last token, and what the tokens read of it on the way,
    [N, B, Hk, R, C, D], without the scale.
  """
  # A step keeps nothing but the state that entered it. The scan is a loop to
  # XLA already, which cannot merge the two computations of a step.
  body = jax.checkpoint(_chunk, prevent_cse=False)

  def step(state: jax.Array, x: Terms) -> tuple[jax.Array, jax.Array]:
    return body(kept_names.named(state, kept_names.STATES), x)

  return lax.scan(step, state, terms)


def advance_documents(
  states: jax.Array, terms: Terms, document: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`advance` where each chunk goes on from the state of its document.

  Args:
    states: [B, M, Hk, R, Dk, Dv], of M documents a row.
    terms: of all chunks.
    document: [N, B] int32, whose state a chunk reads and writes.
  """
  body = jax.checkpoint(_chunk, prevent_cse=False)
  row = jnp.arange(states.shape[0])

  def step(states, x):
    own, x = x
    state = kept_names.named(states[row, own], kept_names.STATES)
    state, out = body(state, x)
    return states.at[row, own].set(state), out

  return lax.scan(step, states, (document, terms))


def _chunk(state: jax.Array, x: Terms) -> tuple[jax.Array, jax.Array]:
  """Advances the state [B, Hk, R, Dk, D] by one chunk."""
  assert x.q is not None and x.attention is not None
  dot = functools.partial(einsum, dtype=x.u.dtype)
  extra = state.shape[-1] - x.u.shape[-1]
  u = jnp.pad(x.u, [(0, 0)] * (x.u.ndim - 1) + [(0, extra)])
  # Subtracted and summed in the state's type: u - w S cancels.
  new = u.astype(state.dtype) - dot("bhrcd,bhrdv->bhrcv", x.w, state)
  read = dot("bhcd,bhrdv->bhrcv", x.q, state)
  out = x.enter[..., None] * read  # [B, Hk, R, C, D]
  out = out + dot("bhrij,bhrjv->bhriv", x.attention, new)
  written = dot("bhcd,bhrcv->bhrdv", x.k, x.leave[..., None] * new)
  return x.enter[..., -1, None, None] * state + written, out


def _scan(chunk_size: int, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """Outputs [B, N C, Hv, Dv] and the state, in XLA."""
  del chunk_size  # of the arrays
  terms = intra_chunk.terms_of_wy(*inputs[:6])
  state, out = advance(inputs.state, terms)
  out = inputs.factor * layout.merge_values(out)
  return out.astype(inputs.u.dtype), state


def has_kernel(implementation: str, k: jax.Array, v: jax.Array) -> bool:
  """Whether `OPERATION` has a kernel to choose, asked before u and w are known.

  Args:
    implementation: one of `backends.IMPLEMENTATIONS`.
    k: [N, B, Hk, C, Dk].
    v: [N, B, Hk, R, C, Dv], of u's shape and type.
  """
  like = Inputs(k, k, v, v, k, None, k, k)  # k and u are read
  return bool(backends.runs(OPERATION, implementation, k.shape[-2], like))


def _refusal(chunk_size: int, inputs: Inputs) -> str | None:
  k, v = (
    jax.eval_shape(merge, x)
    for merge, x in (
      (layout.merge_keys, inputs.k),
      (layout.merge_values, inputs.u),
    )
  )
  return chunk_scan_gpu.refusal(chunk_size, inputs.u.dtype, k, v)


def _launch(
  chunk_size: int, inputs: Inputs, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Outputs and the state, by the kernel, which reads tokens in their order.

  Where u and w come from a kernel, XLA cancels the cut into chunks against
  this: both are a transposition.
  """
  ids = inputs.documents
  if ids is not None:
    ids = layout.merge_gates(ids)[..., 0]  # [B, N C]
  out, state = chunk_scan_gpu.recurrence(
    layout.merge_keys(inputs.q),
    layout.merge_keys(inputs.k),
    layout.merge_values(inputs.u),
    layout.merge_values(inputs.w),
    finite_decay(layout.merge_gates(inputs.log_decay), ids),
    inputs.factor,
    layout.flat_state(inputs.state),
    chunk_size=chunk_size,
    interpret=interpret,
  )
  return out, state.reshape(inputs.state.shape)


# (chunk_size, Inputs) -> out [B, N C, Hv, Dv] in u's type, state as it came.
OPERATION = backends.Operation(
  _scan, {"gpu": backends.Kernel(_refusal, _launch)}
)
