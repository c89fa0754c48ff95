"""The sweep of `evaluate_lm`: what a run has not measured yet, row by row.

A row of the table "windows" is one case on one batch of windows: how many
tokens were predicted, the sums and the largest of `scores.totals`, how many
tokens the layers read (padding not counted), the seconds they took without the
output matrix, and the device. A row of "layers" is of
`inverse_errors.layer_rows`.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.text_windows import Windows
from experiments.evaluate_lm import inverse_errors, scores
from experiments.evaluate_lm.settings import Case, Settings
from experiments.harness import record
from experiments.harness.processes import hosts
from experiments.harness.progress import Tick
from experiments.harness.speed import timing
from experiments.harness.subjects import text_model
from neumann_jax import LanguageModel

KEYS = ("weights", "chunk_size", "spec")  # what the rows of a case begin with


class Sweep(NamedTuple):
  """Cases x batches of windows, and the layers' inverses of each case."""

  settings: Settings  # of the evaluation
  model: LanguageModel  # under the exact float32 inverse
  windows: Windows  # of the text
  run: record.Run  # takes the tables "windows" and "layers"

  def missing(self) -> list[tuple[int, Case]]:
    """Batches of cases that the run does not have."""
    done = self._done("windows", "batch")
    starts = range(0, len(self.windows.tokens), self.settings.batch)
    return [
      (batch, case)
      for case in self.settings.cases()
      for batch in range(len(starts))
      if (*case.key, batch) not in done
    ]

  def units(self) -> int:
    """How often `measure` ticks."""
    settings = self.settings
    inverses = len(settings.weights) * len(settings.chunk_sizes)
    return len(self.missing()) + inverses

  def measure(self, tick: Tick) -> None:
    """Measures and writes what is missing."""
    missing = self.missing()
    for weights in self.settings.weights:
      model = text_model.with_weights(self.model, weights)
      for size in self.settings.chunk_sizes:
        tick(f"{weights} C{size}: inverses by layer")
        self._layers(weights, size, model)
      todo = [(b, case) for b, case in missing if case.weights == weights]
      # Every process reads batches of its own; all go on together.
      shares = _shares(todo, jax.process_count())
      rows = self._windows(model, shares[jax.process_index()], tick)
      for _ in range(max(map(len, shares))):
        for row in hosts.from_all(next(rows, None)):
          if row is not None:
            self.run.write("windows", row)

  def _done(self, table: str, last: str) -> set[tuple]:
    return {
      tuple(row[name] for name in (*KEYS, last)) for row in self.run.rows(table)
    }

  def _layers(self, weights: str, size: int, model: LanguageModel) -> None:
    """Errors of the inverses of every layer at one chunk size."""
    settings, done = self.settings, self._done("layers", "layer")
    specs = {
      case.spec: case.rule.spec
      for case in settings.cases()
      if case.key[:2] == (weights, size)
    }
    layers = range(model.config.layer_types.count("linear_attention"))
    if {(weights, size, spec, n) for spec in specs for n in layers} <= done:
      return
    if not hosts.is_first():
      return
    first = (jnp.asarray(x[: settings.inverse_windows]) for x in self.windows)
    parts = nnx.split(model.with_execution(chunk_size=size))
    for row in inverse_errors.layer_rows(
      inverse_errors.matrices(*parts, *first),
      specs,
      weights=weights,
      tolerance=settings.tolerance,
      implementation=settings.implementation,
    ):
      if (weights, size, row["spec"], row["layer"]) not in done:
        self.run.write("layers", row)

  def _windows(
    self, model: LanguageModel, todo: list[tuple[int, Case]], tick: Tick
  ) -> Iterator[dict[str, Any]]:
    """Batches outermost, so that each is read by the exact inverse once."""
    exact, warm = nnx.split(model), set()
    for batch in sorted({batch for batch, _ in todo}):
      tokens, mask = self._batch(batch)
      reference = scores.hidden_states(*exact, tokens, mask)
      for case in [case for b, case in todo if b == batch]:
        tick(f"{case.weights} C{case.chunk_size} {case.spec}")
        parts = nnx.split(model.with_execution(rule=case.rule))
        job = functools.partial(scores.hidden_states, *parts, tokens, mask)
        if case.key not in warm:  # compilation is not timed
          jax.block_until_ready(job())
          warm.add(case.key)
        hidden, seconds = _timed(job)
        found = scores.scores(*exact, hidden, reference, tokens)
        yield {
          **dict(zip(KEYS, case.key)),
          "batch": batch,
          **scores.totals(found, np.asarray(mask)),
          "read": int(mask.sum()),
          "seconds": seconds,
          "device": timing.device_name(),
        }

  def _batch(self, number: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and mask [B, W]; the last batch is filled with padded rows."""
    size = self.settings.batch
    rows = slice(number * size, (number + 1) * size)
    tokens, mask = (jnp.asarray(x[rows]) for x in self.windows)
    fill = [(0, size - len(tokens)), (0, 0)]
    return jnp.pad(tokens, fill), jnp.pad(mask, fill)


def _shares(
  todo: list[tuple[int, Case]], count: int
) -> list[list[tuple[int, Case]]]:
  """What each of so many processes measures: whole batches, in turn."""
  batches = sorted({batch for batch, _ in todo})
  return [
    [unit for unit in todo if unit[0] in batches[i::count]]
    for i in range(count)
  ]


def _timed(job: Callable[[], jax.Array]) -> tuple[jax.Array, float]:
  start = time.perf_counter()
  result = jax.block_until_ready(job())
  return result, time.perf_counter() - start
