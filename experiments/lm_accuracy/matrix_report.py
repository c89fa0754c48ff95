"""The parts of the report of `lm_accuracy` that are about matrices."""

import math

import pandas as pd

from experiments.harness.report import Report
from experiments.lm_accuracy import paper, plans, plot
from experiments.lm_accuracy.settings import Settings
from experiments.lm_accuracy.token_rows import GROUPS, NATURAL

USELESS = 20.0  # dB: an error of a tenth


def add_ratios(
  report: Report,
  rows: pd.DataFrame,  # of the table "errors"
  measured: str,  # what they are of
) -> None:
  """Adds signal-to-noise ratios and what the paper has."""
  report.section("Signal-to-noise ratios")
  report.text(
    "20 log10(|T| / |T - X|), Frobenius norms of the strictly lower part, T "
    "the float64 inverse of the same float32 matrix by forward substitution. "
    "Operands of every product are rounded to the format, sums and results "
    "are float32; integers scale by row and column. Means leave out matrices "
    "that overflowed. Red: below 20 dB, or not finite."
  )
  for group, own in rows.groupby("group", sort=False):
    for at, which in enumerate(("Mean", "Worst")):
      caption = f"{which} ratio in dB, {group}"
      table = own.pivot(
        index="method", columns="format", values=f"{which.lower()}_db"
      ).loc[own["method"].unique(), own["format"].unique()]
      bad = ~(table >= USELESS)
      products = own.drop_duplicates("method").set_index("method")["products"]
      table.insert(0, "products", products)
      for form, words in (("float64", "FP64"), ("float16", "FP16")):
        pairs = [paper.ratio(method, form) for method in table.index]
        known = [None if pair is None else pair[at] for pair in pairs]
        table[f"paper, {words}"] = pd.Series(known, table.index, dtype=float)
      report.table(
        caption,
        table,
        digits=dict.fromkeys(table.columns[1:], 1),
        bad=bad,
        measured_on=f"{measured} The paper's columns: {paper.SOURCE}, its "
        "Table 4, on Qwen3.5 and WikiText-2.",
        name="-".join(caption.lower().replace(",", "").split()),
      )
  for words in _ratio_words(rows):
    report.text(words)
  report.heading("Error against products")
  report.figure(
    plot.pareto(rows),
    "Worst ratio of a method over its C x C products; colours are formats, "
    "shapes methods. What overflowed is left out, and so is float64.",
  )


def _ratio_words(rows: pd.DataFrame) -> list[str]:
  """What agrees with the paper's ablation and what does not."""
  halves = rows[rows["format"] == "float16"]
  steps = halves["method"].str.split(",").str[0]
  worst = halves.assign(step=steps).set_index(["group", "step"])["worst_db"]
  said = []
  for group in GROUPS:
    pair = [worst.get((group, step)) for step in ("+ residual", "+ mask")]
    if None in pair:
      continue
    before, after = pair
    verdict = "there was little to mend"
    if after > before + 6:
      verdict = "the mask does the same here"
    said.append(
      "The paper's mask lifts the worst FP16 ratio from -4.2 to 48.0 dB. Here "
      f"it goes from {before:.1f} to {after:.1f} dB on {group}: {verdict}."
    )
  said.append(
    "Why figures differ: a float64 series of 178 dB points to a reference "
    "that is not float64 itself, ours ends where float64 does. The paper may "
    "store FP16 results in 16 bits, ours stay float32 between products. A "
    "head that forgets fast has nearly diagonal matrices, which every method "
    "inverts well; how many a model has decides the mean."
  )
  said.append(
    "Two things the paper does not show. Its last product T0 (I + R + ...) "
    "rounds T0, and in INT8 the diagonal of 1 sets the scale of a row, so that "
    "entries below 1/254 vanish; the ladder and Newton add their products to "
    "an X in float32. And a refinement in float16 gains nothing where the "
    "residual lies below the smallest float16, while integers scale to it."
  )
  return said


def add_grid(report: Report, rows: pd.DataFrame, settings: Settings) -> None:
  """Adds perplexity over N and S, from rows of the table "grid"."""
  report.section("Order and terms")
  report.text(
    f"Perplexity per byte with operands in {settings.grid_precision}, the "
    "series in full at every chunk size: no split into blocks. Without the "
    "mask the powers of A stay in, and grow where keys resemble each other."
  )
  for group, own in rows.groupby("group", sort=False):
    exact = own.drop_duplicates("chunk_size").set_index("chunk_size")["exact"]
    said = " ".join(f"{value:.4f} at C = {c}." for c, value in exact.items())
    report.figure(
      plot.grid(own),
      f"Perplexity on {group}, {own['tokens'].iloc[0]} bytes. The exact "
      f"inverse: {said} Grey: not finite.",
    )
  _grid_table(report, rows, settings)
  for words in _grid_words(rows):
    report.text(words)


