"""The gated delta rule token by token, and one token of it: decoding.

Per value head, with S [Dk, Dv] the state and g the log decay of a token:

  S <- exp(g) S;  S <- S + k (beta (v - S^t k))^t;  o = scale S^t q.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule import inputs, layout, precision
from neumann_jax.delta_rule.inputs import Operands

# A reference: in full precision whatever a platform's default is.
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def gated_delta_recurrent(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  scale: float | None = None,
  initial_state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same rule as `gated_delta_rule`, one token after the other.

  Serial, and its backward pass keeps one state per token: for short sequences
  and as a reference.

  Args:
    q: [B, T, Hk, Dk].
    k: [B, T, Hk, Dk].
    v: [B, T, Hv, Dv].
    log_decay: [B, T, Hv], <= 0.
    beta: [B, T, Hv], in [0, 2].
    scale: of the output; None is Dk^-0.5.
    initial_state: [B, Hv, Dk, Dv] or None; or [B, M, Hv, Dk, Dv], as for
      `gated_delta_rule`.
    segment_ids: [B, T] integers, one for each document of a row, or None.

  Returns:
    out [B, T, Hv, Dv] in v's dtype and the final state, as `gated_delta_rule`.

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range.

  Example:
    One key, written with half strength twice: 4, then half of the way to 8.

    >>> import jax.numpy as jnp
    >>> k = jnp.ones((1, 2, 1, 1))
    >>> v = jnp.array([8.0, 8.0]).reshape(1, 2, 1, 1)
    >>> gates = jnp.zeros((1, 2, 1)), jnp.full((1, 2, 1), 0.5)
    >>> out, state = gated_delta_recurrent(k, k, v, *gates)
    >>> out.ravel(), state.ravel()
    (Array([4., 6.], dtype=float32), Array([6.], dtype=float32))
  """
  arrays = Operands(q, k, v, log_decay, beta)
  inputs.check(
    arrays._asdict(),
    state=initial_state,
    segment_ids=segment_ids,
    by_document=True,
  )
  scale = precision.output_scale(scale, q)
  if inputs.of_documents(initial_state, segment_ids):
    return _with_states(arrays, scale, initial_state, segment_ids)
  return _by_tokens(arrays, scale, initial_state, segment_ids)


def gated_delta_step(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  state: jax.Array,
  *,
  scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One token of the gated delta rule.

  Args:
    q: [B, Hk, Dk].
    k: [B, Hk, Dk].
    v: [B, Hv, Dv], Hv a whole multiple of Hk.
    log_decay: [B, Hv], <= 0.
    beta: [B, Hv], in [0, 2].
    state: [B, Hv, Dk, Dv], before the token.
    scale: of the output; None is Dk^-0.5.

  Returns:
    out [B, Hv, Dv] in v's dtype, and the state after the token in float32
    (float64 for float64 values).

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range.

  Example:
    A state that answers 3 to a key, and half of the way from there to 5:

    >>> import jax.numpy as jnp
    >>> k, state = jnp.ones((1, 1, 1)), jnp.full((1, 1, 1, 1), 3.0)
    >>> gates = jnp.zeros((1, 1)), jnp.full((1, 1), 0.5)
    >>> out, state = gated_delta_step(k, k, 5 * k, *gates, state)
    >>> out.ravel(), state.ravel()
    (Array([4.], dtype=float32), Array([4.], dtype=float32))
  """
  arrays = Operands(q, k, v, log_decay, beta)
  inputs.check(
    arrays._asdict(),
    tokens=False,
    state=state,
  )
  return one_token(arrays, precision.output_scale(scale, q), state)


@jax.jit
def _by_tokens(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  dtype = arrays.v.dtype
  widened = _widened(arrays, scale)
  state = layout.grouped_state(initial_state, arrays.k, arrays.v, *arrays)
  starts = jnp.zeros(arrays.v.shape[:2], bool)
  if segment_ids is not None:
    starts = inputs.segment_starts(segment_ids)

  def body(state, x):
    start, token = x
    # By selection, not by a decay of 0, which would keep NaN of a document.
    state = jnp.where(start[:, None, None, None, None], 0, state)
    return _token(state, token)

  # A scan runs over the first axis.
  tokens = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (starts, widened))
  state, out = lax.scan(body, state, tokens)
  return jnp.swapaxes(out, 0, 1).astype(dtype), layout.flat_state(state)


@jax.jit
def _with_states(
  arrays: Operands,
  scale: jax.Array,
  states: jax.Array,
  segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """For documents with states of their own, [B, M, Hv, Dk, Dv]."""
  row = jnp.arange(states.shape[0])
  widened = _widened(arrays, scale)

  def body(states, x):
    own, token = x
    # A document past the M-th reads NaN, and writes nowhere.
    state = states.at[row, own].get(mode="fill", fill_value=jnp.nan)
    state = layout.grouped_state(state, token.k, token.v, *token)
    state, out = _token(state, token)
    state = layout.flat_state(state)
    return states.at[row, own].set(state, mode="drop"), out

  number = layout.numbers(segment_ids)
  tokens = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (number, widened))
  states = states.astype(precision.compute_dtype(arrays.v))
  states, out = lax.scan(body, states, tokens)
  return jnp.swapaxes(out, 0, 1).astype(arrays.v.dtype), states


@jax.jit
def one_token(
  arrays: Operands, scale: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_step` of operands that have been checked."""
  widened = _widened(arrays, scale)
  grouped = layout.grouped_state(state, arrays.k, arrays.v, *arrays)
  grouped, out = _token(grouped, widened)
  return out.astype(arrays.v.dtype), layout.flat_state(grouped)


def _widened(arrays: Operands, scale: jax.Array) -> Operands:
  """The operands in v's dtype of computation, with q scaled."""
  dtype = precision.compute_dtype(arrays.v)
  wide = Operands(*(x.astype(dtype) for x in arrays))
  return wide._replace(q=wide.q * jnp.asarray(scale, dtype))


def _token(state: jax.Array, token: Operands) -> tuple[jax.Array, jax.Array]:
  """Advances the state [B, Hk, R, Dk, Dv] by one token."""
  q, k, v, log_decay, beta = token
  groups = state.shape[:3]
  # Decay first: the delta is taken from what the decayed state answers.
  state = jnp.exp(log_decay).reshape(*groups, 1, 1) * state
  read = _einsum("bhd,bhrdv->bhrv", k, state)
  delta = beta.reshape(*groups, 1) * (v.reshape(read.shape) - read)
  state = state + _einsum("bhd,bhrv->bhrdv", k, delta)
  return state, _einsum("bhd,bhrdv->bhrv", q, state).reshape(v.shape)
