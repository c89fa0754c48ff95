"""What a byte model knows: bits of held-out bytes, answers to the tasks."""

import functools
import gzip
import lzma
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import sequence_tasks, text_data
from experiments.data.text_data import Document
from experiments.train_lm import training
from neumann_jax import LanguageModel


class TextScore(NamedTuple):
  """Bits per byte of a held-out module, or of all.

  Attributes:
    module: its name.
    bytes: of its documents.
    model: bits per byte under the model, the marks of documents included.
    gzip: of gzip -9 on its documents, one after another.
    xz: of xz -9e, likewise.
  """

  module: str
  bytes: int
  model: float
  gzip: float
  xz: float


class TaskScore(NamedTuple):
  """Answers to a task.

  Attributes:
    task: its name.
    answers: how many were wanted.
    right: share of those whose most likely token is right.
    bits: mean loss of an answer.
  """

  task: str
  answers: int
  right: float
  bits: float


def text_scores(
  model: LanguageModel,
  documents: Sequence[Document],
  *,
  length: int,
  rows: int,
) -> list[TextScore]:
  """Scores every top-level module and, last, all of them.

  Every byte is predicted from at least length / 2 tokens before it, except at
  the beginning of the whole stream of documents.

  Args:
    model: of bytes.
    documents: held out.
    length: T, tokens that a prediction can see, and its own.
    rows: windows computed at a time.
  """
  losses = stream_losses(
    model, text_data.stream(documents), length=length, rows=rows
  )
  ends = np.cumsum([len(document.data) + 1 for document in documents])
  parts = np.split(losses, ends[:-1])
  modules = [document.name.split("/")[0] for document in documents]
  scores = []
  for module in dict.fromkeys(modules):
    own = [i for i, name in enumerate(modules) if name == module]
    chosen = [documents[i].data for i in own]
    nats = sum(float(parts[i].sum()) for i in own)
    scores.append(_score(module.removesuffix(".py"), chosen, nats))
  every = [document.data for document in documents]
  return [*scores, _score("all", every, float(losses.sum()))]


def stream_losses(
  model: LanguageModel, tokens: np.ndarray, *, length: int, rows: int
) -> np.ndarray:
  """Nats of every token of a stream, [n]; 0 for the first.

  Windows begin every length / 2 tokens; a token is judged in the one where it
  sees most.
  """
  half = length // 2
  count = max(-(-(len(tokens) - length) // half), 0) + 1
  padded = np.zeros(length + (count - 1) * half, np.int32)
  padded[: len(tokens)] = tokens
  windows = np.lib.stride_tricks.sliding_window_view(padded, length)[::half]
  graph, state = nnx.split(model)
  found = [
    np.asarray(_losses(graph, state, batch), np.float64)
    for batch in _batches(windows, rows)
  ]
  losses = np.concatenate(found)[:count]  # [N, T - 1]
  whole = [losses[0], *(row[half - 1 :] for row in losses[1:])]
  return np.concatenate([[0.0], *whole])[: len(tokens)]


def task_scores(
  model: LanguageModel,
  text: np.ndarray,
  *,
  length: int,
  rows: int,
  batches: int,
  seed: int,
) -> list[TaskScore]:
  """Answers of the model to rows of every task.

  Args:
    model: of bytes.
    text: [n] tokens that needles are hidden in.
    length: T of a row.
    rows: rows computed at a time.
    batches: how many times.
    seed: of the rows.
  """
  graph, state = nnx.split(model)
  key = jax.random.fold_in(jax.random.key(seed), 3)
  scores = []
  for i, task in enumerate(sequence_tasks.TASKS):
    draw = jax.jit(
      functools.partial(sequence_tasks.draw, task, rows=rows, length=length)
    )
    keys = jax.random.split(jax.random.fold_in(key, i), batches)
    found = [
      _answers(graph, state, *draw(one, jnp.asarray(text))) for one in keys
    ]
    wanted, right, nats = (sum(float(x) for x in y) for y in zip(*found))
    bits = nats / wanted / np.log(2)
    scores.append(TaskScore(task, round(wanted), right / wanted, bits))
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _losses(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array
) -> jax.Array:
  return training.token_losses(nnx.merge(graph, state), tokens)


@functools.partial(jax.jit, static_argnums=0)
def _answers(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, answers: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """How many answers are wanted, how many are right, and their nats."""
  model = nnx.merge(graph, state)
  logits = model.logits(model.hidden_states(tokens)[0][:, :-1])
  target, wanted = tokens[:, 1:], answers[:, 1:]
  right = jnp.argmax(logits, axis=-1) == target
  chosen = jnp.take_along_axis(
    jax.nn.log_softmax(logits), target[..., None], axis=-1
  )[..., 0]
  nats = -jnp.sum(jnp.where(wanted, chosen, 0))
  return jnp.sum(wanted), jnp.sum(right & wanted), nats


def _batches(windows: np.ndarray, rows: int) -> Iterator[np.ndarray]:
  """Windows, `rows` at a time, the last ones filled up with zeros."""
  for first in range(0, len(windows), rows):
    part = windows[first : first + rows]
    yield np.pad(part, ((0, rows - len(part)), (0, 0)))


def _score(module: str, documents: list[bytes], nats: float) -> TextScore:
  data = b"".join(documents)
  bits = nats / np.log(2), *(8 * len(pack(data)) for pack in (_gzip, _xz))
  return TextScore(module, len(data), *(x / len(data) for x in bits))


def _gzip(data: bytes) -> bytes:
  return gzip.compress(data, 9, mtime=0)


def _xz(data: bytes) -> bytes:
  return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
