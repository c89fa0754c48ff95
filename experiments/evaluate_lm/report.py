"""What `evaluate_lm` found, as a summary by case and as pages of a report."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.data.text_windows import Text, Windows
from experiments.evaluate_lm import plot
from experiments.evaluate_lm.settings import Case, Settings
from experiments.evaluate_lm.sweep import KEYS
from experiments.harness import record
from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.harness.subjects.text_model import weights_words
from neumann_jax.chunk_inverse.xla import count_products

HEADINGS = {
  "spec": "inverse",
  "chunk_size": "chunk",
  "products": "products",
  "perplexity": "perplexity",
  "bits_per_byte": "bits per byte",
  "mean_kl": "mean KL",
  "max_kl": "max KL",
  "tokens_per_s": "tokens/s",
}
WORSE = 0.01  # a perplexity above the exact one's by this share stands out


def summary(
  windows: pd.DataFrame, cases: Sequence[Case], text: Text
) -> pd.DataFrame:
  """Adds up the batches of every case: the table "cases".

  A row has products of the inverse (0 for the solve), predicted tokens,
  perplexity (exp of the mean negative log-likelihood per token, in nats), bits
  per byte (that mean in bits, times tokens over bytes of the text), mean and
  largest KL(exact || case) over tokens, tokens per second (median over batches,
  of the layers without output matrix), and the devices.
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
  evaluation: Any, windows: Windows, cases: pd.DataFrame, run: record.Run
) -> Report:
  """The report, from `report.md` and the table "layers" of the run."""
  settings, model, text = evaluation
  (count, width), first = windows.tokens.shape, cases.iloc[0]
  measured = (
    f"{first['tokens']} predicted tokens of {text.name}: {count} independent "
    f"windows of {width} tokens, {settings.batch} at a time, activations in "
    f"{settings.dtype}, on {first['device']}."
  )
  name = settings.checkpoint
  return page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    run=run,
    settings=settings,
    model="random weights, which know nothing" if name == "random" else name,
    config=model.config,
    linear=model.config.layer_types.count("linear_attention"),
    predictions=[
      _predictions(own, str(weights), measured)
      for weights, own in cases.groupby("weights", sort=False)
    ],
    caption=plot.CAPTION,
    divergences=plot.divergences(cases),
    layers=[*_layers(run.frame("layers"), settings, windows)],
  )


def closing(cases: pd.DataFrame) -> str:
  """A plain table of the cases."""
  shown = cases[[*KEYS, "perplexity", "mean_kl", "max_kl"]]
  return tables.aligned(shown, {"perplexity": 4})


def _predictions(cases: pd.DataFrame, weights: str, measured: str) -> page.Part:
  exact = cases["perplexity"].iloc[0]
  table = cases[list(HEADINGS)].rename(columns=HEADINGS)
  table["products"] = table["products"].where(table["products"] > 0)
  bad = ~np.isfinite(table[["mean KL", "max KL"]])
  bad["perplexity"] = ~(table["perplexity"] <= exact * (1 + WORSE))
  return page.table(
    f"Inverses by chunk size, {weights_words(weights)}",
    table,
    digits={"products": 0, "perplexity": 4, "bits per byte": 4, "tokens/s": 0},
    bad=bad,
    measured_on=measured,
    name=f"predictions-{weights}",
  )


def _layers(
  rows: pd.DataFrame, settings: Settings, windows: Windows
) -> Iterator[page.Part]:
  """The worst of all layers, and the errors of each."""
  count, width = windows.tokens[: settings.inverse_windows].shape
  beyond = "entries beyond their certificate"
  for (weights, size), own in rows.groupby(
    ["weights", "chunk_size"], sort=False
  ):
    which = f"{weights_words(weights)}, chunks of {size}"
    measured = (
      f"{own['matrices'].iloc[0]} matrices of {size} x {size} per layer, from "
      f"{count} window{'s' * (count > 1)} of {width} tokens, "
      f"{weights_words(weights)}."
    )
    worst = _worst(own)
    yield page.table(
      f"The worst over the layers, {which}",
      worst,
      bad={beyond: worst[beyond] > 0},
      measured_on=measured,
      name=f"worst-{weights}-{size}",
    )
    errors = own.pivot(index="layer", columns="spec", values="error")
    yield page.table(
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
