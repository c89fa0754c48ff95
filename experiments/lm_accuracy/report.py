"""What `lm_accuracy` found, as a report, beside what it should find."""

import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from experiments.data import sequence_tasks
from experiments.evaluate_lm import plot as divergence_plot
from experiments.evaluate_lm.settings import EXACT
from experiments.harness import record
from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Cell, Report
from experiments.harness.subjects.text_model import weights_words
from experiments.lm_accuracy import matrix_report, paper, plans, promises
from experiments.lm_accuracy.promises import MOST_BITS, Promise


def build(study: Any, run: record.Run) -> Report:
  """The report of a study, from `report.md` and the tables of its run."""
  settings, model, text, tasks = study
  measured = (
    f"{len(text.tokens)} rows of text and {len(tasks.tokens)} of tasks, "
    f"{settings.window} tokens each, held-out text of "
    f"{settings.data or f'the library of Python {platform.python_version()}'}, "
    "activations in float32."
  )
  rows = run.frame("predictions")
  kinds = list(rows["kind"].unique())
  tasks = [kind for kind in kinds if kind in sequence_tasks.TASKS]
  texts = [kind for kind in kinds if kind not in tasks]
  return page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    settings=settings,
    config=model.config,
    linear=model.config.layer_types.count("linear_attention"),
    run=run,
    limits=_limits(promises.of(run), measured),
    exact=_exact(rows, texts, tasks, measured),
    differences=[*_differences(rows, texts, tasks, measured)],
    divergences=divergence_plot.divergences(_pooled(rows, texts)),
    divergences_caption=divergence_plot.CAPTION,
    beside_the_paper=_beside_the_paper(rows[rows["kind"] == texts[0]]),
    **matrix_report.parts(run, settings),
  )


def closing(run: record.Run) -> str:
  """A line for each promise, and one on what plans save."""
  found = promises.of(run)
  table = pd.DataFrame(found)
  table.insert(0, "", ["kept" if p.kept else "BROKEN" for p in found])
  saved = plans.saving_words(run.frame("plans"))
  return f"{tables.aligned(table)}\n{saved}"


def _limits(found: list[Promise], measured: str) -> page.Part:
  return page.table(
    "Limits",
    pd.DataFrame(found).rename(columns={"what": ""}),
    bad={"measured": [not p.kept for p in found]},
    measured_on=measured,
    name="promises",
  )


def _exact(
  rows: pd.DataFrame, texts: list[str], tasks: list[str], measured: str
) -> page.Part:
  """What the exact inverse predicts, a row for each weights and chunk size."""
  keys = ["weights", "chunk_size"]
  exact = rows[rows["spec"] == EXACT].pivot(index=keys, columns="kind")
  bits = exact["bits"][texts].add_suffix(", bits per byte")
  right = exact["accuracy"][tasks].add_suffix(", % right")
  order = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
  return page.table(
    "The exact float32 inverse",
    bits.join(right).loc[order].rename_axis(["weights", "chunk"]),
    digits=dict.fromkeys(bits, 4) | dict.fromkeys(right, 2),
    measured_on=measured,
    name="exact",
  )


def _differences(
  rows: pd.DataFrame, texts: list[str], tasks: list[str], measured: str
) -> Iterator[page.Part]:
  """A table for each weights and chunk size, a row for each inverse."""
  changed = rows["changed"].map(" ({})".format)
  points = rows["more_accuracy"].map("{:+.2f}".format) + changed
  rows = rows.assign(points=points)[rows["spec"] != EXACT]
  for (weights, size), own in rows.groupby(
    ["weights", "chunk_size"], sort=False
  ):
    wide = own.pivot(index="spec", columns="kind").loc[own["spec"].unique()]
    bits = wide["more_bits"][texts].add_suffix(", bits")
    most = [MOST_BITS.get(spec, np.inf) for spec in wide.index]
    bad = ~bits.abs().le(most, axis=0)
    bits.insert(0, "products", wide["products"][texts[0]])
    bits.insert(2, "standard error", wide["standard_error"][texts[0]])
    points = wide["points"][tasks].add_suffix(", points (changed)")
    yield page.table(
      f"Differences, {weights_words(weights)}, C = {size}",
      bits.join(points).rename_axis("inverse"),
      bad=bad,
      measured_on=measured,
      name=f"differences-{weights}-{size}",
    )


def _pooled(rows: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
  """Mean divergence over all tokens of text, as `plot.divergences` reads it."""
  text = rows[rows["kind"].isin(texts)]
  keys = ["weights", "chunk_size", "spec", "products"]
  sums = text.assign(mean_kl=text["divergence"] * text["tokens"])
  sums = sums.groupby(keys, sort=False)[["mean_kl", "tokens"]].agg(
    lambda x: x.to_numpy().sum()  # what is not a number shows
  )
  return (sums["mean_kl"] / sums["tokens"]).rename("mean_kl").reset_index()


def _beside_the_paper(rows: pd.DataFrame) -> page.Part:
  """Perplexity ratios: ours on held-out text, the paper's on WikiText-2."""
  exact = rows[rows["spec"] == EXACT].set_index(["weights", "chunk_size"])
  table: list[tuple[Any, ...]] = [
    (f"paper, Table {number}, {model}", *rest, 2)
    for number, model, *rest in paper.PERPLEXITIES
  ]
  for row in rows[rows["spec"].str.startswith("banded")].itertuples():
    bits = exact["bits"][row.weights, row.chunk_size], row.bits
    where = f"here, C = {row.chunk_size}", weights_words(row.weights)
    form = row.spec.removeprefix("banded ")
    table.append((*where, form, *(2**x for x in bits), 4))
  return page.table(
    "The paper's inverse: perplexity on natural text",
    ["", "weights", "inverse", "exact", "paper's method", "more, %"],
    [
      [*words, Cell(a, n), Cell(b, n), 100 * (b / a - 1)]
      for *words, a, b, n in table
    ],
    measured_on=f"the paper's rows: {paper.SOURCE}, WikiText-2, per token; "
    f"ours: {rows['kind'].iloc[0]}, per byte.",
    name="beside-the-paper",
  )
