"""The chunk matrices of a model: of every layer, head and kind of text."""

import io
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness import writing
from experiments.lm_accuracy import layerwise
from experiments.lm_accuracy.token_rows import TokenRows
from neumann_jax import InverseSpec, LanguageModel


class Captured(NamedTuple):
  """Matrices with the gates behind them and where they come from."""

  a: np.ndarray  # [n, C, C] float32, strictly lower triangular
  beta: np.ndarray  # [n, C] float32
  log_decay: np.ndarray  # [n, C] float32
  layer: np.ndarray  # [n] number among the Gated DeltaNet layers
  head: np.ndarray  # [n] value head
  kind: np.ndarray  # [n] kind of the text, as strings

  def take(self, at: np.ndarray) -> "Captured":
    """Those that an index or a mask picks."""
    return Captured(*(x[at] for x in self))

  def of_each_kind(
    self, pick: Callable[[np.ndarray], np.ndarray]
  ) -> "Captured":
    """Those that `pick` takes of the indices of each kind of text."""
    kinds = dict.fromkeys(self.kind)
    at = [pick(np.flatnonzero(self.kind == kind)) for kind in kinds]
    return self.take(np.concatenate(at))


def layers(
  model: LanguageModel, rows: TokenRows, chunk_size: int
) -> Iterator[Captured]:
  """All matrices under the exact inverse, one layer at a time.

  Those of a layer are [B, heads, chunks], flattened in this order.
  """
  exact = model.with_execution(spec=InverseSpec("exact"), chunk_size=chunk_size)
  found = layerwise.chunk_matrices(exact, jnp.asarray(rows.tokens))
  for layer, (a, beta, log_decay, _) in enumerate(found):
    row, head, _ = (at.ravel() for at in np.indices(a.shape[:3]))
    yield Captured(
      np.asarray(a).reshape(-1, chunk_size, chunk_size),
      np.asarray(beta).reshape(-1, chunk_size),
      np.asarray(log_decay).reshape(-1, chunk_size),
      np.full(row.size, layer),
      head,
      np.array(rows.kinds)[row],
    )


def sample(
  captured: Captured, count: int, rng: np.random.Generator
) -> Captured:
  """At most `count` matrices of each kind of text, drawn evenly."""
  return captured.of_each_kind(
    lambda at: rng.choice(at, min(count, len(at)), replace=False)
  )


def hardest(captured: Captured) -> Captured:
  """Of every kind of text the matrix with the largest row sum of |A|."""
  sums = np.abs(captured.a).sum(axis=-1).max(axis=-1)
  return captured.of_each_kind(lambda at: at[[np.argmax(sums[at])]])


def joined(parts: list[Captured]) -> Captured:
  """All of several, one after another."""
  return Captured(*(np.concatenate(x) for x in zip(*parts)))


def write(captured: Captured, path: pathlib.Path) -> None:
  """Writes matrices as a compressed npz, their strictly lower part only."""
  lower = np.tril_indices(captured.a.shape[-1], -1)
  fields = captured._asdict() | {"a": captured.a[:, *lower]}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **fields)
  writing.write(path, buffer.getvalue())


def read(path: pathlib.Path) -> Captured:
  """Matrices that `write` wrote."""
  with np.load(path) as file:
    fields = {name: file[name] for name in Captured._fields}
  count, size = fields["beta"].shape
  a = np.zeros((count, size, size), np.float32)
  a[:, *np.tril_indices(size, -1)] = fields["a"]
  return Captured(**fields | {"a": a})
