"""The parts of the report of `lm_accuracy` that are about matrices."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness import record
from experiments.harness.report import Cell, Report
from experiments.lm_accuracy import paper as accuracy_paper
from experiments.lm_accuracy import plot
from experiments.lm_accuracy.errors import GROUPS
from experiments.lm_accuracy.text import NATURAL

Table = Sequence[Mapping[str, Any]]
USELESS = 20.0  # dB: an error of a tenth


def add_ratios(report: Report, run: record.Run, measured: str) -> None:
  """Adds the table of signal-to-noise ratios and what the paper has."""
  rows = run.rows("errors")
  report.section("Signal-to-noise ratios")
  report.text(
    "20 log10(|T| / |T - X|), Frobenius norms of the strictly lower part, T "
    "the float64 inverse of the same float32 matrix by forward substitution. "
    "Operands of every product are rounded to the format, sums and results "
    "are float32; integers scale by row and column. Means leave out matrices "
    "that overflowed. Red: below 20 dB, or not finite."
  )
  for group in GROUPS:
    for field, words in (("mean_db", "Mean"), ("worst_db", "Worst")):
      own = [row for row in rows if row["group"] == group]
      if own:
        _ratios(report, own, field, f"{words} ratio in dB, {group}", measured)
  for words in _ratio_words(rows):
    report.text(words)
  report.heading("Error against products")
  report.figure(
    plot.pareto(rows),
    "Worst ratio of a method over its C x C products; colours are formats, "
    "shapes methods. What overflowed is left out, and so is float64.",
  )


def _ratios(
  report: Report, rows: Table, field: str, caption: str, measured: str
) -> None:
  forms = list(dict.fromkeys(row["format"] for row in rows))
  at = 0 if field == "mean_db" else 1
  table = []
  for method in dict.fromkeys(row["method"] for row in rows):
    own = {row["format"]: row for row in rows if row["method"] == method}
    values = [float(own[form][field]) for form in forms]
    paper = [accuracy_paper.ratio(method, f) for f in ("float64", "float16")]
    table.append(
      [
        method,
        next(iter(own.values()))["products"],
        *(Cell(x, digits=1, bad=not x >= USELESS) for x in values),
        *(None if pair is None else Cell(pair[at], digits=1) for pair in paper),
      ]
    )
  name = "-".join(caption.lower().replace(",", "").split())
  report.table(
    caption,
    ["method", "products", *forms, "paper, FP64", "paper, FP16"],
    table,
    measured_on=f"{measured} The paper's columns: {accuracy_paper.SOURCE}, "
    "its Table 4, on Qwen3.5 and WikiText-2.",
    name=name,
  )


def _ratio_words(rows: Table) -> list[str]:
  """What agrees with the paper's ablation and what does not."""
  found = {
    (row["group"], row["method"].split(",")[0]): float(row["worst_db"])
    for row in rows
    if row["format"] == "float16"
  }
  said = []
  for group in GROUPS:
    pair = [found.get((group, m)) for m in ("+ residual", "+ mask")]
    if None in pair:
      continue
    before, after = (float(x) for x in pair if x is not None)
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


def add_grid(report: Report, run: record.Run, settings: Any) -> None:
  """Adds perplexity over N and S."""
  rows = run.rows("grid")
  report.section("Order and terms")
  report.text(
    f"Perplexity of a byte with operands in {settings.grid_precision}, the "
    "series in full at every chunk size: no split into blocks. Without the "
    "mask the powers of A stay in, and grow where keys resemble each other."
  )
  for group in GROUPS:
    own = [row for row in rows if row["group"] == group]
    if not own:
      continue
    exact = " ".join(
      f"{float(value):.4f} at C = {size}."
      for size, value in {r["chunk_size"]: r["exact"] for r in own}.items()
    )
    report.figure(
      plot.grid(own),
      f"Perplexity on {group}, {own[0]['tokens']} bytes. The exact inverse: "
      f"{exact} Grey: not finite.",
    )
  _grid_table(report, rows, settings)
  for words in _grid_words(rows):
    report.text(words)


