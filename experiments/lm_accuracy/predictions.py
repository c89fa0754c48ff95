"""Bits per byte and accuracy of a language model under each inverse.

Every case reads the same tokens and is compared, token by token, with the
exact float32 inverse under the same weights and chunk size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.evaluate_lm.scores import Scores, scores
from experiments.evaluate_lm.settings import EXACT
from experiments.harness.progress import Tick
from experiments.harness.subjects import text_model
from experiments.lm_accuracy import layerwise
from experiments.lm_accuracy.token_rows import TokenRows
from neumann_jax import InverseSpec, LanguageModel
from neumann_jax.chunk_inverse.xla import count_products


def measure(
  model: LanguageModel,  # of separate layers, weights as trained
  rows: TokenRows,  # what is read
  names: Sequence[str],  # of the inverses, see `InverseSpec.parse`
  # C by the name of the weights' quantisation
  chunk_sizes: Mapping[str, Sequence[int]],
  tick: Tick,
) -> Iterator[dict[str, Any]]:
  """Measures every inverse on all rows, a row for each kind of them.

  Weights are outermost, and the exact inverse comes first. Beside the numbers
  of `compared` a row has the C x C products of the inverse, 0 for the solve.
  """
  tokens = jnp.asarray(rows.tokens)
  for weights, sizes in chunk_sizes.items():
    base = text_model.with_weights(model, weights)
    for size in sizes:
      exact = truth = None
      for name in (EXACT, *names):
        tick(f"predictions: {weights}, C={size}, {name}")
        spec = InverseSpec.parse(name)
        case = base.with_execution(spec=spec, chunk_size=size)
        hidden = layerwise.hidden_states(case, tokens)
        exact = hidden if exact is None else exact
        found = evaluated(base, hidden, exact, tokens)
        truth = found if truth is None else truth
        for kind in dict.fromkeys(rows.kinds):
          where = rows.counted & rows.of(kind)[:, None]
          yield {
            "weights": weights,
            "chunk_size": size,
            "spec": name,
            "products": count_products(spec, size),
            "kind": kind,
            **compared(found, truth, where[:, 1:]),
          }


def evaluated(
  model: LanguageModel, hidden: jax.Array, exact: jax.Array, tokens: jax.Array
) -> Scores:
  """The scores of every prediction as numpy arrays, [B, W - 1] each."""
  found = scores(*nnx.split(model), hidden, exact, tokens)
  return jax.device_get(found)


def compared(found: Scores, truth: Scores, where: np.ndarray) -> dict[str, Any]:
  """An inverse beside the exact one over the tokens that count.

  How many tokens; their mean negative log-likelihood, base 2 (bits per byte of
  text), what it is more than under the exact inverse, and the standard error of
  that (NaN for a single row); mean KL(exact || case) in nats; percentage of
  tokens whose likeliest prediction is right, what it is more, and how many
  tokens only one of the two gets right.
  """
  loss, exact = (
    np.asarray(x.loss, np.float64) / math.log(2) for x in (found, truth)
  )
  right, exactly = found.correct[where], truth.correct[where]
  count = int(where.sum())
  # Tokens of a row depend on one another, rows do not: a ratio estimate.
  used = where.any(axis=1)
  sums = np.where(where, loss - exact, 0).sum(axis=1)[used]
  sizes = where.sum(axis=1)[used]
  mean = float(sums.sum() / count)
  spread, n = np.sum((sums - mean * sizes) ** 2), len(sums)
  error = math.sqrt(spread * n / (n - 1)) / count if n > 1 else math.nan
  return {
    "tokens": count,
    "bits": float(loss[where].mean()),
    "more_bits": mean,
    "standard_error": error,
    "divergence": float(found.divergence[where].astype(np.float64).mean()),
    "accuracy": 100 * float(right.mean()),
    "more_accuracy": 100 * float(right.mean() - exactly.mean()),
    "changed": int((right != exactly).sum()),
  }
