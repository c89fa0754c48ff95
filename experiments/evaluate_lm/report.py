"""What `evaluate_lm` found, as summaries and as pages of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluate_lm import plot
from experiments.evaluate_lm.scores import Text, Windows
from experiments.evaluate_lm.sweep import Case, weights_words
from experiments.harness import record
from experiments.harness.report import Cell, Report, short
from neumann_jax.chunk_inverse.xla import count_products

WORSE = 0.01  # a perplexity above the exact one's by this share stands out


class Summary(NamedTuple):
  """One case over all windows.

  Attributes:
    weights: of the case.
    chunk_size: of the case.
    spec: name of its inverse.
    products: C x C products of its inverse; 0 for the solve.
    tokens: that were predicted.
    perplexity: exp of the mean negative log-likelihood of a token, in nats.
    bits_per_byte: that mean in bits, times tokens over bytes of the text.
    mean_kl: mean over tokens of KL(exact || case), in nats; exact is the exact
      float32 inverse under the same weights.
    max_kl: the largest of them.
    tokens_per_s: median over batches, of the layers without output matrix.
    device: that ran it.
  """

  weights: str
  chunk_size: int
  spec: str
  products: int
  tokens: int
  perplexity: float
  bits_per_byte: float
  mean_kl: float
  max_kl: float
  tokens_per_s: float
  device: str


def summaries(
  rows: Sequence[Mapping[str, Any]], cases: Sequence[Case], text: Text
) -> list[Summary]:
  """Adds up the batches of every case.

  Args:
    rows: of the table "windows".
    cases: of the sweep.
    text: that was read.
  """
  found = []
  for case in cases:
    own = [
      row
      for row in rows
      if (row["weights"], row["chunk_size"], row["spec"]) == case.key
    ]
    total = {
      name: math.fsum(float(row[name]) for row in own)
      for name in ("tokens", "loss", "divergence")
    }
    mean = total["loss"] / total["tokens"]
    rates = [float(row["read"]) / float(row["seconds"]) for row in own]
    largest = [float(row["largest"]) for row in own]
    found.append(
      Summary(
        *case.key,
        count_products(case.inverse.spec, case.chunk_size),
        int(total["tokens"]),
        perplexity=float(np.exp(np.float64(mean))),
        bits_per_byte=mean / math.log(2) * len(text.tokens) / text.bytes,
        mean_kl=total["divergence"] / total["tokens"],
        max_kl=float(np.max(largest)),  # NaN where one is
        tokens_per_s=float(np.median(rates)),
        device=", ".join(sorted({row["device"] for row in own})),
      )
    )
  return found


def build(
  evaluation: Any, windows: Windows, rows: Sequence[Summary], run: record.Run
) -> Report:
  """The report.

  Args:
    evaluation: of `experiments.evaluate_lm`.
    windows: of the text.
    rows: one a case.
    run: with the table "layers".
  """
  settings, model, text = evaluation
  count, width = windows.tokens.shape
  name = settings.checkpoint or "a checkpoint"
  measured = (
    f"{rows[0].tokens} predicted tokens of {text.name}: {count} independent "
    f"windows of {width} tokens, {settings.batch} at a time, activations in "
    f"{settings.dtype}, on {rows[0].device}."
  )
  report = Report(
    "Language model under each chunk inverse",
    f"Model: {_model_words(name, model)} Command: "
    f"`{run.environment['command']}`. Everything needed to repeat it stands in "
    "`environment.json` beside this file, every number in the `.jsonl` and "
    "`.csv` tables.",
  )
  report.section("Predictions")
  report.text(
    "Perplexity is the exponential of the mean negative log-likelihood of a "
    "token in nats. KL is the Kullback-Leibler divergence KL(exact || case) of "
    "the predictions of a token, in nats, where exact is the exact float32 "
    "inverse under the same weights: it shows what the inverse alone does. "
    "Values of a few 1e-7 and less, of either sign, are rounding of float32 "
    "logits. "
    "Red: not finite, or a perplexity more than 1 % above the exact one's. "
    "Tokens/s are of prefill through the layers, without the output matrix."
  )
  for weights in dict.fromkeys(row.weights for row in rows):
    own = [row for row in rows if row.weights == weights]
    _predictions(report, own, weights, measured)
  report.figure(plot.figure(rows), plot.CAPTION)
  report.section("Inverses by layer")
  _layers(report, run.rows("layers"), settings, windows)
  return report


def closing(rows: Sequence[Summary]) -> str:
  """A plain table of the cases."""
  lines = [
    f"{row.weights:12} C{row.chunk_size:<4} {row.spec:28} perplexity "
    f"{row.perplexity:<10.4f} KL {short(row.mean_kl):>8} mean "
    f"{short(row.max_kl):>8} max"
    for row in rows
  ]
  return "\n".join(lines)


def _model_words(name: str, model: Any) -> str:
  config = model.config
  what = "random weights, which know nothing" if name == "random" else name
  return (
    f"{what}; {config.num_hidden_layers} layers of width {config.hidden_size}, "
    f"{config.layer_types.count('linear_attention')} of them Gated DeltaNet."
  )


def _predictions(
  report: Report, rows: Sequence[Summary], weights: str, measured: str
) -> None:
  exact = rows[0].perplexity
  table = []
  for row in rows:
    bad = not row.perplexity <= exact * (1 + WORSE)
    table.append(
      [
        row.spec,
        row.chunk_size,
        row.products or None,
        Cell(row.perplexity, digits=4, bad=bad),
        Cell(row.bits_per_byte, digits=4),
        Cell(row.mean_kl, bad=not math.isfinite(row.mean_kl)),
        Cell(row.max_kl, bad=not math.isfinite(row.max_kl)),
        Cell(row.tokens_per_s, digits=0),
      ]
    )
  report.table(
    f"Inverses by chunk size, {weights_words(weights)}",
    [
      "inverse",
      "chunk",
      "products",
      "perplexity",
      "bits a byte",
      "mean KL",
      "max KL",
      "tokens/s",
    ],
    table,
    measured_on=measured,
    name=f"predictions-{weights}",
  )


def _layers(
  report: Report,
  rows: Sequence[Mapping[str, Any]],
  settings: Any,
  windows: Windows,
) -> None:
  report.text(
    "The matrices that the layers invert on the first windows under the exact "
    "float32 inverse. Error: relative Frobenius error of the strictly lower "
    "part against the float64 inverse, the worst of a layer's matrices. The "
    "certificate bounds the largest row sum of |T - X| after the fact; the "
    "plan says beforehand which method meets a row sum of "
    f"{settings.tolerance:g} in this arithmetic for the layer's own gates."
  )
  count, width = windows.tokens[: settings.inverse_windows].shape
  for weights, size in dict.fromkeys(
    (row["weights"], row["chunk_size"]) for row in rows
  ):
    own = [
      row
      for row in rows
      if (row["weights"], row["chunk_size"]) == (weights, size)
    ]
    measured = (
      f"{own[0]['matrices']} matrices of {size} x {size} a layer, from {count} "
      f"window{'s' * (count > 1)} of {width} tokens, {weights_words(weights)}."
    )
    _worst(report, own, measured)
    _by_layer(report, own, measured)


def _worst(
  report: Report, rows: Sequence[Mapping[str, Any]], measured: str
) -> None:
  table = []
  for spec in dict.fromkeys(row["spec"] for row in rows):
    own = [row for row in rows if row["spec"] == spec]
    worst = max(own, key=lambda row: float(row["error"]))
    plan = max(own, key=lambda row: _cost(row))
    violations = sum(row["violations"] for row in own)
    table.append(
      [
        spec,
        float(worst["error"]),
        worst["layer"],
        max(float(row["row_sum"]) for row in own),
        max(float(row["certified"]) for row in own),
        Cell(violations, bad=violations > 0),
        plan["planned"],
      ]
    )
  report.table(
    f"The worst over the layers, {_which(rows)}",
    [
      "inverse",
      "error",
      "at layer",
      "row sum of the error",
      "certified",
      "entries beyond their certificate",
      "plan, the costliest of the layers'",
    ],
    table,
    measured_on=measured,
    name=f"worst-{rows[0]['weights']}-{rows[0]['chunk_size']}",
  )


def _which(rows: Sequence[Mapping[str, Any]]) -> str:
  """Weights and chunk size that all rows of a table have."""
  first = rows[0]
  return f"{weights_words(first['weights'])}, chunks of {first['chunk_size']}"


def _cost(row: Mapping[str, Any]) -> float:
  """Products of a plan; the fall-back to the solve counts as the most."""
  return row["planned_products"] or math.inf


def _by_layer(
  report: Report, rows: Sequence[Mapping[str, Any]], measured: str
) -> None:
  specs = list(dict.fromkeys(row["spec"] for row in rows))
  errors = {(row["layer"], row["spec"]): float(row["error"]) for row in rows}
  report.table(
    f"Error by Gated DeltaNet layer, {_which(rows)}",
    ["layer", *specs],
    [
      [layer, *(errors.get((layer, spec)) for spec in specs)]
      for layer in dict.fromkeys(row["layer"] for row in rows)
    ],
    measured_on=measured,
    name=f"layers-{rows[0]['weights']}-{rows[0]['chunk_size']}",
  )
