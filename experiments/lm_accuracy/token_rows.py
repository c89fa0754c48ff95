"""What `lm_accuracy` reads: held-out text, adversarial text, tasks.

The adversarial kinds are what makes chunks hard to invert: tokens whose keys
repeat, or nearly so.

  repeated line  a line of held-out text, over and over
  period         a random word of 1 to 24 bytes, over and over
  table          aligned columns of numbers that differ little from row to row
  code           assignments and calls from one pattern

All rows have one length, so that a program is compiled once for them all.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import sequence_tasks, text_data

NATURAL, ADVERSARIAL = GROUPS = ("held-out text", "adversarial text")
DRAWS = 32  # rows of a task that are drawn; as many are kept as suffice


class TokenRows(NamedTuple):
  """Rows of tokens and which of them are evaluated."""

  tokens: np.ndarray  # [B, W] int32
  # [B, W] bool, True at the tokens whose prediction is evaluated; False at the
  # first of a row
  counted: np.ndarray
  # of each row: `NATURAL`, a name of `MAKERS` or of `sequence_tasks.TASKS`
  kinds: tuple[str, ...]

  def of(self, kind: str) -> np.ndarray:
    """Which rows are of a kind, [B] bool."""
    return np.array([name == kind for name in self.kinds])

  def first(self, count: int, kinds: tuple[str, ...]) -> "TokenRows":
    """The first `count` rows of each of the kinds."""
    at = np.concatenate([np.flatnonzero(self.of(k))[:count] for k in kinds])
    return TokenRows(
      self.tokens[at], self.counted[at], tuple(self.kinds[i] for i in at)
    )


def groups(kinds: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
  """Held-out text and all that is adversarial, each with a mask [len(kinds)].

  A group that is empty is left out.
  """
  natural = np.array([kind == NATURAL for kind in kinds])
  for group, where in zip(GROUPS, (natural, ~natural)):
    if where.any():
      yield group, where


def text_rows(
  stream: np.ndarray,  # from `held_out`
  *,
  natural: int,  # rows of held-out text, evenly spread over it
  adversarial: int,  # rows of each adversarial kind
  window: int,  # W
  seed: int,  # of what is random
) -> TokenRows:
  """Rows of held-out text, then of every adversarial kind."""
  starts = np.linspace(0, len(stream) - window, natural).astype(int)
  tokens = [stream[start : start + window] for start in starts]
  lines = _lines(stream)
  for number, make in enumerate(MAKERS.values()):
    for row in range(adversarial):
      rng = np.random.default_rng([seed, number, row])
      data = np.frombuffer(make(rng, lines, window), np.uint8)[: window - 1]
      tokens.append(np.concatenate([[text_data.DOCUMENT], data]))
  found = np.stack(tokens).astype(np.int32)
  counted = found < 256  # marks are no bytes of the text
  counted[:, 0] = False
  kinds = (NATURAL,) * natural + tuple(np.repeat([*MAKERS], adversarial))
  return TokenRows(found, counted, tuple(map(str, kinds)))


def task_rows(
  stream: np.ndarray,  # from `held_out`; needles are hidden in it
  *,
  answers: int,  # of each task; at most those of `DRAWS` rows
  window: int,  # W, at least `sequence_tasks.SHORTEST`
  seed: int,  # of the draws
) -> TokenRows:
  """Rows of every task, with at least `answers` answers of each."""
  parts = []
  for number, name in enumerate(sequence_tasks.TASKS):
    key = jax.random.fold_in(jax.random.key(seed), number)
    draw = jax.jit(
      functools.partial(sequence_tasks.draw, name, rows=DRAWS, length=window)
    )
    tokens, where = map(np.asarray, draw(key, jnp.asarray(stream)))
    total = np.cumsum(where.sum(axis=1))
    rows = min(int(np.searchsorted(total, answers)) + 1, DRAWS)
    parts.append(TokenRows(tokens[:rows], where[:rows], (name,) * rows))
  return joined(*parts)


def joined(*parts: TokenRows) -> TokenRows:
  """All rows of several, one after another."""
  tokens, counted, kinds = zip(*parts)
  return TokenRows(
    np.concatenate(tokens), np.concatenate(counted), sum(kinds, ())
  )


def held_out(folder: str, window: int) -> np.ndarray:
  """The held-out documents one after another, [n] uint16 tokens.

  ValueError if there is less than a window of it.
  """
  stream = text_data.stream(text_data.held_out_text(folder))
  if len(stream) < window:
    raise ValueError(
      f"data must hold out at least the window's {window} bytes, got "
      f"{len(stream)}"
    )
  return stream


def _lines(stream: np.ndarray) -> list[bytes]:
  """Lines of 20 to 70 bytes."""
  data = stream[stream < 256].astype(np.uint8).tobytes()
  found = [line for line in data.split(b"\n") if 20 <= len(line.strip()) <= 70]
  return found or [b"the same line again"]


# Bytes of at least a size, from lines of the text.
Maker = Callable[[np.random.Generator, list[bytes], int], bytes]


def _repeated_line(
  rng: np.random.Generator, lines: list[bytes], size: int
) -> bytes:
  line = lines[rng.integers(len(lines))] + b"\n"
  return line * (size // len(line) + 1)


def _period(rng: np.random.Generator, _: list[bytes], size: int) -> bytes:
  word = bytes(rng.integers(32, 127, rng.integers(1, 25)).tolist())
  return word * (size // len(word) + 1)


def _table(rng: np.random.Generator, _: list[bytes], size: int) -> bytes:
  columns = rng.integers(3, 7)
  values = rng.integers(0, 1000, columns)
  data = b"|".join([b"  column"] * columns) + b"\n"
  first = len(data)
  while len(data) - first < size:
    values = values + rng.integers(0, 3, columns)
    data += "|".join(f"{value:8d}" for value in values).encode() + b"\n"
  return data


def _code(rng: np.random.Generator, _: list[bytes], size: int) -> bytes:
  words = ("width", "height", "depth", "weight", "length", "offset")
  name, data, i = words[rng.integers(len(words))], b"", 0
  while len(data) < size:
    data += f"    self.{name}_{i} = get_{name}(values[{i}], {i})\n".encode()
    i += 1
  return data


MAKERS: dict[str, Maker] = {
  "repeated line": _repeated_line,
  "period": _period,
  "table": _table,
  "code": _code,
}
