"""Operands of the rule, and what the float64 recurrence makes of them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import device_keys, key_families
from neumann_jax.delta_rule.recurrent import gated_delta_recurrent

COLUMNS = ("out", "dq", "dk", "dv", "dg", "dbeta")


class Shape(NamedTuple):
  """Rows, tokens, key heads and value heads."""

  rows: int
  tokens: int
  key_heads: int
  value_heads: int


class Problem(NamedTuple):
  """Operands, and the cotangent of the outputs."""

  q: jax.Array  # [B, T, Hk, D] bfloat16, normalised
  k: jax.Array  # [B, T, Hk, D] bfloat16, normalised
  v: jax.Array  # [B, T, Hv, D] bfloat16
  log_decay: jax.Array  # [B, T, Hv] float32
  beta: jax.Array  # [B, T, Hv] float32
  do: jax.Array  # [B, T, Hv, D] bfloat16


def draw(
  shape: Shape,  # of the operands
  *,
  dim: int,  # width of keys and values
  seed: int,  # the same seed gives the same problem
  # of the keys, see `key_families`; a head's row is one draw
  family: str = "independent",
  # "usual", logsigmoid(N(0, 1) + 3), or a log decay of every token
  gates: str = "usual",
  beta_max: float = 1.0,  # beta is sigmoid(N(0, 1)) times this
) -> Problem:
  """Draws a problem."""
  rng = np.random.default_rng(seed)
  b, t, hk, hv = shape
  keys = key_families.keys(family, rng, b * hk, t, dim)
  keys = np.moveaxis(keys.reshape(b, hk, t, dim), 1, 2)
  q = rng.standard_normal((b, t, hk, dim), np.float32)
  q /= np.linalg.norm(q, axis=-1, keepdims=True)
  v, do = (rng.standard_normal((b, t, hv, dim), np.float32) for _ in range(2))
  noise = [rng.standard_normal((b, t, hv), np.float32) for _ in range(2)]
  if gates == "usual":
    log_decay = -np.logaddexp(0, -(noise[0] + 3))
  else:
    log_decay = np.full_like(noise[0], float(gates))
  beta = beta_max / (1 + np.exp(-noise[1]))
  wide = {"log_decay": log_decay, "beta": beta}
  narrow = {"q": q, "k": keys, "v": v, "do": do}
  return Problem(
    **{name: jnp.asarray(x, jnp.float32) for name, x in wide.items()},
    **{name: jnp.asarray(x, jnp.bfloat16) for name, x in narrow.items()},
  )


def on_device(
  shape: Shape,  # of the operands
  family: str,  # as for `draw`
  gates: str,  # as for `draw`
  beta_max: float,  # beta is uniform up to this
  *,
  dim: int,  # width of keys and values
  seed: int,  # the same seed gives the same problem on one backend
) -> Problem:
  """A problem of the same kinds, drawn where it is used: sizes to be timed."""
  usual = gates == "usual"
  constant = 0.0 if usual else float(gates)
  return _on_device(shape, family, usual, dim, constant, beta_max, seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _on_device(shape, family, usual, dim, constant, beta_max, seed):
  b, t, hk, hv = shape
  keys = jax.random.split(jax.random.key(seed), 6)
  k = device_keys.keys(family, keys[0], b * hk, t, dim)
  k = jnp.moveaxis(k.reshape(b, hk, t, dim), 1, 2)
  q = jax.random.normal(keys[1], (b, t, hk, dim))
  q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
  v, do = (jax.random.normal(key, (b, t, hv, dim)) for key in keys[2:4])
  log_decay = jnp.full((b, t, hv), constant, jnp.float32)
  if usual:
    noise = jax.random.normal(keys[4], (b, t, hv))
    log_decay = jax.nn.log_sigmoid(noise + 3)
  beta = beta_max * jax.random.uniform(keys[5], (b, t, hv))
  q, k, v, do = (x.astype(jnp.bfloat16) for x in (q, k, v, do))
  return Problem(q, k, v, log_decay, beta, do)


def exact(problem: Problem) -> list[np.ndarray]:
  """The outputs and the gradients of COLUMNS, in float64.

  A key head at a time: the states of all tokens are kept for the way back, and
  those of eight heads of 256 did not fit on a card beside what torch holds.
  """
  by_head = [
    np.split(np.asarray(x.astype(jnp.float32)), problem.k.shape[2], axis=2)
    for x in problem
  ]
  found = []
  with jax.enable_x64(True):
    for head in zip(*by_head, strict=True):
      *operands, do = (jnp.asarray(x, jnp.float64) for x in head)
      out = _exact(tuple(operands), do)
      found.append([np.asarray(x) for x in out])
  return [np.concatenate(x, axis=2) for x in zip(*found, strict=True)]


@jax.jit
def _exact(operands, do):
  out, pull = jax.vjp(lambda *x: gated_delta_recurrent(*x)[0], *operands)
  return out, *pull(do)


def errors(found: list[jax.Array], truth: list[np.ndarray]) -> dict[str, float]:
  """|found - truth| / |truth| of every column, over all entries."""
  row = {}
  for name, x, y in zip(COLUMNS, found, truth, strict=True):
    wide = np.asarray(x.astype(jnp.float32), np.float64)
    row[name] = float(np.linalg.norm(wide - y) / np.linalg.norm(y))
  return row
