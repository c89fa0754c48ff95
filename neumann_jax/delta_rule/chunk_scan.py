"""The recurrence over chunks: all of the delta rule that needs the state.

With u and w of every chunk, S [Dk, Dv] the state of a value head and G_C the
decay of a whole chunk:

  x = u - w S,
  o = scale (exp(G) q S + tril(q k^t exp(G_i - G_j)) x),
  S <- exp(G_C) S + (exp(G_C - G) k)^t x,

by a scan in XLA, or by a kernel on the GPU where operands have 16 bits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import backends
from neumann_jax.chunk_inverse import dispatch
from neumann_jax.delta_rule import inputs as operands
from neumann_jax.delta_rule import layout
from neumann_jax.delta_rule.kernels import chunk_scan_gpu


class Inputs(NamedTuple):
  """What the recurrence reads.

  Attributes:
    q: [B, T, Hk, Dk].
    k: [B, T, Hk, Dk].
    u: [B, T, Hv, Dv].
    w: [B, T, Hv, Dk].
    log_decay: [B, T, Hv], float32 or float64.
    scale: of the output.
    initial_state: [B, Hv, Dk, Dv] or None.
  """

  q: jax.Array
  k: jax.Array
  u: jax.Array
  w: jax.Array
  log_decay: jax.Array
  scale: jax.Array
  initial_state: jax.Array | None


class Prepared(NamedTuple):
  """What the scan over chunks reads; all lead with [N, B, Hk]."""

  q: jax.Array  # [N, B, Hk, C, Dk]
  k: jax.Array  # [N, B, Hk, C, Dk]
  u: jax.Array  # [N, B, Hk, R, C, Dv]
  w: jax.Array  # [N, B, Hk, R, C, Dk]
  attention: jax.Array  # [N, B, Hk, R, C, C]
  enter: jax.Array  # [N, B, Hk, R, C], weight of the incoming state
  leave: jax.Array  # [N, B, Hk, R, C], weight in the outgoing state


def recurrence(
  inputs: Inputs,
  segment_ids: jax.Array | None,
  *,
  chunk_size: int,
  implementation: str,
) -> tuple[jax.Array, jax.Array]:
  """Outputs of all tokens and the final state.

  Args:
    inputs: q, k, u and w of one type, that of the operands of products.
    segment_ids: [B, T] integers, non-decreasing along a row, or None.
    chunk_size: C.
    implementation: "gpu" takes the kernel and "auto" takes it on a GPU, both
      where it can run; everything else is the scan.

  Returns:
    out [B, T, Hv, Dv] and the state [B, Hv, Dk, Dv], float32 or float64.
  """
  reason = chunk_scan_gpu.refusal(
    chunk_size, inputs.u.dtype, inputs.k, inputs.u
  )
  if implementation in ("auto", "gpu") and reason is None:
    return _kernel(inputs, segment_ids, chunk_size, implementation)
  return _scan(inputs, segment_ids, chunk_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel(inputs, segment_ids, chunk_size, implementation):
  """The kernel; its derivative is that of the scan."""
  if implementation == "gpu":
    q = backends.only_on(
      inputs.q,
      dispatch.PLATFORMS["gpu"],
      dispatch.wrong_platform(implementation),
    )
    return _launch(inputs._replace(q=q), segment_ids, chunk_size)
  return lax.platform_dependent(
    inputs,
    segment_ids,
    default=functools.partial(_scan, chunk_size=chunk_size),
    cuda=functools.partial(_launch, chunk_size=chunk_size),
  )


def _kernel_fwd(inputs, segment_ids, chunk_size, implementation):
  out = _kernel(inputs, segment_ids, chunk_size, implementation)
  return out, (inputs, segment_ids)


def _kernel_bwd(chunk_size, implementation, residuals, cotangents):
  del implementation
  inputs, segment_ids = residuals
  _, pull = jax.vjp(lambda x: _scan(x, segment_ids, chunk_size), inputs)
  return (*pull(cotangents), None)


_kernel.defvjp(_kernel_fwd, _kernel_bwd)


def _launch(
  inputs: Inputs,
  segment_ids: jax.Array | None,
  chunk_size: int,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Pads to whole chunks and calls the kernel, its output in float32."""
  length = inputs.u.shape[1]
  log_decay = layout.finite_decay(inputs.log_decay, segment_ids)
  q, k, u, w, log_decay = (
    layout.padded(x, chunk_size) for x in (*inputs[:4], log_decay)
  )
  state = operands.grouped_state(inputs.initial_state, k, u, q, w, log_decay)
  out, state = chunk_scan_gpu.recurrence(
    q,
    k,
    u,
    w,
    log_decay,
    inputs.scale,
    operands.flat_state(state),
    chunk_size=chunk_size,
    interpret=interpret,
  )
  return out[:, :length], state


