"""What `evaluate_lm` found, as a summary by case and as pages of a report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.data.text_windows import Text, Windows
from experiments.evaluate_lm import plot
from experiments.evaluate_lm.settings import Case, Settings
from experiments.evaluate_lm.sweep import KEYS
from experiments.harness import record, tables
from experiments.harness.report import Report
from experiments.harness.text_model import weights_words
from neumann_jax.chunk_inverse.xla import count_products

WORSE = 0.01  # a perplexity above the exact one's by this share stands out


def summary(
  windows: pd.DataFrame,  # the run's table of this name
  cases: Sequence[Case],  # of the sweep
  text: Text,  # that was read
) -> pd.DataFrame:
  """Adds up the batches of every case: the table "cases".

  Returns:
    A row a case: products of its inverse (0 for the solve), predicted tokens,
    perplexity (exp of the mean negative log-likelihood per token, in nats),
    bits per byte (that mean in bits, times tokens over bytes of the text), mean
    and largest KL(exact || case) over tokens, tokens per second (median over
    batches, of the layers without output matrix), and the devices.
  """
  # Unlike pandas' own sum and max these let what is not a number show.
  total, largest = (
    (lambda x: x.to_numpy().sum()),
    (lambda x: x.to_numpy().max()),
  )
  found = (
    windows.assign(rate=windows["read"] / windows["seconds"])
    .groupby(list(KEYS))
    .agg(
      tokens=("tokens", "sum"),
      loss=("loss", total),
      divergence=("divergence", total),
      max_kl=("largest", largest),
      tokens_per_s=("rate", "median"),
      device=("device", lambda names: ", ".join(sorted(set(names)))),
    )
    .loc[[case.key for case in cases]]
  )
  mean = found["loss"] / found["tokens"]
  summed = {
    "products": [count_products(c.rule.spec, c.chunk_size) for c in cases],
    "tokens": found["tokens"],
    "perplexity": np.exp(mean),
    "bits_per_byte": mean / np.log(2) * len(text.tokens) / text.bytes,
    "mean_kl": found["divergence"] / found["tokens"],
  }
  rest = found[["max_kl", "tokens_per_s", "device"]]
  return pd.DataFrame(summed).join(rest).reset_index()


def build(
  evaluation: Any,  # of `evaluate_lm.study`
  windows: Windows,  # of the text
  cases: pd.DataFrame,  # from `summary`
  run: record.Run,  # with the table "layers"
) -> Report:
  """The report."""
  settings, model, text = evaluation
  (count, width), first = windows.tokens.shape, cases.iloc[0]
  measured = (
    f"{first['tokens']} predicted tokens of {text.name}: {count} independent "
    f"windows of {width} tokens, {settings.batch} at a time, activations in "
    f"{settings.dtype}, on {first['device']}."
  )
  report = Report(
    "Language model under each chunk inverse",
    f"Model: {_model_words(settings.checkpoint, model)} Command: "
    f"`{run.environment['command']}`. Everything needed to repeat it stands in "
    "`environment.json` beside this file, every number in the `.jsonl` and "
    "`.csv` tables.",
  )
  report.section("Predictions")
  report.text(
    "Perplexity is the exponential of the mean negative log-likelihood per "
    "token in nats. KL is the Kullback-Leibler divergence KL(exact || case) of "
    "the predictions per token, in nats, where exact is the exact float32 "
    "inverse under the same weights: it shows what the inverse alone does. "
    "Values of a few 1e-7 and less, of either sign, are rounding of float32 "
    "logits. "
    "Red: not finite, or a perplexity more than 1 % above the exact one's. "
    "Tokens/s are of prefill through the layers, without the output matrix."
  )
  for weights, own in cases.groupby("weights", sort=False):
    _predictions(report, own, str(weights), measured)
  report.figure(plot.divergences(cases), plot.CAPTION)
  report.section("Inverses by layer")
  _layers(report, run.frame("layers"), settings, windows)
  return report


def closing(cases: pd.DataFrame) -> str:
  """A plain table of the cases."""
  shown = cases[[*KEYS, "perplexity", "mean_kl", "max_kl"]]
  return tables.aligned(shown, {"perplexity": 4})


def _model_words(name: str, model: Any) -> str:
  config = model.config
  what = "random weights, which know nothing" if name == "random" else name
  return (
    f"{what}; {config.num_hidden_layers} layers of width {config.hidden_size}, "
    f"{config.layer_types.count('linear_attention')} of them Gated DeltaNet."
  )


def _predictions(
  report: Report, cases: pd.DataFrame, weights: str, measured: str
) -> None:
  exact = cases["perplexity"].iloc[0]
  table = pd.DataFrame(
    {
      "inverse": cases["spec"],
      "chunk": cases["chunk_size"],
      "products": cases["products"].where(cases["products"] > 0),
      "perplexity": cases["perplexity"],
      "bits per byte": cases["bits_per_byte"],
      "mean KL": cases["mean_kl"],
      "max KL": cases["max_kl"],
      "tokens/s": cases["tokens_per_s"],
    }
  )
  report.table(
    f"Inverses by chunk size, {weights_words(weights)}",
    table,
    digits={"products": 0, "perplexity": 4, "bits per byte": 4, "tokens/s": 0},
    bad={
      "perplexity": ~(table["perplexity"] <= exact * (1 + WORSE)),
      "mean KL": ~np.isfinite(table["mean KL"]),
      "max KL": ~np.isfinite(table["max KL"]),
    },
    measured_on=measured,
    name=f"predictions-{weights}",
  )


def _layers(
  report: Report, rows: pd.DataFrame, settings: Settings, windows: Windows
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
  for (weights, size), own in rows.groupby(
    ["weights", "chunk_size"], sort=False
  ):
    measured = (
      f"{own['matrices'].iloc[0]} matrices of {size} x {size} per layer, from "
      f"{count} window{'s' * (count > 1)} of {width} tokens, "
      f"{weights_words(weights)}."
    )
    which = f"{weights_words(weights)}, chunks of {size}"
    worst = _worst(own)
    beyond = "entries beyond their certificate"
    report.table(
      f"The worst over the layers, {which}",
      worst,
      bad={beyond: worst[beyond] > 0},
      measured_on=measured,
      name=f"worst-{weights}-{size}",
    )
    errors = own.pivot(index="layer", columns="spec", values="error")
    report.table(
      f"Error by Gated DeltaNet layer, {which}",
      errors[own["spec"].unique()],
      measured_on=measured,
      name=f"layers-{weights}-{size}",
    )


def _worst(rows: pd.DataFrame) -> pd.DataFrame:
  """What is worst over the layers, a row an inverse."""
  by_spec = rows.groupby("spec", sort=False)
  at = rows.loc[by_spec["error"].idxmax()].set_index("spec")
  # A plan that falls back to the solve, of 0 products, is the costliest.
  cost = rows["planned_products"].replace(0, np.inf)
  plans = rows.loc[cost.groupby(rows["spec"], sort=False).idxmax()]
  return pd.DataFrame(
    {
      "error": at["error"],
      "at layer": at["layer"],
      "row sum of the error": by_spec["row_sum"].max(),
      "certified": by_spec["certified"].max(),
      "entries beyond their certificate": by_spec["violations"].sum(),
      "plan, the costliest of the layers'": plans.set_index("spec")["planned"],
    }
  ).rename_axis("inverse")
