"""The parts of the report of `lm_accuracy` that are about matrices."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page
from experiments.lm_accuracy import paper, plans, plot
from experiments.lm_accuracy.settings import Settings
from experiments.lm_accuracy.token_rows import GROUPS, NATURAL

USELESS = 20.0  # dB: an error of a tenth
NEAR = 1.01  # a perplexity above the exact one's by this factor stands out


def parts(run: record.Run, settings: Settings) -> dict[str, Any]:
  """What `report.md` asks for, from the tables about matrices."""
  names = ("errors", "grid", "certificates", "plans")
  errors, grid, points, planned = map(run.frame, names)
  narrow = errors[errors["format"] != "float64"]
  whole = grid.query(
    "chunk_size == 128 and order == 3 and terms == 8 and masked"
  )
  halves = None
  if not (whole["perplexity"] <= NEAR * whole["exact"]).all():
    halves = (
      "N = 3 S = 8 does not carry 128 tokens in full, which is why the paper "
      "splits them into two halves; the predictions above are of the halves."
    )
  return {
    "ratios": [*_ratios(errors, settings.error_chunk_size)],
    "ablation": _ablation(errors),
    "pareto": plot.pareto(errors),
    "grids": [*_grids(grid)],
    "grid": _grid(grid, settings),
    "masked_broken": _broken(grid[grid["masked"]]),
    "plain_broken": _broken(grid[~grid["masked"]]),
    "why_halves": halves,
    "certified": len(narrow),
    "violations": narrow["violations"].sum(),
    "drawn": len(points),
    "certificates": plot.certificates(points) if len(points) else None,
    "plans": _plans(plans.summary(planned)),
    "saving": plans.saving_words(planned),
  }


def _ratios(rows: pd.DataFrame, size: int) -> Iterator[page.Part]:
  """Mean and worst ratios of each group, beside the paper's."""
  matrices = rows.drop_duplicates("group")[["matrices", "group"]]
  drawn = " and ".join(f"{n} of {group}" for n, group in matrices.to_numpy())
  for group, own in rows.groupby("group", sort=False):
    products = own.drop_duplicates("method").set_index("method")["products"]
    for at, which in enumerate(("Mean", "Worst")):
      caption = f"{which} ratio in dB, {group}"
      table = own.pivot(
        index="method", columns="format", values=f"{which.lower()}_db"
      ).loc[products.index, own["format"].unique()]
      bad = ~(table >= USELESS)
      table.insert(0, "products", products)
      for form, words in (("float64", "FP64"), ("float16", "FP16")):
        pairs = [paper.ratio(method, form) for method in table.index]
        table[f"paper, {words}"] = [p[at] if p else math.nan for p in pairs]
      yield page.table(
        caption,
        table,
        digits=dict.fromkeys(table.columns[1:], 1),
        bad=bad,
        measured_on=f"matrices of {size} x {size}, {drawn}, of all layers and "
        f"heads. The paper's columns: {paper.SOURCE}, its Table 4, on Qwen3.5 "
        "and WikiText-2.",
        name="-".join(caption.lower().replace(",", "").split()),
      )


def _ablation(rows: pd.DataFrame) -> list[str]:
  """Whether the mask does what it does in the paper, group by group."""
  halves = rows[rows["format"] == "float16"]
  steps = halves["method"].str.split(",").str[0]
  worst = halves.assign(step=steps).set_index(["group", "step"])["worst_db"]
  said = []
  for group in GROUPS:
    pair = [worst.get((group, step)) for step in ("+ residual", "+ mask")]
    if None not in pair:
      before, after = pair
      verdict = "there was little to mend"
      if after > before + 6:
        verdict = "the mask does the same here"
      said.append(
        "The paper's mask lifts the worst FP16 ratio from -4.2 to 48.0 dB. "
        f"Here it goes from {before:.1f} to {after:.1f} dB on {group}: "
        f"{verdict}."
      )
  return said


def _grids(rows: pd.DataFrame) -> Iterator[page.Part]:
  for group, own in rows.groupby("group", sort=False):
    exact = own.drop_duplicates("chunk_size").set_index("chunk_size")["exact"]
    said = " ".join(f"{value:.4f} at C = {c}." for c, value in exact.items())
    yield page.figure(
      plot.grid(own),
      f"Perplexity on {group}, {own['tokens'].iloc[0]} bytes. The exact "
      f"inverse: {said} Grey: not finite.",
    )


def _grid(rows: pd.DataFrame, settings: Settings) -> page.Part:
  """Perplexity by N and S, the paper's in the last column."""
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
  bad = ~(values <= NEAR * exact)
  published = [paper.GRID.get(point) for point in values.index]
  values["paper"] = pd.Series(published, values.index, dtype=float)
  bad["paper"] = [p is not None and math.isnan(p) for p in published]
  return page.table(
    "Perplexity by N and S",
    values,
    digits=dict.fromkeys(values.columns, 3) | {"paper": 2},
    bad=bad,
    measured_on=f"rows of {settings.window} tokens, red: more than 1 % above "
    f"the exact inverse's or not finite. The paper's column: {paper.SOURCE}, "
    "its Table 5, Qwen3.5 on WikiText-2.",
    name="grid",
  )


def _broken(rows: pd.DataFrame) -> str:
  """At which points predictions are not finite."""
  points = rows.loc[rows["broken"] > 0, ["chunk_size", "order", "terms"]]
  found = sorted(set(points.itertuples(index=False, name=None)))
  return ", ".join(f"C = {c} N = {n} S = {s}" for c, n, s in found) or "none"


def _plans(table: pd.DataFrame) -> page.Part:
  worst = table.columns[-1]
  return page.table(
    "Plans of all heads",
    table,
    digits={"products saved, %": 0},
    bad={worst: ~(table[worst] <= 1)},
    measured_on="all captured matrices of every layer and head.",
    name="plans",
  )
