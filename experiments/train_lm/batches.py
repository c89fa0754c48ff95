"""Batches of the byte model: windows of text and rows of synthetic tasks.

A batch is a pure function of the run's key and the number of the step, made
where the step is computed: a loader has no position to save.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import sequence_tasks
from experiments.harness.settings import Checked, setting

# What rows hold, in their order in a batch.
KINDS = ("text", *sequence_tasks.TASKS)


@dataclasses.dataclass(frozen=True)
class BatchSettings(Checked):
  """What a batch holds.

  Attributes:
    length: T, tokens of a row.
    text: rows that are windows of the text.
    recall: rows of each task.
    needle: see recall.
    state: see recall.
    copy: see recall.
  """

  length: int = setting(1024, at_least=sequence_tasks.SHORTEST)
  text: int = setting(25, at_least=1)
  recall: int = setting(3, at_least=0)
  needle: int = setting(2, at_least=0)
  state: int = setting(1, at_least=0)
  copy: int = setting(1, at_least=0)

  @property
  def rows(self) -> tuple[int, ...]:
    """How many of each of KINDS."""
    return tuple(getattr(self, kind) for kind in KINDS)


class Batch(NamedTuple):
  """Rows to learn from.

  Attributes:
    tokens: [B, T] int32.
    wanted: [B, T - 1] bool, whether the next token is to be predicted.
  """

  tokens: jax.Array
  wanted: jax.Array


def kinds(settings: BatchSettings) -> np.ndarray:
  """[B] index into KINDS of every row."""
  return np.repeat(np.arange(len(KINDS)), settings.rows)


def batch(
  key: chex.PRNGKey, step: jax.Array, text: jax.Array, settings: BatchSettings
) -> Batch:
  """The batch of a step.

  Args:
    key: of the whole run.
    step: int32 scalar.
    text: [n] tokens of the training text.
    settings: what it holds.
  """
  keys = jax.random.split(jax.random.fold_in(key, step), len(KINDS))
  rows, length = settings.rows, settings.length
  tokens = [sequence_tasks.windows(keys[0], text, rows[0], length)]
  wanted = [jnp.ones((rows[0], length - 1), jnp.bool_)]
  for i, kind in enumerate(KINDS[1:], 1):
    if rows[i]:
      drawn = sequence_tasks.draw(
        kind, keys[i], text, rows=rows[i], length=length
      )
      tokens.append(drawn.tokens)
      wanted.append(drawn.answers[:, 1:])
  return Batch(jnp.concatenate(tokens), jnp.concatenate(wanted))
