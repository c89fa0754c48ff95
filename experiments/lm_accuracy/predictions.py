"""Bits per byte and accuracy of a language model under each inverse.

Every case reads the same tokens and is compared, token by token, with the
exact float32 inverse under the same weights and chunk size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.evaluate_lm import scores
from experiments.evaluate_lm.scores import TokenScores
from experiments.evaluate_lm.sweep import AS_TRAINED
from experiments.harness.progress import Tick
from experiments.inverse_speed import cases
from experiments.lm_accuracy import forward
from experiments.lm_accuracy.text import Rows
from neumann_jax import LanguageModel
from neumann_jax.chunk_inverse.xla import count_products
from neumann_jax.weight_quantization import matrix
from neumann_jax.weight_quantization.quantized_model import quantize_weights

EXACT = "exact float32"
# What the study has to show of the difference from the exact inverse: in bits
# a byte of text, and in points of accuracy on recall.
MOST_BITS = {
  "ladder bfloat16": 1e-3,
  "ladder int16-dynamic": 1e-3,
  "ladder int8-dynamic": 1e-2,
  "ladder int8-dynamic refine": 2e-3,
}
MOST_POINTS = 0.2
RECALL = ("recall", "needle")


class Row(NamedTuple):
  """One inverse on one kind of rows.

  Attributes:
    weights: "none", or the name of their quantisation.
    chunk_size: C.
    spec: name of the inverse.
    products: C x C products it takes; 0 for the solve.
    kind: of the rows.
    tokens: that are judged.
    bits: mean negative log-likelihood of one, base 2: bits a byte of text.
    more_bits: minus those of the exact inverse.
    standard_error: of `more_bits`, from the differences of whole rows; NaN for
      a single row.
    divergence: mean KL(exact || case) in nats.
    accuracy: percentage of tokens whose likeliest prediction is right.
    more_accuracy: minus that of the exact inverse, in points.
    changed: tokens that only one of the two gets right.
  """

  weights: str
  chunk_size: int
  spec: str
  products: int
  kind: str
  tokens: int
  bits: float
  more_bits: float
  standard_error: float
  divergence: float
  accuracy: float
  more_accuracy: float
  changed: int


def measure(
  model: LanguageModel,
  rows: Rows,
  names: Sequence[str],
  chunk_sizes: Mapping[str, Sequence[int]],
  tick: Tick,
) -> Iterator[Row]:
  """Measures every inverse on all rows.

  Args:
    model: of separate layers, weights as trained.
    rows: what is read.
    names: of the inverses, see `speed_cases.parse`.
    chunk_sizes: C by the name of the weights' quantisation.
    tick: called before each inverse.

  Yields:
    One row a kind, the exact inverse first; weights outermost.
  """
  tokens = jnp.asarray(rows.tokens)
  for weights, sizes in chunk_sizes.items():
    if weights != AS_TRAINED:
      base = quantize_weights(model, matrix.preset(weights))
    else:
      base = model
    for size in sizes:
      exact = None
      for name in (EXACT, *names):
        tick(f"predictions: {weights}, C={size}, {name}")
        spec = cases.parse(name, size, "auto").spec
        case = base.with_execution(spec=spec, chunk_size=size)
        hidden = forward.hidden_states(case, tokens)
        exact = hidden if exact is None else exact
        if name == EXACT:
          truth = judged(base, hidden, exact, tokens)
        found = judged(base, hidden, exact, tokens)
        products = count_products(spec, size)
        for kind in dict.fromkeys(rows.kinds):
          where = rows.counted & rows.of(kind)[:, None]
          yield Row(
            weights,
            size,
            name,
            products,
            kind,
            **compared(found, truth, where[:, 1:]),
          )


def judged(
  model: LanguageModel,
  hidden: jax.Array,
  exact: jax.Array,
  tokens: jax.Array,
) -> TokenScores:
  """The scores of every prediction as numpy arrays, [B, W - 1] each."""
  found = scores.token_scores(*nnx.split(model), hidden, exact, tokens)
  return jax.device_get(found)


def compared(
  found: TokenScores, truth: TokenScores, where: np.ndarray
) -> dict[str, Any]:
  """The numbers of a `Row` from scores [B, W - 1] where they count."""
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
  spread = np.sum((sums - mean * sizes) ** 2)
  n = len(sums)
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