def _scan(
  inputs: Inputs, segment_ids: jax.Array | None, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
  """The recurrence in XLA."""
  state = operands.grouped_state(
    inputs.initial_state, inputs.k, inputs.u, *inputs[:5]
  )
  prepared, scale = prepare(inputs, segment_ids, chunk_size)
  state, out = advance(state, prepared)
  out = scale * layout.merge_values(out, inputs.u.shape[1])
  return out.astype(inputs.u.dtype), operands.flat_state(state)


def prepare(
  inputs: Inputs, segment_ids: jax.Array | None, chunk_size: int
) -> tuple[Prepared, jax.Array]:
  """The part of the scan that does not need the state, all chunks at once.

  Args:
    inputs: of the recurrence.
    segment_ids: [B, T] or None.
    chunk_size: C.

  Returns:
    What `advance` reads, and the factor that is left for its outputs.
  """
  heads = inputs.k.shape[2]
  q, scale = _scaled(inputs.q, inputs.scale)
  prepared = jax.checkpoint(_prepare)(
    layout.split_keys(q, chunk_size),
    layout.split_keys(inputs.k, chunk_size),
    layout.split_values(inputs.u, chunk_size, heads),
    layout.split_values(inputs.w, chunk_size, heads),
    layout.split_gates(inputs.log_decay, chunk_size, heads),
    layout.split_documents(segment_ids, chunk_size),
  )
  return prepared, scale


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


def _scaled(q: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Scales q, unless that would round it once more; and the factor left."""
  if operands.is_narrow(q.dtype):
    return q, scale
  return q * jnp.asarray(scale, q.dtype), jnp.ones((), q.dtype)


def _prepare(
  q: jax.Array,
  k: jax.Array,
  u: jax.Array,
  w: jax.Array,
  log_decay: jax.Array,
  documents: jax.Array | None,
) -> Prepared:
  decay, enter = layout.chunk_gates(log_decay, documents)
  gram = operands.einsum("nbhid,nbhjd->nbhij", q, k, u.dtype)
  attention = gram[:, :, :, None] * decay
  return Prepared(
    q=q,
    k=k,
    u=u,
    w=w,
    attention=attention.astype(u.dtype),
    enter=enter,
    leave=decay[..., -1, :],
  )


def _chunk(state: jax.Array, x: Prepared) -> tuple[jax.Array, jax.Array]:
  """Advances the state [B, Hk, R, Dk, D] by one chunk."""
  dot = functools.partial(operands.einsum, dtype=x.u.dtype)
  extra = state.shape[-1] - x.u.shape[-1]
  u = jnp.pad(x.u, [(0, 0)] * (x.u.ndim - 1) + [(0, extra)])
  new = u.astype(state.dtype) - dot("bhrcd,bhrdv->bhrcv", x.w, state)
  read = dot("bhcd,bhrdv->bhrcv", x.q, state)
  out = x.enter[..., None] * read
  out = out + dot("bhrij,bhrjv->bhriv", x.attention, new)
  written = dot("bhcd,bhrcv->bhrdv", x.k, x.leave[..., None] * new)
  return x.enter[..., -1, None, None] * state + written, out
