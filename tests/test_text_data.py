"""What the byte model reads: the text's split, and tasks with known answers."""

import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import sequence_tasks, text_data
from experiments.data.text_data import (
  ASK,
  COPY,
  DOCUMENT,
  NEEDLE,
  RECALL,
  STATE,
)
from tests.oracles import quick_jit, refused

# --- text ---------------------------------------------------------------------


def _folder(path, files):
  for name, data in files.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
  return str(path)


def test_split_is_by_the_hash_of_a_name(tmp_path):
  """`mailbox` and `glob` are held out with all that is theirs; `ast` is not."""
  for name, held in (("mailbox", True), ("glob", True), ("ast", False)):
    digest = hashlib.sha256(name.encode()).hexdigest()
    assert (int(digest[:16], 16) % 8 == 0) == held
  folder = _folder(
    tmp_path,
    {
      "ast.py": b"a",
      "ast_notes.rst": b"n",
      "ast.bin": b"no text",
      "latin.py": "é".encode("latin-1"),
      "empty.py": b"",
      "glob.py": b"g",
      "mailbox/deep/mod.py": b"m",
      "mailbox/tests/mod.py": b"mt",
      "test/test_ast.py": b"ta",
      "test/test_glob.py": b"tg",
      "test/test_mailbox/part.py": b"tm",
      "site-packages/ast.py": b"another",
      "_sysconfigdata_x.py": b"of this machine",
    },
  )
  training = text_data.training_text(folder)
  assert [d.name for d in training] == [
    "ast.py",
    "ast_notes.rst",
    "test/test_ast.py",
  ]
  held_out = text_data.held_out_text(folder)
  assert [d.data for d in held_out] == [b"g", b"m"]
  np.testing.assert_array_equal(
    text_data.stream(held_out), [DOCUMENT, ord("g"), DOCUMENT, ord("m")]
  )
  found = text_data.fingerprint(held_out)
  assert found["documents"] == found["bytes"] == 2
  assert found != text_data.fingerprint(held_out[::-1])


def test_nothing_held_out_is_in_the_training_text():
  held_out = text_data.held_out_text()
  assert {"mailbox.py", "textwrap.py"} <= {d.name for d in held_out}
  assert 4e5 < sum(len(d.data) for d in held_out) < 2e6
  training = text_data.training_text()
  names = {d.name for d in training}
  assert "argparse.py" in names
  assert not names & {d.name for d in held_out}
  long = {d.data for d in held_out if len(d.data) > 500}
  assert not long & {d.data for d in training}


def test_folders_without_text_are_refused(tmp_path):
  with refused(ValueError, "data must be a folder with training text"):
    text_data.training_text(str(tmp_path))
  (tmp_path / "ast.py").write_text("a")
  with refused(ValueError, "data must be a folder with held-out text"):
    text_data.held_out_text(str(tmp_path))


# --- tasks --------------------------------------------------------------------


TEXT = np.random.default_rng(0).integers(32, 127, 3000).astype(np.uint16)


LENGTH = 640


@functools.cache
def _drawing(name):
  return quick_jit(
    functools.partial(sequence_tasks.draw, name, rows=4, length=LENGTH)
  )


def _rows(name, seed=0):
  found = _drawing(name)(jax.random.key(seed), jnp.asarray(TEXT))
  assert found.tokens.shape == found.answers.shape == (4, LENGTH)
  return np.asarray(found.tokens), np.asarray(found.answers)


def _instances(row, mark):
  """The parts of a row that begin with a mark, as lists."""
  starts = [*np.flatnonzero(row == mark), len(row)]
  return [row[a:b].tolist() for a, b in itertools.pairwise(starts)]


def test_recall_is_answered_by_a_dictionary():
  tokens, answers = _rows("recall")
  for row, marked in zip(tokens, answers):
    count, expected = [], []
    for part in _instances(row, RECALL):
      at = part.index(ASK)
      memory = dict(zip(part[1:at:2], part[2:at:2]))
      assert all(key < 128 <= value < 256 for key, value in memory.items())
      end = at + 1 + 2 * len(memory)
      asked = dict(zip(part[at + 1 : end : 2], part[at + 2 : end : 2]))
      assert asked == memory and set(part[end:]) <= {DOCUMENT}
      count.append(len(memory))
      expected += list(asked.values())
    assert count == [8, 16, 32, 64, 8, 16]
    assert row[marked].tolist() == expected


def test_state_is_where_the_balls_are():
  tokens, answers = _rows("state")
  for row, marked in zip(tokens, answers):
    expected, swaps = [], []
    for part in _instances(row, STATE):
      at = part.index(ASK)
      balls = list("xyz")
      for move in part[1:at]:
        a, b = (i for i in range(3) if i != move - ord("a"))
        balls[a], balls[b] = balls[b], balls[a]
      expected += map(ord, balls)
      swaps.append(at - 1)
    assert row[marked].tolist() == expected
    assert swaps == ([2, 4, 8, 16, 32] * 7 + [2, 4, 8, 16])[: len(swaps)]
    assert len(swaps) > 20


def test_needles_are_in_the_text_and_asked_for_at_its_end():
  tokens, answers = _rows("needle")
  where = []
  for row, marked in zip(tokens, answers):
    starts = np.flatnonzero(row == NEEDLE)
    memory = {
      bytes(row[at + 1 : at + 5].tolist()): bytes(
        row[at + 5 : at + 11].tolist()
      )
      for at in starts
    }
    asked = {
      bytes(row[at + 1 : at + 5].tolist()): bytes(
        row[at + 5 : at + 11].tolist()
      )
      for at in np.flatnonzero(row == ASK)
    }
    assert asked == memory and len(memory) == 4
    assert all(v.isdigit() and k.isalpha() for k, v in memory.items())
    assert row[marked].tolist() == list(b"".join(asked.values()))
    where.append(starts)
    # Between needles the text goes on where it would have been.
    text = "".join(map(chr, TEXT))
    plain = "".join(map(chr, row[starts[0] + 11 : starts[1]]))
    assert plain in text
  assert len({tuple(at) for at in where}) == 4


def test_copies_have_a_period_and_nothing_shorter():
  tokens, answers = _rows("copy")
  periods = set()
  for row, marked in zip(tokens, answers):
    assert row[0] == COPY
    period = int(np.flatnonzero(marked)[0]) - 1
    assert 4 <= period <= 64 and marked[period + 1 :].all()
    np.testing.assert_array_equal(row[period + 1 :], row[1:-period])
    assert len(set(row[1 : period + 1].tolist())) > period // 2
    periods.add(period)
  assert len(periods) > 1


@pytest.mark.parametrize("name", sequence_tasks.TASKS)
def test_rows_follow_their_key(name):
  first, _ = _rows(name)
  other, marked = _rows(name, seed=1)
  assert (first != other).mean() > 0.2 and marked.any(1).all()


def test_refused_tasks():
  draw = functools.partial(
    sequence_tasks.draw, key=jax.random.key(0), text=TEXT, rows=1
  )
  with refused(ValueError, "task must be one of recall, needle, state, copy"):
    draw("sort", length=256)
  with refused(ValueError, r"length must be in \[128, 3000\]"):
    draw("copy", length=100)
