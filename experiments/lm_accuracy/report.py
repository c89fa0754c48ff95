"""What `lm_accuracy` found, as a report, beside what it should find."""

import platform
from typing import Any

import numpy as np
import pandas as pd

from experiments.data import sequence_tasks
from experiments.evaluate_lm import plot
from experiments.evaluate_lm.settings import EXACT
from experiments.harness import record, tables
from experiments.harness.report import Cell, Report
from experiments.harness.text_model import weights_words
from experiments.lm_accuracy import matrix_report, paper, plans, promises
from experiments.lm_accuracy.promises import MOST_BITS, Promise


def build(
  study: Any,  # of `lm_accuracy.study`
  run: record.Run,  # with its tables
) -> Report:
  """The report."""
  settings, model, text, tasks = study
  config = model.config
  report = Report(
    "Accuracy of the chunk inverse on a trained language model",
    f"Model: {settings.model}, {config.num_hidden_layers} layers of width "
    f"{config.hidden_size}, {config.layer_types.count('linear_attention')} of "
    "them Gated DeltaNet, on bytes. Command: "
    f"`{run.environment['command']}`. Every number is in the `.jsonl` and "
    "`.csv` tables beside this file, the machine in `environment.json`.",
  )
  measured = (
    f"{len(text.tokens)} rows of text and {len(tasks.tokens)} of tasks, "
    f"{settings.window} tokens each, held-out text of "
    f"{settings.data or f'the library of Python {platform.python_version()}'}, "
    "activations in float32."
  )
  _promises(report, promises.of(run), measured)
  _predictions(report, run.frame("predictions"), measured)
  errors = run.frame("errors")
  matrices = errors.drop_duplicates("group")[["matrices", "group"]]
  drawn = " and ".join(f"{n} of {group}" for n, group in matrices.to_numpy())
  matrix_report.add_ratios(
    report,
    errors,
    f"matrices of {settings.error_chunk_size} x {settings.error_chunk_size}, "
    f"{drawn}, of all layers and heads.",
  )
  matrix_report.add_grid(report, run.frame("grid"), settings)
  matrix_report.add_certificates(report, errors, run.frame("certificates"))
  matrix_report.add_plans(report, run.frame("plans"))
  return report


def closing(run: record.Run) -> str:
  """A line for each promise, and one on what plans save."""
  found = promises.of(run)
  table = pd.DataFrame(found)
  table.insert(0, "", ["kept" if p.kept else "BROKEN" for p in found])
  saved = plans.saving_words(run.frame("plans"))
  return f"{tables.aligned(table)}\n{saved}"


def _promises(report: Report, found: list[Promise], measured: str) -> None:
  report.section("What had to be shown")
  report.text(
    "Largest differences from the exact float32 inverse, weights as trained, "
    "over natural and adversarial text and all chunk sizes. Red: above the "
    "limit."
  )
  report.table(
    "Limits",
    pd.DataFrame(found).rename(columns={"what": ""}),
    bad={"measured": [not p.kept for p in found]},
    measured_on=measured,
    name="promises",
  )