def _grid_table(report: Report, rows: pd.DataFrame, settings: Settings) -> None:
  names = [
    f"C = {row.chunk_size}{'' if row.masked else ' no mask'}, "
    f"{'held-out' if row.group == NATURAL else 'adversarial'}"
    for row in rows.itertuples()
  ]
  values, exact = (
    rows.assign(name=names)
    .pivot(index=["order", "terms"], columns="name", values=field)
    .loc[:, list(dict.fromkeys(names))]
    .rename_axis(["N", "S"])
    for field in ("perplexity", "exact")
  )
  bad = ~(values <= 1.01 * exact)
  published = [paper.GRID.get(point) for point in values.index]
  values["paper"] = pd.Series(published, values.index, dtype=float)
  bad["paper"] = [p is not None and math.isnan(p) for p in published]
  report.table(
    "Perplexity by N and S",
    values,
    digits=dict.fromkeys(values.columns, 3) | {"paper": 2},
    bad=bad,
    measured_on=f"rows of {settings.window} tokens, red: more than 1 % above "
    f"the exact inverse's or not finite. The paper's column: {paper.SOURCE}, "
    "its Table 5, Qwen3.5 on WikiText-2.",
    name="grid",
  )


def _grid_words(rows: pd.DataFrame) -> list[str]:
  said = []
  for masked in (True, False):
    broken = rows[(rows["broken"] > 0) & (rows["masked"] == masked)]
    points = broken[["chunk_size", "order", "terms"]].itertuples(index=False)
    where = ", ".join(
      f"C = {c} N = {n} S = {s}" for c, n, s in sorted(set(map(tuple, points)))
    )
    said.append(
      f"Predictions that are not finite {'with' if masked else 'without'} the "
      f"mask: {where or 'none'}."
    )
  said.append(
    "In the paper S = 1 is not finite for N up to 5 and perplexity grows with "
    "N at S = 8, from 8.98 to 117.79, though a longer sum truncates less: its "
    "FP16 powers leave their range. Ours round operands only and sum in "
    "float32, so that only operands beyond 65504 overflow. With the mask what "
    "remains is truncation, which by and large falls with N. A few more terms "
    "can be worse than none: powers of the residual grow before they vanish."
  )
  whole = rows.query(
    "chunk_size == 128 and order == 3 and terms == 8 and masked"
  )
  if not (whole["perplexity"] <= 1.01 * whole["exact"]).all():
    said.append(
      "N = 3 S = 8 does not carry 128 tokens in full, which is why the paper "
      "splits them into two halves; the predictions above are of the halves."
    )
  return said


def add_certificates(
  report: Report,
  errors: pd.DataFrame,  # rows of the table of this name
  points: pd.DataFrame,  # rows of the table "certificates"
) -> None:
  """Adds the certificate against the true error."""
  rows = errors[errors["format"] != "float64"]
  report.section("Certificates")
  report.text(
    "`neumann_jax.certify` bounds every entry of |T - X| from the gates and "
    "one residual, without the true inverse. Entries beyond their certificate, "
    f"over {len(rows)} pairs of case and group: {rows['violations'].sum()}. "
    "The paper has no certificate."
  )
  if len(points):
    report.figure(
      plot.certificates(points),
      f"Largest row sums of {len(points)} matrices. Those below 1e-9 are drawn "
      "there.",
    )


def add_plans(report: Report, rows: pd.DataFrame) -> None:
  """Adds what `plan` takes for the heads, from rows of the table "plans"."""
  report.section("Plans")
  report.text(
    "`neumann_jax.plan` for every head, from the decays of all its captured "
    "chunks. The tolerance bounds the largest row sum of |T - X|; measured is "
    "the worst over the head's matrices. Saved are products of the ladder, "
    "refined where the tolerance asks for it. The paper's order and terms "
    "follow the chunk size alone; a choice by gates it leaves to future work."
  )
  table = plans.summary(rows)
  worst = table.columns[-1]
  report.table(
    "Plans of all heads",
    table,
    digits={"products saved, %": 0},
    bad={worst: ~(table[worst] <= 1)},
    measured_on="all captured matrices of every layer and head.",
    name="plans",
  )
  report.text(plans.saving_words(rows))
