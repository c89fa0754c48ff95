"""Documents in rows of one length: packed, or one to a row.

Documents of a row have segments of their own, and see nothing of each other. A
batch is a pure function of the run's seed and the number of the step, so that a
resumed run reads what an unbroken one would have read.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
  """A text, or a conversation, as tokens."""

  tokens: np.ndarray  # [n] int32
  wanted: np.ndarray  # [n] bool, whether the token is to be predicted


class Rows(NamedTuple):
  """Documents in rows; padding is a last segment of zeros."""

  tokens: np.ndarray  # [R, T] int32
  segments: np.ndarray  # [R, T] int32, the number of the document in its row
  real: np.ndarray  # [R, T] bool, False at padding
  # [R, T - 1] bool, whether the next token is to be predicted
  wanted: np.ndarray

  def take(self, chosen: np.ndarray) -> "Rows":
    """Some of the rows."""
    return Rows(*(array[chosen] for array in self))


def pack(
  documents: Sequence[Document],
  length: int,  # T; longer documents are refused
  *,
  packed: bool,  # as many documents to a row as fit, or one
) -> Rows:
  """Rows of whole documents: best fit, the longest first."""
  order = sorted(range(len(documents)), key=lambda i: -len(documents[i].tokens))
  rows: list[list[int]] = []
  spaces: list[tuple[int, int]] = []  # (tokens left, row), the fullest first
  for i in order:
    size = len(documents[i].tokens)
    if size > length:
      raise ValueError(f"a document has {size} tokens, a row has {length}")
    place = bisect.bisect_left(spaces, (size, 0)) if packed else len(spaces)
    if place < len(spaces):
      left, row = spaces.pop(place)
    else:
      left, row = length, len(rows)
      rows.append([])
    rows[row].append(i)
    bisect.insort(spaces, (left - size, row))
  return _filled([[documents[i] for i in row] for row in rows], length)


def _filled(rows: Sequence[Sequence[Document]], length: int) -> Rows:
  shape = len(rows), length
  tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  real, wanted = np.zeros(shape, bool), np.zeros(shape, bool)
  for i, row in enumerate(rows):
    done = 0
    for number, document in enumerate(row):
      place = slice(done, done + len(document.tokens))
      tokens[i, place], segments[i, place] = document.tokens, number
      real[i, place], wanted[i, place] = True, document.wanted
      wanted[i, done] = False  # nothing of its document stands before it
      done = place.stop
    segments[i, done:] = len(row)
  return Rows(tokens, segments, real, wanted[:, 1:])


def chosen(step: int, *, batch: int, rows: int, seed: int) -> np.ndarray:
  """[batch] rows of a step: all rows in a new order, again and again."""
  places = np.arange(step * batch, (step + 1) * batch)
  orders = [_order(rows, seed, int(i)) for i in places // rows]
  return np.array([order[i % rows] for order, i in zip(orders, places)])


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, time: int) -> np.ndarray:
  return np.random.default_rng([seed, time]).permutation(rows)
