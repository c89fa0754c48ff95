"""What a byte model knows: bits of held-out bytes, answers to the tasks."""

import functools
import gzip
import lzma
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import sequence_tasks, text_data
from experiments.data.text_data import Document
from neumann_jax import LanguageModel


class TextScore(NamedTuple):
  """Bits per byte of a held-out module, or of all."""

  module: str  # its name
  bytes: int  # of its documents
  model: float  # bits per byte under the model, the marks of documents included
  gzip: float  # of gzip -9 on its documents, one after another
  xz: float  # of xz -9e, likewise


class TaskScore(NamedTuple):
  """Answers to a task."""

  task: str  # its name
  answers: int  # how many were wanted
  right: float  # share of those whose most likely token is right
  bits: float  # mean loss per answer


def text_scores(
  model: LanguageModel,  # of bytes
  documents: Sequence[Document],  # held out
  *,
  length: int,  # T, tokens that a prediction can see, and its own
  rows: int,  # windows computed at a time
) -> list[TextScore]:
  """Scores every top-level module and, last, all of them.

  Every byte is predicted from at least length / 2 tokens before it, except at
  the beginning of the whole stream of documents.
  """
  losses = stream_losses(
    model, text_data.stream(documents), length=length, rows=rows
  )
  ends = np.cumsum([len(document.data) + 1 for document in documents])
  parts = np.split(losses, ends[:-1])
  modules: dict[str, list[int]] = {}
  for i, document in enumerate(documents):
    modules.setdefault(document.name.split("/")[0], []).append(i)
  scores = []
  for module, own in [*modules.items(), ("all", range(len(documents)))]:
    data = b"".join(documents[i].data for i in own)
    bits = (
      sum(float(parts[i].sum()) for i in own) / np.log(2),
      8 * len(gzip.compress(data, 9, mtime=0)),
      8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    )
    per_byte = (float(x) / len(data) for x in bits)
    scores.append(TextScore(module.removesuffix(".py"), len(data), *per_byte))
  return scores


def stream_losses(
  model: LanguageModel, tokens: np.ndarray, *, length: int, rows: int
) -> np.ndarray:
  """Nats of every token of a stream, [n]; 0 for the first.

  Windows begin every length / 2 tokens; a token is scored in the one where it
  sees most.
  """
  half = length // 2
  count = max(-(-(len(tokens) - length) // half), 0) + 1
  fill = -count % rows  # of the last batch, with windows of zeros
  padded = np.zeros(length + (count + fill - 1) * half, np.int32)
  padded[: len(tokens)] = tokens
  windows = np.lib.stride_tricks.sliding_window_view(padded, length)[::half]
  parts = nnx.split(model)
  found = [
    np.asarray(_scores(*parts, windows[i : i + rows])[0], np.float64)
    for i in range(0, count, rows)
  ]
  losses = np.concatenate(found)[:count]  # [N, T - 1]
  whole = [losses[0], *(row[half - 1 :] for row in losses[1:])]
  return np.concatenate([[0.0], *whole])[: len(tokens)]


def task_scores(
  model: LanguageModel,  # of bytes
  text: np.ndarray,  # [n] tokens that needles are hidden in
  *,
  length: int,  # T of a row
  rows: int,  # rows computed at a time
  batches: int,  # how many times
  seed: int,  # of the rows
) -> list[TaskScore]:
  """Answers of the model to rows of every task."""
  parts = nnx.split(model)
  key = jax.random.fold_in(jax.random.key(seed), 3)
  scores = []
  for i, task in enumerate(sequence_tasks.TASKS):
    draw = jax.jit(
      functools.partial(sequence_tasks.draw, task, rows=rows, length=length)
    )
    losses, rights = [], []
    for one in jax.random.split(jax.random.fold_in(key, i), batches):
      tokens, answers = draw(one, jnp.asarray(text))
      wanted = np.asarray(answers[:, 1:])
      loss, right = map(np.asarray, _scores(*parts, tokens))
      losses.append(loss[wanted])
      rights.append(right[wanted])
    loss, right = np.concatenate(losses), np.concatenate(rights)
    bits = float(loss.mean(dtype=np.float64) / np.log(2))
    scores.append(TaskScore(task, len(right), float(right.mean()), bits))
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _scores(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Nats of every next token and whether it is the likeliest, [B, T - 1]."""
  model = nnx.merge(graph, state)
  logits = model.logits(model.hidden_states(tokens)[0][:, :-1])
  target = tokens[:, 1:]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  return losses, jnp.argmax(logits, axis=-1) == target
