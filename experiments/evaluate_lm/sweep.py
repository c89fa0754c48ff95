"""The sweep of `evaluate_lm`: what is missing is measured, row by row."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.evaluate_lm import inverse_errors, scores
from experiments.evaluate_lm.scores import Windows
from experiments.harness import record
from experiments.harness.progress import Tick
from experiments.harness.timing import device_name
from experiments.inverse_speed import cases
from neumann_jax import LanguageModel
from neumann_jax.weight_quantization import matrix
from neumann_jax.weight_quantization.quantized_model import quantize_weights

AS_TRAINED = "none"


class Case(NamedTuple):
  """One combination of the sweep.

  Attributes:
    weights: "none", or a name of `weight_quant.PRESETS`.
    inverse: by its name, as `speed_cases.parse` reads it.
    chunk_size: C.
  """

  weights: str
  inverse: cases.Case
  chunk_size: int

  @property
  def key(self) -> tuple[str, int, str]:
    """What its rows begin with: weights, chunk size, name of the inverse."""
    return self.weights, self.chunk_size, self.inverse.name


class WindowsRow(NamedTuple):
  """One case on one batch of windows.

  Attributes:
    weights: of the case.
    chunk_size: of the case.
    spec: name of its inverse.
    batch: number of the batch.
    tokens: that were predicted.
    loss: sum of their negative log-likelihoods, in nats.
    divergence: sum of KL(exact || case) over them, in nats; exact is the exact
      float32 inverse under the same weights.
    largest: the largest of these.
    read: tokens that the layers read, padding not counted.
    seconds: of the layers on the batch, without the output matrix.
    device: that ran it.
  """

  weights: str
  chunk_size: int
  spec: str
  batch: int
  tokens: int
  loss: float
  divergence: float
  largest: float
  read: int
  seconds: float
  device: str


class Sweep:
  """Cases x batches of windows, and the layers' inverses of each case."""

  def __init__(
    self,
    settings: Any,
    model: LanguageModel,
    windows: Windows,
    run: record.Run,
  ) -> None:
    """Finds out what the run has already.

    Args:
      settings: of `experiments.evaluate_lm`.
      model: under the exact float32 inverse.
      windows: of the text.
      run: takes the tables "windows" and "layers".
    """
    self._settings, self._model, self._run = settings, model, run
    self._windows = windows
    self._batches = range(0, len(windows.tokens), settings.batch)
    done = {
      (row["weights"], row["chunk_size"], row["spec"], row["batch"])
      for row in run.rows("windows")
    }
    self._todo = [
      (batch, case)
      for case in settings.cases()
      for batch in range(len(self._batches))
      if (*case.key, batch) not in done
    ]
    self._layers = {
      (row["weights"], row["chunk_size"], row["spec"], row["layer"])
      for row in run.rows("layers")
    }

  def missing(self) -> int:
    """Units of work: batches of cases, and inverses of chunk matrices."""
    inverses = len(self._settings.weights) * len(self._settings.chunk_sizes)
    return len(self._todo) + inverses

  def run(self, tick: Tick) -> None:
    """Measures and writes what is missing.

    Args:
      tick: called before each unit.
    """
    for weights in self._settings.weights:
      model = self._model
      if weights != AS_TRAINED:
        model = quantize_weights(model, matrix.preset(weights))
      self._inverses(weights, model, tick)
      todo = [(b, case) for b, case in self._todo if case.weights == weights]
      for row in self._measured(model, todo, tick):
        self._run.write("windows", row._asdict())

  def _inverses(self, weights: str, model: LanguageModel, tick: Tick) -> None:
    settings = self._settings
    tokens, mask = (
      jnp.asarray(x[: settings.inverse_windows]) for x in self._windows
    )
    layers = model.config.layer_types.count("linear_attention")
    for size in settings.chunk_sizes:
      tick(f"{weights} C{size}: inverses by layer")
      specs = {
        case.inverse.name: case.inverse.spec
        for case in settings.cases()
        if (case.weights, case.chunk_size) == (weights, size)
      }
      keys = {(weights, size, s, n) for s in specs for n in range(layers)}
      if keys <= self._layers:
        continue
      parts = nnx.split(model.with_execution(chunk_size=size))
      found = inverse_errors.matrices(*parts, tokens, mask)
      for row in inverse_errors.layer_rows(
        found,
        specs,
        weights=weights,
        tolerance=settings.tolerance,
        implementation=settings.implementation,
      ):
        if (weights, size, row.spec, row.layer) not in self._layers:
          self._run.write("layers", row._asdict())

  def _measured(
    self, model: LanguageModel, todo: list[tuple[int, Case]], tick: Tick
  ) -> Iterator[WindowsRow]:
    """Batches outermost, so that each is read by the exact inverse once."""
    exact, warm = nnx.split(model), set()
    for batch in sorted({batch for batch, _ in todo}):
      tokens, mask = self._batch(batch)
      reference = scores.hidden_states(*exact, tokens, mask)
      for case in [case for b, case in todo if b == batch]:
        tick(f"{case.weights} C{case.chunk_size} {case.inverse.name}")
        parts = nnx.split(
          model.with_execution(
            spec=case.inverse.spec,
            chunk_size=case.chunk_size,
            implementation=case.inverse.implementation,
          )
        )
        job = functools.partial(scores.hidden_states, *parts, tokens, mask)
        if case.key not in warm:  # compilation is not timed
          jax.block_until_ready(job())
          warm.add(case.key)
        hidden, seconds = _timed(job)
        found = scores.scores(*exact, hidden, reference, tokens, mask)
        yield WindowsRow(
          *case.key,
          batch,
          int(found.tokens),
          float(found.loss),
          float(found.divergence),
          float(found.largest),
          int(mask.sum()),
          seconds,
          device_name(),
        )

  def _batch(self, number: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and mask [B, W]; the last batch is filled with padded rows."""
    size, start = self._settings.batch, self._batches[number]
    tokens, mask = (x[start : start + size] for x in self._windows)
    fill = [(0, size - len(tokens)), (0, 0)]
    return jnp.pad(jnp.asarray(tokens), fill), jnp.pad(jnp.asarray(mask), fill)


def weights_words(weights: str) -> str:
  """How a report names the weights of a case."""
  return "weights as trained" if weights == AS_TRAINED else f"weights {weights}"


def _timed(job: Callable[[], jax.Array]) -> tuple[jax.Array, float]:
  start = time.perf_counter()
  result = jax.block_until_ready(job())
  return result, time.perf_counter() - start
