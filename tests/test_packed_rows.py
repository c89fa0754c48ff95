"""Documents in rows, and the rows of a step."""

import numpy as np
import pytest

from experiments.data import packed_rows
from experiments.data.packed_rows import Document
from tests import oracles


def documents(*sizes):
  return [
    Document(np.arange(size, dtype=np.int32) + 100 * i, np.arange(size) % 3 > 0)
    for i, size in enumerate(sizes)
  ]


@pytest.mark.parametrize("packed", [True, False])
def test_every_document_is_there_once(packed):
  given = documents(5, 9, 3, 10, 1, 4, 7)
  rows = packed_rows.pack(given, 10, packed=packed)
  assert len(rows.tokens) == (4 if packed else 7)  # 39 tokens
  found = []
  for tokens, segments, real, wanted in zip(*rows):
    for segment in np.unique(segments[real]):
      own = segments == segment
      number = tokens[own][0] // 100
      np.testing.assert_array_equal(tokens[own], given[number].tokens)
      # Whether a token is to be predicted stands where it is predicted from.
      at = np.flatnonzero(own)[1:] - 1
      np.testing.assert_array_equal(wanted[at], given[number].wanted[1:])
      found.append(number)
    assert np.diff(segments).min() >= 0
    assert not tokens[~real].any() and not wanted[~real[1:]].any()
    # The last of a document predicts nothing of the next.
    assert not wanted[np.diff(segments) > 0].any()
  assert sorted(found) == list(range(7))


def test_longer_documents_are_refused():
  with oracles.refused(ValueError, "a document has 11 tokens, a row has 10"):
    packed_rows.pack(documents(11), 10, packed=True)


def test_rows_of_steps():
  take = lambda step, seed=0: packed_rows.chosen(  # noqa: E731
    step, batch=4, rows=6, seed=seed
  )
  # Two passes in three steps, each row once in each; a step may end one pass
  # and begin the next.
  found = np.concatenate([take(i) for i in range(3)])
  for part in (found[:6], found[6:]):
    assert sorted(part) == list(range(6))
  np.testing.assert_array_equal(take(2), found[8:])
  assert (take(0, seed=1) != found[:4]).any()
