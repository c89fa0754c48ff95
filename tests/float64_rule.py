"""The gated delta rule and the block around it, token by token in float64.

What the tests of rule, layers and models compare with; problems and tolerances
are in `oracles`.
"""

from typing import NamedTuple

import numpy as np


class Tape(NamedTuple):
  """The float64 token loop, with what its adjoint needs; lists run over T."""

  out: np.ndarray  # [B, T, Hv, Dv]
  states: list  # T + 1 of [B, Hv, Dk, Dv], before each token and at the end
  decayed: list  # the state of a token after its decay
  errors: list  # v - read, [B, Hv, Dv]


def _delta_rule_arrays(q, k, v, log_decay, beta, segment_ids):
  """float64, keys repeated over the value heads that read them; exp(g)."""
  q, k, v, log_decay, beta = (
    np.asarray(x, np.float64) for x in (q, k, v, log_decay, beta)
  )
  reads = np.arange(v.shape[2]) // (v.shape[2] // k.shape[2])
  keep = np.exp(log_decay)  # [B, T, Hv]
  if segment_ids is not None:
    starts = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    keep = np.where(starts[..., None], 0, keep)
  return q[:, :, reads], k[:, :, reads], v, keep, beta


def delta_rule_loop(
  q,
  k,
  v,
  log_decay,
  beta,
  *,
  scale=None,
  initial_state=None,
  segment_ids=None,
):
  """The gated delta rule token by token in float64: a Tape.

  Shapes as `neumann_jax.gated_delta_rule`.
  """
  q, k, v, keep, beta = _delta_rule_arrays(
    q, k, v, log_decay, beta, segment_ids
  )
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  batch, length, heads, dk = k.shape
  state = np.zeros((batch, heads, dk, v.shape[-1]))
  if initial_state is not None:
    state = np.asarray(initial_state, np.float64)
  tape = Tape(np.zeros(v.shape), [state], [], [])
  for t in range(length):
    state = keep[:, t, :, None, None] * state
    error = v[:, t] - np.einsum("bhd,bhdv->bhv", k[:, t], state)
    tape.decayed.append(state)
    tape.errors.append(error)
    delta = beta[:, t, :, None] * error
    state = state + k[:, t, ..., None] * delta[..., None, :]
    tape.states.append(state)
    tape.out[:, t] = scale * np.einsum("bhd,bhdv->bhv", q[:, t], state)
  return tape


def delta_rule(p, segment_ids=None):
  """Output and final state of a Problem by `delta_rule_loop`."""
  tape = p.under(delta_rule_loop, segment_ids)
  return tape.out, tape.states[-1]


def delta_rule_adjoint(
  q, k, v, log_decay, beta, d_out, d_state, *, scale=None, **options
):
  """Gradients by the hand-written adjoint of the loop, in float64.

  Args:
    q: as all operands, as for `delta_rule_loop`.
    k: likewise.
    v: likewise.
    log_decay: likewise.
    beta: likewise.
    d_out: cotangent of the output.
    d_state: cotangent of the final state.
    scale: of the output.
    **options: initial_state and segment_ids.

  Returns:
    Gradients of q, k, v, log_decay, beta and the initial state.
  """
  tape = delta_rule_loop(q, k, v, log_decay, beta, scale=scale, **options)
  key_shape = np.shape(k)
  q, k, v, keep, beta = _delta_rule_arrays(
    q, k, v, log_decay, beta, options.get("segment_ids")
  )
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
  d_decay, d_beta = np.zeros_like(keep), np.zeros_like(beta)
  for t in reversed(range(v.shape[1])):
    after, decayed, error = tape.states[t + 1], tape.decayed[t], tape.errors[t]
    d_q[:, t] = scale * np.einsum("bhdv,bhv->bhd", after, d_out[:, t])
    d_state = d_state + scale * q[:, t, ..., None] * d_out[:, t, :, None]
    d_delta = np.einsum("bhd,bhdv->bhv", k[:, t], d_state)
    d_beta[:, t] = np.sum(d_delta * error, axis=-1)
    d_v[:, t] = beta[:, t, :, None] * d_delta
    delta = beta[:, t, :, None] * error
    d_k[:, t] = np.einsum("bhdv,bhv->bhd", d_state, delta)
    d_k[:, t] -= np.einsum("bhdv,bhv->bhd", decayed, d_v[:, t])
    d_state = d_state - k[:, t, ..., None] * d_v[:, t, :, None]
    d_decay[:, t] = np.sum(d_state * decayed, axis=(-1, -2))
    d_state = keep[:, t, :, None, None] * d_state
  batch, length, hk, dk = key_shape
  group = (batch, length, hk, -1, dk)
  d_q, d_k = d_q.reshape(group).sum(3), d_k.reshape(group).sum(3)
  return d_q, d_k, d_v, d_decay, d_beta, d_state


