"""The chunk matrices of a model: of every layer, head and kind of text."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.lm_accuracy import forward
from experiments.lm_accuracy.text import Rows
from neumann_jax import ChunkMatrices, InverseSpec, LanguageModel


class Captured(NamedTuple):
  """Matrices with the gates behind them and where they come from.

  Attributes:
    a: [n, C, C] float32, strictly lower triangular.
    beta: [n, C] float32.
    log_decay: [n, C] float32.
    layer: [n] number among the Gated DeltaNet layers.
    head: [n] value head.
    kind: [n] kind of the text, as strings.
  """

  a: np.ndarray
  beta: np.ndarray
  log_decay: np.ndarray
  layer: np.ndarray
  head: np.ndarray
  kind: np.ndarray

  def take(self, at: np.ndarray) -> "Captured":
    """Those that an index or a mask picks."""
    return Captured(*(x[at] for x in self))


def layers(
  model: LanguageModel, rows: Rows, chunk_size: int
) -> Iterator[Captured]:
  """All matrices under the exact inverse, one layer at a time.

  Args:
    model: of separate layers.
    rows: whose tokens are read.
    chunk_size: C.

  Yields:
    The matrices of a layer, [B, heads, chunks] flattened in this order.
  """
  exact = model.with_execution(spec=InverseSpec("exact"), chunk_size=chunk_size)
  tokens = jnp.asarray(rows.tokens)
  for layer, found in enumerate(forward.chunk_matrices(exact, tokens)):
    yield _flat(found, layer, rows)


def _flat(found: ChunkMatrices, layer: int, rows: Rows) -> Captured:
  size = found.a.shape[-1]
  lead = found.a.shape[:3]  # [B, Hv, N]
  row, head, _ = np.indices(lead)
  return Captured(
    np.asarray(found.a).reshape(-1, size, size),
    np.asarray(found.beta).reshape(-1, size),
    np.asarray(found.log_decay).reshape(-1, size),
    np.full(row.size, layer),
    head.ravel(),
    np.array(rows.kinds)[row.ravel()],
  )


def sample(
  captured: Captured, count: int, rng: np.random.Generator
) -> Captured:
  """At most `count` matrices of each kind of text, drawn evenly."""
  picked = []
  for kind in dict.fromkeys(captured.kind):
    at = np.flatnonzero(captured.kind == kind)
    picked.append(rng.choice(at, min(count, len(at)), replace=False))
  return captured.take(np.concatenate(picked))


def hardest(captured: Captured) -> Captured:
  """Of every kind of text the matrix with the largest row sum of |A|."""
  sums = np.abs(captured.a).sum(axis=-1).max(axis=-1)
  picked = []
  for kind in dict.fromkeys(captured.kind):
    at = np.flatnonzero(captured.kind == kind)
    picked.append(at[np.argmax(sums[at])])
  return captured.take(np.array(picked))


def joined(parts: list[Captured]) -> Captured:
  """All of several, one after another."""
  return Captured(*(np.concatenate(x) for x in zip(*parts)))


def write(captured: Captured, path: pathlib.Path) -> None:
  """Writes matrices as a compressed npz, their strictly lower part only."""
  lower = np.tril_indices(captured.a.shape[-1], -1)
  fields = captured._asdict() | {"a": captured.a[:, *lower]}
  np.savez_compressed(path, **fields)


def read(path: pathlib.Path) -> Captured:
  """Matrices that `write` wrote."""
  with np.load(path) as file:
    fields = {name: file[name] for name in Captured._fields}
  count, size = fields["beta"].shape
  a = np.zeros((count, size, size), np.float32)
  a[:, *np.tril_indices(size, -1)] = fields["a"]
  return Captured(**fields | {"a": a})