def _predictions(report: Report, rows: pd.DataFrame, measured: str) -> None:
  report.section("Predictions")
  kinds = list(rows["kind"].unique())
  tasks = [kind for kind in kinds if kind in sequence_tasks.TASKS]
  texts = [kind for kind in kinds if kind not in tasks]
  exact = rows[rows["spec"] == EXACT].pivot(
    index=["weights", "chunk_size"], columns="kind"
  )
  bits = exact["bits"][texts].add_suffix(", bits per byte")
  right = exact["accuracy"][tasks].add_suffix(", % right")
  report.table(
    "The exact float32 inverse",
    bits.join(right)
    .loc[list(dict.fromkeys(zip(rows["weights"], rows["chunk_size"])))]
    .rename_axis(["weights", "chunk"]),
    digits=dict.fromkeys(bits, 4) | dict.fromkeys(right, 2),
    measured_on=measured,
    name="exact",
  )
  report.text(
    "Differences from it under the same weights and chunk size, token by token "
    "on the same rows: bits per byte with the standard error over rows, points "
    "of accuracy with the answers that changed. `banded` is the paper's "
    "inverse at its own settings, N=3 S=8 at C = 64 and in two halves at 128. "
    "Red: above the limit of the inverse, or not finite."
  )
  for (weights, size), own in rows.groupby(
    ["weights", "chunk_size"], sort=False
  ):
    table = _differences(own[own["spec"] != EXACT], texts, tasks)
    most = [MOST_BITS.get(spec, np.inf) for spec in table.index]
    shifts = table.columns[table.columns.str.endswith(", bits")]
    report.table(
      f"Differences, {weights_words(weights)}, C = {size}",
      table,
      bad=~table[shifts].abs().le(most, axis=0),
      measured_on=measured,
      name=f"differences-{weights}-{size}",
    )
  report.figure(plot.divergences(_pooled(rows, texts)), plot.CAPTION)
  _beside_the_paper(report, rows[rows["kind"] == texts[0]])


def _differences(
  rows: pd.DataFrame, texts: list[str], tasks: list[str]
) -> pd.DataFrame:
  """A row an inverse: bits by kind of text, points by task."""
  points = [
    f"{row.more_accuracy:+.2f} ({row.changed})" for row in rows.itertuples()
  ]
  wide = rows.assign(points=points).pivot(index="spec", columns="kind")
  bits = wide["more_bits"][texts].add_suffix(", bits")
  bits.insert(0, "products", wide["products"][texts[0]])
  bits.insert(2, "standard error", wide["standard_error"][texts[0]])
  points = wide["points"][tasks].add_suffix(", points (changed)")
  table = bits.join(points).loc[rows["spec"].unique()]
  return table.rename_axis("inverse")


def _pooled(rows: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
  """Mean divergence over all tokens of text, as `plot.divergences` reads it."""
  text = rows[rows["kind"].isin(texts)]
  keys = ["weights", "chunk_size", "spec", "products"]
  sums = text.assign(mean_kl=text["divergence"] * text["tokens"])
  sums = sums.groupby(keys, sort=False)[["mean_kl", "tokens"]].agg(
    lambda x: x.to_numpy().sum()  # what is not a number shows
  )
  return (sums["mean_kl"] / sums["tokens"]).rename("mean_kl").reset_index()


def _beside_the_paper(report: Report, rows: pd.DataFrame) -> None:
  """Perplexity ratios: ours on held-out text, the paper's on WikiText-2."""
  natural = rows["kind"].iloc[0]
  exact = rows[rows["spec"] == EXACT].set_index(["weights", "chunk_size"])
  table: list[tuple[Any, ...]] = [
    (
      f"paper, Table {p.table}, {p.model}",
      p.weights,
      p.inverse,
      p.exact,
      p.paper,
      2,
    )
    for p in paper.PERPLEXITIES
  ]
  for row in rows[rows["spec"].str.startswith("banded")].itertuples():
    bits = exact["bits"][row.weights, row.chunk_size], row.bits
    where = f"here, C = {row.chunk_size}", weights_words(row.weights)
    form = row.spec.removeprefix("banded ")
    table.append((*where, form, *(2**x for x in bits), 4))
  report.table(
    "The paper's inverse: perplexity on natural text",
    ["", "weights", "inverse", "exact", "paper's method", "more, %"],
    [
      [*words, Cell(a, n), Cell(b, n), None if a is None else 100 * (b / a - 1)]
      for *words, a, b, n in table
    ],
    measured_on=f"the paper's rows: {paper.SOURCE}, WikiText-2, per token; "
    f"ours: {natural}, per byte.",
    name="beside-the-paper",
  )
  report.text(
    "The paper has its inverse at the exact one's perplexity on natural text, "
    "within 0.1 % where both are shown, and INT8 equal to INT16. Ours are in "
    "the last column. It shows no adversarial text; the tables above do."
  )
