"""All of a chunk that needs no state: A, its inverse, u, w and what reads them.

  u = T (beta v),  w = T (beta exp(G) k),  T = (I + A)^-1,
  attention = tril(q k^t exp(G_i - G_j)).

What carries the state from chunk to chunk is in `chunk_scan`.
"""

import functools
from typing import NamedTuple

import jax

from neumann_jax import backends
from neumann_jax.chunk_inverse import bounds
from neumann_jax.chunk_inverse.gradient import OPERATIONS
from neumann_jax.delta_rule import precision
from neumann_jax.delta_rule.chunks import chunk_matrix
from neumann_jax.delta_rule.gates import Gates, chunk_gates
from neumann_jax.delta_rule.layout import Chunks
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.precision import einsum


class Terms(NamedTuple):
  """What the scan over chunks reads; all lead with [N, B, Hk]."""

  q: jax.Array | None  # [N, B, Hk, C, Dk]
  k: jax.Array  # [N, B, Hk, C, Dk]
  u: jax.Array  # [N, B, Hk, R, C, Dv]
  w: jax.Array  # [N, B, Hk, R, C, Dk]
  attention: jax.Array | None  # [N, B, Hk, R, C, C]
  enter: jax.Array  # [N, B, Hk, R, C], weight of the incoming state
  leave: jax.Array  # [N, B, Hk, R, C], weight in the outgoing state


# A, T and the decays are C numbers per token and value head each: the backward
# pass computes them again rather than keep them.
@functools.partial(jax.checkpoint, static_argnums=1)
def terms(chunks: Chunks, how: RuleOptions) -> Terms:
  """Every term of every chunk, from the operands of the rule.

  Args:
    chunks: from `layout.split`; without q there is no attention either.
    how: the options of the rule.
  """
  q, k, v, log_decay, beta, documents = chunks
  gates = chunk_gates(log_decay, documents)
  a = chunk_matrix.matrix(k, beta, gates.decay)  # [N, B, Hk, R, C, C]
  bound, quant = None, how.spec.quant
  if quant is not None and quant.scale == "envelope":
    # Of the keys as they are: codes of long ones would saturate.
    norm = precision.key_norm(k)[..., None]  # [N, B, Hk, 1]
    e = bounds.entrywise(beta, log_decay, key_norm=norm)
    bound = bounds.largest(e)  # [N, B, Hk, R, 1, 1]
  t = backends.run(
    OPERATIONS[how.gradient], how.implementation, how.inverse, a, bound
  )
  # The weights of a token scale a column of T, C numbers, rather than its key
  # and value, Dk + Dv.
  t = t * beta[..., None, :]
  u = einsum("nbhrij,nbhrjv->nbhriv", t, v, v.dtype)
  w = einsum("nbhrij,nbhjd->nbhrid", t * gates.enter[..., None, :], k, v.dtype)
  return _terms(q, k, u.astype(v.dtype), w.astype(v.dtype), gates)


@jax.checkpoint
def terms_of_wy(
  q: jax.Array,
  k: jax.Array,
  u: jax.Array,
  w: jax.Array,
  log_decay: jax.Array,
  documents: jax.Array | None,
) -> Terms:
  """The same where u and w are known, as a kernel made them."""
  return _terms(q, k, u, w, chunk_gates(log_decay, documents))


def _terms(
  q: jax.Array | None, k: jax.Array, u: jax.Array, w: jax.Array, gates: Gates
) -> Terms:
  attention = None
  if q is not None:
    gram = einsum("nbhid,nbhjd->nbhij", q, k, u.dtype)
    # Rounded as an operand of the product with the new values.
    attention = (gram[:, :, :, None] * gates.decay).astype(u.dtype)
  leave = gates.decay[..., -1, :]  # exp(G_C - G_j)
  return Terms(q, k, u, w, attention, gates.enter, leave)