class Block(NamedTuple):
  """What the block computes from a start; leaves run over what is cached."""

  y: np.ndarray  # [B, T, hidden]
  conv_state: np.ndarray  # [B, channels, W]
  recurrent_state: np.ndarray  # [B, Hv, Dk, Dv]
  operands: tuple  # q, k, v, log_decay, beta


def silu(x):
  return x / (1 + np.exp(-x))


def causal_conv(x, taps, segment_ids=None, history=None):
  """Sum over w of taps[w] x[t - W + 1 + w], and the last W columns.

  Args:
    x: [B, T, D].
    taps: [W, D].
    segment_ids: [B, T] or None; a column of another document counts as 0.
    history: [B, W, D], columns before x that belong to its first document.

  Returns:
    [B, T, D] and [B, W, D].
  """
  (batch, length, dim), width = x.shape, len(taps)
  if segment_ids is None:
    segment_ids = np.zeros((batch, length))
  if history is None:
    history = np.zeros((batch, width, dim))
  columns = np.concatenate([history, x], 1)
  ids = np.concatenate([segment_ids[:, :1]] * width + [segment_ids], 1)
  y = np.zeros((batch, length + 1, width, dim))  # the last one: what is kept
  for b in range(batch):
    for t in range(length + 1):
      here = min(t, length - 1)
      for w in range(width):
        at = t + w + (t < length)
        if ids[b, at] == segment_ids[b, here]:
          y[b, t, w] = columns[b, at]
  return np.einsum("btwd,wd->btd", y[:, :-1], taps), y[:, -1]


def gated_delta_net(
  x,
  weights,
  *,
  key_heads,
  value_heads,
  key_dim,
  value_dim,
  eps=1e-6,
  segment_ids=None,
):
  """The Qwen3.5 block in float64 from a checkpoint's own layout.

  Args:
    x: [B, T, hidden].
    weights: by Hugging Face name; Linear weights [out, in], conv1d.weight
      [channels, 1, W].
    key_heads: Hk.
    value_heads: Hv.
    key_dim: Dk.
    value_dim: Dv.
    eps: of both normalisations.
    segment_ids: [B, T] or None.
  """
  x = np.asarray(x, np.float64)
  weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
  batch, length, _ = x.shape
  raw = x @ weights["in_proj_qkv.weight"].T  # [B, T, channels]
  taps = weights["conv1d.weight"][:, 0].T  # [W, channels]
  mixed, conv_state = causal_conv(raw, taps, segment_ids)
  mixed = silu(mixed)
  cut = key_heads * key_dim
  q = mixed[..., :cut].reshape(batch, length, key_heads, key_dim)
  k = mixed[..., cut : 2 * cut].reshape(batch, length, key_heads, key_dim)
  v = mixed[..., 2 * cut :].reshape(batch, length, value_heads, value_dim)
  q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + eps) for a in (q, k))
  beta = 1 / (1 + np.exp(-x @ weights["in_proj_b.weight"].T))
  step = x @ weights["in_proj_a.weight"].T + weights["dt_bias"]
  log_decay = -np.exp(weights["A_log"]) * np.log1p(np.exp(step))
  operands = (q, k, v, log_decay, beta)
  tape = delta_rule_loop(*operands, segment_ids=segment_ids)
  out = tape.out
  normed = out / np.sqrt((out**2).mean(-1, keepdims=True) + eps)
  gate = x @ weights["in_proj_z.weight"].T
  gated = weights["norm.weight"] * normed * silu(gate.reshape(out.shape))
  y = gated.reshape(batch, length, -1) @ weights["out_proj.weight"].T
  return Block(y, np.swapaxes(conv_state, 1, 2), tape.states[-1], operands)
