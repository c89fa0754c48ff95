"""Perplexity over the order N and the terms S of the paper's inverse.

With the band mask and without it, in one operand format, for every chunk size
in full: no split into blocks, so that it shows where one is needed.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.harness.progress import Tick
from experiments.lm_accuracy import layerwise, predictions
from experiments.lm_accuracy.settings import Settings
from experiments.lm_accuracy.token_rows import TokenRows, groups
from neumann_jax import InverseSpec, LanguageModel
from neumann_jax.chunk_inverse.xla import count_products


def measure(
  model: LanguageModel, rows: TokenRows, settings: Settings, tick: Tick
) -> Iterator[dict[str, Any]]:
  """A row for each point of the grid and group of rows.

  Tokens that are evaluated, their perplexity (NaN where one prediction is not
  finite) and that under the exact inverse, predictions that are not finite.
  """
  points = (True, False), settings.grid_orders, settings.grid_terms
  for size in settings.grid_chunk_sizes:
    tick(f"grid: C={size}, exact")
    exact = _losses(model, rows, InverseSpec("exact"), size)
    for masked, order, count in itertools.product(*points):
      tick(f"grid: C={size}, N={order}, S={count}, masked: {masked}")
      spec = InverseSpec(
        "banded" if masked else "unmasked",
        order=order,
        residual_steps=count,
        block=size,  # in full, whatever the paper's default
        precision=settings.grid_precision,
      )
      found = _losses(model, rows, spec, size)
      for group, chosen in groups(rows.kinds):
        where = (rows.counted & chosen[:, None])[:, 1:]
        yield {
          "chunk_size": size,
          "masked": masked,
          "order": order,
          "terms": count,
          "products": count_products(spec, size),
          "group": group,
          "tokens": int(where.sum()),
          "perplexity": _perplexity(found[where]),
          "exact": _perplexity(exact[where]),
          "broken": int((~np.isfinite(found[where])).sum()),
        }


def _losses(
  model: LanguageModel, rows: TokenRows, spec: InverseSpec, size: int
) -> np.ndarray:
  """Negative log-likelihood of every token but the first, [B, W - 1]."""
  tokens = jnp.asarray(rows.tokens)
  case = model.with_execution(spec=spec, chunk_size=size)
  hidden = layerwise.hidden_states(case, tokens)
  return np.asarray(predictions.evaluated(model, hidden, hidden, tokens).loss)


def _perplexity(losses: np.ndarray) -> float:
  """Per token; at most e^700, which float64 still holds."""
  mean = float(losses.astype(np.float64).mean())
  return math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.nan
