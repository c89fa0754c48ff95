"""Perplexity over the order N and the terms S of the paper's inverse.

With the band mask and without it, in one operand format, for every chunk size
in full: no split into blocks, so that it shows where one is needed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness.progress import Tick
from experiments.lm_accuracy import forward, predictions
from experiments.lm_accuracy.errors import ADVERSARIAL
from experiments.lm_accuracy.text import NATURAL, Rows
from neumann_jax import InverseSpec, LanguageModel
from neumann_jax.chunk_inverse.inverse_spec import Precision
from neumann_jax.chunk_inverse.xla import count_products


class Row(NamedTuple):
  """One order and number of terms on one group of rows.

  Attributes:
    chunk_size: C.
    masked: whether the start is cut to its band.
    order: N.
    terms: S.
    products: C x C products.
    group: held-out or adversarial text.
    tokens: that are judged.
    perplexity: of a token; NaN where one prediction is not finite.
    exact: perplexity under the exact inverse.
    broken: predictions that are not finite.
  """

  chunk_size: int
  masked: bool
  order: int
  terms: int
  products: int
  group: str
  tokens: int
  perplexity: float
  exact: float
  broken: int


def measure(
  model: LanguageModel,
  rows: Rows,
  *,
  chunk_sizes: Sequence[int],
  orders: Sequence[int],
  terms: Sequence[int],
  precision: Precision,
  tick: Tick,
) -> Iterator[Row]:
  """Measures the whole grid.

  Args:
    model: of separate layers.
    rows: of text.
    chunk_sizes: C.
    orders: N.
    terms: S.
    precision: operand format.
    tick: called before each point.
  """
  for size in chunk_sizes:
    tick(f"grid: C={size}, exact")
    exact = _losses(model, rows, InverseSpec("exact"), size)
    for masked in (True, False):
      for order in orders:
        for count in terms:
          tick(f"grid: C={size}, N={order}, S={count}, masked: {masked}")
          spec = InverseSpec(
            "banded" if masked else "unmasked",
            order=order,
            residual_steps=count,
            block=size,  # in full, whatever the paper's default
            precision=precision,
          )
          found = _losses(model, rows, spec, size)
          products = count_products(spec, size)
          for group, where in _groups(rows):
            yield Row(
              size,
              masked,
              order,
              count,
              products,
              group,
              int(where.sum()),
              _perplexity(found[where]),
              _perplexity(exact[where]),
              int((~np.isfinite(found[where])).sum()),
            )


def _losses(
  model: LanguageModel, rows: Rows, spec: InverseSpec, size: int
) -> np.ndarray:
  """Negative log-likelihood of every token but the first, [B, W - 1]."""
  tokens = jnp.asarray(rows.tokens)
  case = model.with_execution(spec=spec, chunk_size=size)
  hidden = forward.hidden_states(case, tokens)
  found = predictions.judged(model, hidden, hidden, tokens)
  return np.asarray(found.loss)


def _groups(rows: Rows) -> Iterator[tuple[str, np.ndarray]]:
  natural = rows.of(NATURAL)
  for group, chosen in ((NATURAL, natural), (ADVERSARIAL, ~natural)):
    if chosen.any():
      yield group, (rows.counted & chosen[:, None])[:, 1:]


def _perplexity(losses: np.ndarray) -> float:
  mean = float(losses.astype(np.float64).mean())
  return math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.nan
