"""Evaluation of a byte model, by models whose losses are known."""

import gzip
import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.data import sequence_tasks, text_data
from experiments.data.text_data import Document
from experiments.train_lm import evaluation

VOCABULARY = 264


class Bigrams(nnx.Module):
  """Predicts a token from the one before it alone: a table of logits."""

  def __init__(self, table):
    self.table = nnx.Param(jnp.asarray(table, jnp.float32))

  def hidden_states(self, tokens):
    return self.table[...][tokens], None

  def logits(self, hidden):
    return hidden


class Clock(nnx.Module):
  """Is the surer of token 1 the more tokens it sees."""

  def hidden_states(self, tokens):
    seen = jnp.broadcast_to(jnp.arange(1, tokens.shape[1] + 1), tokens.shape)
    return seen, None

  def logits(self, seen):
    seen = seen[..., None].astype(jnp.float32)
    return seen * jax.nn.one_hot(1, VOCABULARY) / 16


def _table():
  return np.random.default_rng(0).standard_normal((VOCABULARY, VOCABULARY))


def _losses(tokens):
  """Of `Bigrams`, in float64."""
  table = _table()
  truth = np.log(np.exp(table).sum(1, keepdims=True)) - table
  return np.concatenate([[0.0], truth[tokens[:-1], tokens[1:]]])


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 24, 25, 100])
def test_every_token_is_scored_once(size):
  tokens = np.random.default_rng(1).integers(0, VOCABULARY, size)
  found = evaluation.stream_losses(Bigrams(_table()), tokens, length=16, rows=3)
  np.testing.assert_allclose(found, _losses(tokens), atol=1e-5)


def test_tokens_are_scored_where_they_see_most():
  """At least half of a window, the first tokens all that there are."""
  found = evaluation.stream_losses(
    Clock(), np.ones(100, np.int32), length=16, rows=3
  )
  seen = np.round(16 * np.log((VOCABULARY - 1) / np.expm1(found[1:])))
  later = np.tile(np.arange(8, 16), 11)[: 99 - 15]
  np.testing.assert_array_equal(seen, [*range(1, 16), *later])


def test_modules_are_scored_beside_gzip_and_xz():
  documents = [
    Document("glob.py", b"glob " * 30),
    Document("mailbox/a.py", bytes(range(32, 127))),
    Document("mailbox/b.py", b"mail" * 20),
  ]
  scores = evaluation.text_scores(
    Bigrams(_table()), documents, length=16, rows=4
  )
  nats = _losses(text_data.stream(documents))
  ends = np.cumsum([0] + [len(d.data) + 1 for d in documents])
  pieces = {
    "glob": (documents[:1], nats[: ends[1]]),
    "mailbox": (documents[1:], nats[ends[1] :]),
    "all": (documents, nats),
  }
  assert [score.module for score in scores] == list(pieces)
  for score in scores:
    chosen, own = pieces[score.module]
    data = b"".join(document.data for document in chosen)
    assert score.bytes == len(data)
    assert score.model == pytest.approx(own.sum() / np.log(2) / len(data), 1e-5)
    assert score.gzip == 8 * len(gzip.compress(data, 9)) / len(data)
    packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    assert score.xz == 8 * len(packed) / len(data)


def _rows(name, key, text, *, rows, length):
  """Random tokens, of which a random third are answers."""
  del name, text
  tokens = jax.random.randint(key, (rows, length), 0, VOCABULARY)
  return sequence_tasks.TaskRows(tokens, tokens % 3 == 0)


def test_answers_are_counted_and_scored(monkeypatch):
  monkeypatch.setattr(sequence_tasks, "draw", _rows)
  scores = evaluation.task_scores(
    Bigrams(_table()), np.zeros(1), length=128, rows=4, batches=2, seed=0
  )
  assert [score.task for score in scores] == list(sequence_tasks.TASKS)
  key = jax.random.fold_in(jax.random.key(0), 3)
  for i, score in enumerate(scores):
    keys = jax.random.split(jax.random.fold_in(key, i), 2)
    tokens = np.concatenate(
      [_rows("", one, None, rows=4, length=128).tokens for one in keys]
    )
    wanted = tokens[:, 1:] % 3 == 0  # a first token is no answer
    nats = np.stack([_losses(row)[1:] for row in tokens])
    right = _table()[tokens[:, :-1]].argmax(-1) == tokens[:, 1:]
    assert score.answers == wanted.sum()
    assert score.right == (right & wanted).sum() / wanted.sum()
    assert score.bits == pytest.approx(
      nats[wanted].mean() / np.log(2), rel=1e-5
    )
