"""Packed documents kept apart from what is not finite in another.

Zero weights between documents do not do it, because 0 times NaN is NaN. So a
token that holds something infinite, or NaN, and all after it in its document
are computed as inert tokens, and their outputs are NaN: what the rule of that
document alone says. Nothing else of the row sees them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule import inputs, precision
from neumann_jax.delta_rule.inputs import Operands


class Taint(NamedTuple):
  """Where nothing finite can come out.

  Attributes:
    out: [B, T, Hv] bool, of outputs.
    state: [B, Hv] bool, of the state that leaves the last token, or of all
      documents.
  """

  out: jax.Array
  state: jax.Array


@jax.custom_jvp
def clean(x: jax.Array, taint: jax.Array) -> jax.Array:
  """x with 0 where `taint` is set; the derivative there is NaN."""
  return jnp.where(taint, 0, x)


@clean.defjvp
def _clean_jvp(primals, tangents):
  x, taint = primals
  # As a factor and not as a value: the transposed map has it too.
  factor = jnp.where(taint, jnp.nan, 1).astype(x.dtype)
  return clean(x, taint), tangents[0] * factor


def isolate(
  arrays: Operands,
  state: jax.Array | None,
  segment_ids: jax.Array,
  before: jax.Array | None = None,
) -> tuple[Operands, jax.Array | None, Taint]:
  """Operands without what is not finite, and where it was.

  Args:
    arrays: the operands of the rule.
    state: [B, Hv, Dk, Dv] before the first token, or None.
    segment_ids: [B, T].
    before: [B, Hv] bool, whether the state that enters the first document is
      not finite although `state` may be; None: it is as `state` is.

  Returns:
    The operands and the state, and the taint of what comes of them.
  """
  if before is None:
    before = jnp.zeros((arrays.v.shape[0], arrays.v.shape[2]), bool)
  if state is not None:
    bad = ~jnp.isfinite(state).all(axis=(-2, -1))  # [B, Hv]
    before = before | bad
    state = clean(state, bad[..., None, None])
  arrays, taint, out = _isolate(
    arrays, lambda bad: spread(bad, segment_ids, before), segment_ids
  )
  return arrays, state, Taint(out, taint[:, -1])


def isolate_documents(
  arrays: Operands,
  states: jax.Array,
  segment_ids: jax.Array,
  number: jax.Array,
) -> tuple[Operands, jax.Array, Taint]:
  """`isolate` where each document has a state of its own.

  Args:
    arrays: the operands of the rule.
    states: [B, M, Hv, Dk, Dv], before the first token of each document.
    segment_ids: [B, T].
    number: [B, T] int32, which document of its row a token is of.

  Returns:
    As `isolate`; the taint of states is [B, M, Hv].
  """
  bad = ~jnp.isfinite(states).all(axis=(-2, -1))  # [B, M, Hv]
  row = jnp.arange(bad.shape[0])[:, None]
  entering = bad.at[row, number].get(mode="fill", fill_value=False)
  arrays, taint, out = _isolate(
    arrays, lambda bad: spread(bad | entering, segment_ids), segment_ids
  )  # [B, T, Hv] both
  after = bad.at[row, number].max(taint, mode="drop")
  return arrays, clean(states, bad[..., None, None]), Taint(out, after)


def _isolate(
  arrays: Operands,
  spread_values: Callable[[jax.Array], jax.Array],
  segment_ids: jax.Array,
) -> tuple[Operands, jax.Array, jax.Array]:
  """The operands cleaned; which tokens write, and which give, what is bad."""
  q, k, v, log_decay, beta = arrays
  groups = v.shape[2] // k.shape[2]
  # Of -inf a token forgets, which is finite; of NaN and inf nothing is known.
  gates = ~((log_decay <= 0) & jnp.isfinite(beta))  # [B, T, Hv]
  # The square as well: keys are multiplied with each other.
  square = jnp.sum(jnp.square(k.astype(precision.compute_dtype(k))), axis=-1)
  keys = spread(~jnp.isfinite(square), segment_ids)  # [B, T, Hk]
  values = ~_finite(v) | gates | jnp.repeat(keys, groups, axis=2)
  taint = spread_values(values)  # [B, T, Hv]
  queries = ~_finite(q)  # [B, T, Hk]
  # A query reads and writes nothing: it spoils its own output alone.
  out = taint | jnp.repeat(queries, groups, axis=2)
  arrays = Operands(
    clean(q, queries[..., None]),
    clean(k, keys[..., None]),
    clean(v, taint[..., None]),
    clean(log_decay, taint),
    clean(beta, taint),
  )
  return arrays, taint, out


def spread(
  bad: jax.Array, segment_ids: jax.Array, before: jax.Array | None = None
) -> jax.Array:
  """Whether a token or one before it in its document is bad.

  Args:
    bad: [B, T, H].
    segment_ids: [B, T].
    before: [B, H], whether something bad enters the first document.
  """
  number = jnp.arange(1, bad.shape[1] + 1, dtype=jnp.int32)[:, None]  # [T, 1]
  starts = inputs.segment_starts(segment_ids)[..., None]  # [B, T, 1]
  # The latest bad token, counted from 1, against the document's first.
  last = lax.cummax(jnp.where(bad, number, 0), axis=1)  # [B, T, H]
  first = lax.cummax(jnp.where(starts, number, 1), axis=1)  # [B, T, 1]
  found = last >= first
  if before is not None:
    found = found | (before[:, None] & (first == 1))
  return found


def restore(
  out: jax.Array, state: jax.Array, taint: Taint
) -> tuple[jax.Array, jax.Array]:
  """Outputs [B, T, Hv, Dv] and state [B, ..., Dk, Dv] with their NaN."""
  # By selection, so that no cotangent of NaN reaches what others share.
  nan = lambda x, where: jnp.where(where, jnp.nan, x)  # noqa: E731
  return (
    nan(out, taint.out[..., None]),
    nan(state, taint.state[..., None, None]),
  )


def _finite(x: jax.Array) -> jax.Array:
  """[..., D] -> [...], whether all of a vector is finite."""
  return jnp.isfinite(x).all(axis=-1)