def _grid_table(report: Report, rows: Table, settings: Any) -> None:
  table = []
  keys = dict.fromkeys((row["order"], row["terms"]) for row in rows)
  columns = dict.fromkeys(
    (row["chunk_size"], row["masked"], row["group"]) for row in rows
  )
  for order, terms in keys:
    cells: list[Any] = [order, terms]
    for column in columns:
      row = next(
        r
        for r in rows
        if (r["order"], r["terms"]) == (order, terms)
        and (r["chunk_size"], r["masked"], r["group"]) == column
      )
      value = float(row["perplexity"])
      bad = not value <= 1.01 * float(row["exact"])
      cells.append(Cell(value, digits=3, bad=bad))
    paper = accuracy_paper.GRID.get((order, terms))
    table.append([*cells, None if paper is None else Cell(paper, digits=2)])
  report.table(
    "Perplexity by N and S",
    [
      "N",
      "S",
      *(
        f"C = {size}{'' if masked else ' no mask'}, "
        f"{'held-out' if group == NATURAL else 'adversarial'}"
        for size, masked, group in columns
      ),
      "paper",
    ],
    table,
    measured_on=f"rows of {settings.window} tokens, red: more than 1 % above "
    f"the exact inverse's or not finite. The paper's column: "
    f"{accuracy_paper.SOURCE}, its Table 5, Qwen3.5 on WikiText-2.",
    name="grid",
  )


def _grid_words(rows: Table) -> list[str]:
  broken = [row for row in rows if row["broken"]]
  said = []
  for masked in (True, False):
    own = {
      (row["chunk_size"], row["order"], row["terms"])
      for row in broken
      if row["masked"] == masked
    }
    where = ", ".join(f"C = {c} N = {n} S = {s}" for c, n, s in sorted(own))
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
  whole = [
    row
    for row in rows
    if (row["chunk_size"], row["order"], row["terms"]) == (128, 3, 8)
    and row["masked"]
    and not float(row["perplexity"]) <= 1.01 * float(row["exact"])
  ]
  if whole:
    said.append(
      "N = 3 S = 8 does not carry 128 tokens in full, which is why the paper "
      "splits them into two halves; the predictions above are of the halves."
    )
  return said


def add_certificates(report: Report, run: record.Run) -> None:
  """Adds the certificate against the true error."""
  errors = [r for r in run.rows("errors") if r["format"] != "float64"]
  broken = sum(row["violations"] for row in errors)
  report.section("Certificates")
  report.text(
    "`neumann_jax.certify` bounds every entry of |T - X| from the gates and "
    "one residual, without the true inverse. Entries beyond their certificate, "
    f"over {len(errors)} pairs of case and group: {broken}. The paper has no "
    "certificate."
  )
  rows = run.rows("certificates")
  if rows:
    report.figure(
      plot.certificates(rows),
      f"Largest row sums of {len(rows)} matrices. Those below 1e-9 are drawn "
      "there.",
    )


def add_plans(report: Report, run: record.Run) -> None:
  """Adds what `plan` takes for the heads."""
  rows = run.rows("plans")
  report.section("Plans")
  report.text(
    "`neumann_jax.plan` for every head, from the decays of all its captured "
    "chunks. The tolerance bounds the largest row sum of |T - X|; measured is "
    "the worst over the head's matrices. Saved are products of the ladder, "
    "refined where the tolerance asks for it. The paper's order and terms "
    "follow the chunk size alone; a choice by gates it leaves to future work."
  )
  table = []
  keys = ("chunk_size", "format", "tolerance")
  for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
    own = [row for row in rows if tuple(row[k] for k in keys) == key]
    picks = Counter(row["planned"] for row in own).most_common(3)
    products = [r for r in own if r["products"] and r["ladder"]]
    spent, ladder = (
      sum(row[name] for row in products) for name in ("products", "ladder")
    )
    worst = max(float(row["row_sum"]) for row in own) / key[2]
    table.append(
      [
        *key,
        len(own),
        sum(row["matrices"] for row in own),
        ", ".join(f"{name} ({count})" for name, count in picks),
        sum(row["products"] < row["ladder"] for row in products),
        Cell(100 * (1 - spent / ladder), digits=0) if ladder else None,
        sum(row["products"] == 0 for row in own),
        Cell(worst, bad=not worst <= 1),
      ]
    )
  report.table(
    "Plans of all heads",
    [
      "chunk",
      "format",
      "tolerance",
      "heads",
      "matrices",
      "picked most (heads)",
      "heads that save",
      "products saved, %",
      "left to the solve",
      "worst measured / tolerance",
    ],
    table,
    measured_on="all captured matrices of every layer and head.",
    name="plans",
  )
  report.text(saving_words(rows))


def saving_words(rows: Table) -> str:
  """One sentence on what plans save."""
  able = [row for row in rows if row["products"] and row["ladder"]]
  saving = [row for row in able if row["products"] < row["ladder"]]
  if not saving:
    return "No plan saves a product against the ladder on this model."
  return (
    f"Plans save products against the ladder in {len(saving)} of {len(able)} "
    "cases of head, format, tolerance and chunk size where both promise the "
    "tolerance."
  )


def worst_plan(rows: Table) -> float:
  """Largest measured row sum over its tolerance."""
  return max(
    (float(row["row_sum"]) / row["tolerance"] for row in rows),
    default=math.nan,
  )
