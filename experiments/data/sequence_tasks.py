"""Synthetic tasks that need a memory, as rows of tokens with known answers.

  recall  multi-query associative recall (arXiv 2312.04927): 8, 16, 32 and 64
          pairs of a key and a value, then every key again, in another order
  needle  four keys with values hidden in text, asked for at its end
  state   up to 32 swaps of three cups; where the balls are in the end
  copy    random bytes that repeat with a period

A row is a pure function of its key. An answer is to be predicted from all
tokens before it, the answers before it included.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.text_data import (
  ASK,
  COPY,
  DOCUMENT,
  NEEDLE,
  RECALL,
  STATE,
)

PAIRS = (8, 16, 32, 64)
SWAPS = (2, 4, 8, 16, 32)
NEEDLES, KEY_BYTES, VALUE_BYTES = 4, 4, 6
PERIODS = (4, 64)
# The shortest row that every task fits.
SHORTEST = 128


class TaskRows(NamedTuple):
  """Rows of a task."""

  tokens: jax.Array  # [B, T] int32
  answers: jax.Array  # [B, T] bool, True at the tokens that are answers


Maker = Callable[[jax.Array, int], TaskRows]  # of a key and a number of rows


def draw(
  name: str,  # one of `TASKS`
  key: jax.Array,  # of the draw
  text: jax.Array,  # [n >= length] tokens that needles are hidden in
  *,
  rows: int,  # B
  length: int,  # T, at least `SHORTEST`
) -> TaskRows:
  """Random rows of a task; ValueError for what is unknown or out of range."""
  if name not in TASKS:
    raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
  if not SHORTEST <= length <= text.shape[0]:
    raise ValueError(
      f"length must be in [{SHORTEST}, {text.shape[0]}], the shortest row of "
      f"a task and the length of the text, got {length}"
    )
  return TASKS[name](key, text, rows, length)


def windows(
  key: jax.Array, text: jax.Array, rows: int, length: int
) -> jax.Array:
  """Random windows [rows, length] of tokens, as int32."""
  start = jax.random.randint(key, (rows,), 0, text.shape[0] - length + 1)
  cut = functools.partial(lax.dynamic_slice, slice_sizes=(length,))
  return jax.vmap(cut, (None, 0))(text, start[:, None]).astype(jnp.int32)


def _pairs(pairs: int, key: jax.Array, rows: int) -> TaskRows:
  """RECALL k v k v ... ASK k v k v ...; keys below 128, values above."""
  keys = jax.random.split(key, 3)
  names = _orders(keys[0], rows, 128)[:, :pairs]
  values = jax.random.randint(keys[1], (rows, pairs), 128, 256)
  order = _orders(keys[2], rows, pairs)
  shown = jnp.stack([names, values], axis=-1)  # [B, P, 2]
  asked = jnp.take_along_axis(shown, order[..., None], axis=1)
  tokens = _sequence(rows, RECALL, shown, ASK, asked)
  at = np.arange(tokens.shape[1])
  first = 2 * pairs + 2  # of the questions
  return TaskRows(tokens, _same((at >= first) & ((at - first) % 2 == 1), rows))


def _cups(swaps: int, key: jax.Array, rows: int) -> TaskRows:
  """STATE, swaps of two cups by the letter of the third, ASK, the balls."""
  moves = jax.random.randint(key, (rows, swaps), 0, 3)
  swapped = jnp.array([[0, 2, 1], [2, 1, 0], [1, 0, 2]])

  def move(balls: jax.Array, third: jax.Array) -> tuple[jax.Array, None]:
    return jnp.take_along_axis(balls, swapped[third], axis=1), None

  start = jnp.broadcast_to(jnp.arange(3), (rows, 3))
  balls, _ = lax.scan(move, start, moves.T)
  tokens = _sequence(rows, STATE, moves + ord("a"), ASK, balls + ord("x"))
  return TaskRows(tokens, _same(np.arange(swaps + 5) >= swaps + 2, rows))


def _needle(
  key: jax.Array, text: jax.Array, rows: int, length: int
) -> TaskRows:
  """Text with NEEDLE key value in every quarter; at its end ASK key value."""
  keys = jax.random.split(key, 5)
  size = 1 + KEY_BYTES + VALUE_BYTES
  quarter = (length - NEEDLES * size) // NEEDLES
  tokens = windows(keys[0], text, rows, length)
  letters = jax.random.randint(
    keys[1], (rows, NEEDLES, KEY_BYTES), ord("a"), ord("z") + 1
  )
  digits = jax.random.randint(
    keys[2], (rows, NEEDLES, VALUE_BYTES), ord("0"), ord("9") + 1
  )
  hidden = jnp.concatenate([letters, digits], axis=-1)
  offset = jax.random.randint(keys[3], (rows, NEEDLES), 0, quarter - size + 1)
  order = _orders(keys[4], rows, NEEDLES)
  asked = jnp.take_along_axis(hidden, order[..., None], axis=1)
  put = jax.vmap(lambda row, part, at: lax.dynamic_update_slice(row, part, at))
  for i in range(NEEDLES):
    at = offset[:, i] + i * quarter
    needle = _sequence(rows, NEEDLE, hidden[:, i])
    tokens = put(tokens, needle, at[:, None])
  marks = jnp.full((rows, NEEDLES, 1), ASK)
  questions = jnp.concatenate([marks, asked], axis=-1).reshape(rows, -1)
  tokens = jnp.concatenate([tokens[:, : -NEEDLES * size], questions], axis=1)
  since = np.arange(length) - (length - NEEDLES * size)
  asks = (since >= 0) & (since % size > KEY_BYTES)
  return TaskRows(tokens, _same(asks, rows))


def _copy(key: jax.Array, text: jax.Array, rows: int, length: int) -> TaskRows:
  """COPY, then random bytes of a period drawn evenly from PERIODS."""
  del text
  keys = jax.random.split(key, 2)
  low, high = PERIODS
  period = jax.random.randint(keys[0], (rows, 1), low, high + 1)
  base = jax.random.randint(keys[1], (rows, high), 0, 256)
  at = jnp.arange(length - 1)[None]
  repeated = jnp.take_along_axis(base, at % period, axis=1)
  tokens = _sequence(rows, COPY, repeated)
  return TaskRows(tokens, jnp.arange(length)[None] > period)


def _packed(
  makers: Mapping[int, Maker],
  key: jax.Array,
  _: jax.Array,
  rows: int,
  length: int,
) -> TaskRows:
  """One instance of each maker in turn, as many as fit; DOCUMENT fills up.

  Makers come by the length of their instances.
  """
  order, left = [], length
  for size in itertools.cycle(makers):
    if size > left:
      break
    order.append(size)
    left -= size
  drawn = {}
  for i, size in enumerate(dict.fromkeys(order)):
    count = order.count(size)
    many = makers[size](jax.random.fold_in(key, i), rows * count)
    drawn[size] = [x.reshape(rows, count, size) for x in many]
  parts = []
  for place, size in enumerate(order):
    at = place // len(makers)
    parts.append(TaskRows(*(x[:, at] for x in drawn[size])))
  filling = jnp.full((rows, left), DOCUMENT)
  parts.append(TaskRows(filling, jnp.zeros((rows, left), jnp.bool_)))
  return TaskRows(*(jnp.concatenate(x, axis=1) for x in zip(*parts)))


_RECALL = {4 * n + 2: functools.partial(_pairs, n) for n in PAIRS}
_STATE = {n + 5: functools.partial(_cups, n) for n in SWAPS}
TASKS: dict[str, Callable[[jax.Array, jax.Array, int, int], TaskRows]] = {
  "recall": functools.partial(_packed, _RECALL),
  "needle": _needle,
  "state": functools.partial(_packed, _STATE),
  "copy": _copy,
}


def _orders(key: jax.Array, rows: int, count: int) -> jax.Array:
  """A random order of [0, count) for every row."""
  return jnp.argsort(jax.random.uniform(key, (rows, count)), axis=1)


def _sequence(rows: int, *parts: int | jax.Array) -> jax.Array:
  """Marks and parts [B, ...] one after another in every row."""
  columns = (
    jnp.full((rows, 1), part)
    if isinstance(part, int)
    else part.reshape(rows, -1)
    for part in parts
  )
  return jnp.concatenate([*columns], axis=1)


def _same(row: np.ndarray, rows: int) -> jax.Array:
  return jnp.broadcast_to(jnp.asarray(row), (rows, len(row)))
