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
  """What a batch holds."""

  # T, tokens of a row
  length: int = setting(1024, at_least=sequence_tasks.SHORTEST)
  text: int = setting(25, at_least=1)  # rows that are windows of the text
  # rows of each task
  recall: int = setting(3, at_least=0)
  needle: int = setting(2, at_least=0)
  state: int = setting(1, at_least=0)
  copy: int = setting(1, at_least=0)

  @property
  def rows(self) -> tuple[int, ...]:
    """How many of each of KINDS."""
    return tuple(getattr(self, kind) for kind in KINDS)


class Batch(NamedTuple):
  """Rows to learn from."""

  tokens: jax.Array  # [B, T] int32
  # [B, T - 1] bool, whether the next token is to be predicted
  wanted: jax.Array


def kinds(settings: BatchSettings) -> np.ndarray:
  """[B] index into KINDS of every row."""
  return np.repeat(np.arange(len(KINDS)), settings.rows)


def batch(
  key: chex.PRNGKey, step: jax.Array, text: jax.Array, settings: BatchSettings
) -> Batch:
  """The batch of a step, from the run's key and the tokens [n] of the text."""
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
