"""The report's pages on the chunk inverse: errors, certificates, plans."""

import platform

import jax.numpy as jnp
import numpy as np
import pandas as pd

import neumann_jax
from experiments.harness.report import Report
from experiments.inverse_accuracy.cases import (
  ENVELOPE_FORMATS,
  FORMATS,
  PAPER,
)
from experiments.inverse_accuracy.text_matrices import Difficulty

FAILS = 0.1  # a relative error above this is shown as a failure
MILD, WIDE = "0.6 to 1", "0 to 2"
PAPER_NAMES = {
  32: "banded N4 S3",
  64: "banded N3 S8",
  128: "two banded N3 S8, merged",
}


def add_families(
  report: Report,
  rows: pd.DataFrame,  # every case on the groups of `errors.family_groups`
  count: int,  # chunks per family and decay
) -> None:
  """Adds the errors on named key families."""
  measured = (
    f"{count} synthetic chunks of 64 keys (width 128, float64, rounded once to "
    "float32) for each of 8 key families and 3 decays; truth: float64 inverse."
  )
  report.heading("Worst error over key families")
  report.text(
    "Relative Frobenius error of the strictly lower part, the worst over all "
    "families and decays, beta uniform in [0.6, 1]. Operands of every product "
    "are rounded to the format; integers scale dynamically by row and column. "
    "Red: above 0.1, of no use. The paper's own setting for 64 tokens leaves "
    "out true entries, so it fails in float32 already; more terms mend that "
    "in float32, and in narrow formats only in part. Random independent keys, "
    "the usual test, show none of this."
  )
  mild, wide = rows[rows.beta == MILD], rows[rows.beta == WIDE]
  add_worst(report, mild, measured, name="families")
  report.heading("Where they break")
  for form in ("float32", "bfloat16"):
    _add_by_family(report, mild, measured, form)
  report.heading("Beta up to 2")
  report.text(
    "Negative eigenvalues (beta beyond 1) are where powers of A overflow. The "
    "ladder and the masked Newton iteration never form one."
  )
  add_worst(report, wide, measured, name="families-beta-2")
  report.heading("Integers with one scale fixed by the gates")
  report.text(
    "The envelope bounds every operand in advance, so the scale needs no data: "
    "the largest beta over the largest code. Cheaper than scaling "
    "by row and column, and a bit or two worse; one refinement makes "
    "up for it."
  )
  _add_fixed_scale(report, rows, measured)


def add_model(
  report: Report,
  rows: pd.DataFrame,  # every case on the model's group
  difficulty: Difficulty,  # how hard its matrices are
) -> None:
  """Adds the matrices of the shipped model that reads held-out text."""
  first = rows.iloc[0]
  report.heading("A trained Gated DeltaNet model that reads text")
  report.text(
    "The byte model that ships with the package, on modules of the Python "
    "standard library that it was not trained on: "
    f"{first.decay} log decay per token, negated, half of them above "
    f"{difficulty.decay:.2g}; beta {first.beta}. Pairs of keys in a chunk "
    f"have a mean |cosine| of {difficulty.cosine:.2f} and rows of |A| sum up "
    f"to {difficulty.row_sum:.1f}."
  )
  add_worst(
    report,
    rows,
    f"{difficulty.matrices} matrices: the first bytes of "
    f"{', '.join(difficulty.modules)} of Python {platform.python_version()}, "
    f"all linear layers and value heads, chunks of {first.chunk_size}.",
    name="model",
  )


def add_paper_settings(
  report: Report,
  rows: pd.DataFrame,  # `cases.paper_cases` at several chunk sizes
  count: int,  # chunks per family and decay
) -> None:
  """Adds the paper's three settings beside the ladder."""
  tables = []
  for size in rows.chunk_size.unique():
    chosen = rows[rows.chunk_size == size]
    table = worst(chosen).rename({"banded": PAPER_NAMES[size]})
    table.insert(0, "chunk", size)
    tables.append(table.reset_index().set_index("chunk"))
  report.heading("The paper's settings by chunk length")
  _add(
    report,
    pd.concat(tables),
    f"the same 8 families and 3 decays, {count} chunks each, beta in [0.6, 1].",
    name="paper-settings",
    caption="Worst relative error, the paper's (N, S) beside the ladder",
  )


def add_certificate(report: Report, rows: pd.DataFrame) -> None:
  """Adds the plot of certified bounds against true errors."""
  import matplotlib.pyplot as plt

  points = rows[np.isfinite(rows.entry) & np.isfinite(rows.certified)]
  figure, axes = plt.subplots(figsize=(6.4, 4.6))
  for form, chosen in points.groupby("format", sort=False):
    axes.loglog(chosen.entry, chosen.certified, ".", label=form, markersize=4)
  ends = np.array([1e-8, points.certified.max()])
  axes.plot(ends, ends, color="black", linewidth=1, label="bound = error")
  axes.set_xlabel("true error, largest entry of a group")
  axes.set_ylabel("certified bound, largest entry")
  axes.legend(fontsize=8)
  report.heading("The certificate")
  report.text(
    "`neumann_jax.certify` bounds the error of every entry from the gates and "
    "one residual, without knowing the true inverse."
  )
  report.figure(
    figure,
    f"Certified bound against true error for {len(points)} pairs of case and "
    "group (those that overflowed are left out: their bound is infinite). "
    f"Entries whose error exceeded their bound: {rows.violations.sum()}.",
  )


def add_plans(report: Report, chunk_size: int) -> None:
  """Adds what `neumann_jax.plan` picks for a few needs."""
  rows = [
    {
      "decay per token": f"{decay:g}",
      "tolerance": tolerance,
      "operands": precision,
      **_planned(chunk_size, decay, tolerance, precision),
    }
    for decay in (0.0, 0.05, 0.5)
    for tolerance in (1e-4, 1e-1)
    for precision in ("float32", "bfloat16")
  ]
  report.heading("What `plan` picks")
  report.text(
    "From the gates alone, before any product: the cheapest inverse whose "
    "proved truncation and tabulated rounding stay within a tolerance on the "
    "largest row sum of the error. Where keys are forgotten quickly a short "
    "band suffices; where no product form meets the tolerance in the format "
    "asked for, the exact solve is returned, and `Plan.reason` says why."
  )
  report.table(
    "Plans",
    pd.DataFrame(rows),
    measured_on=f"no data: gates with one decay everywhere, beta up to 1, "
    f"{chunk_size} tokens a chunk; rounding from the package's table.",
    name="plans",
  )


def worst(rows: pd.DataFrame) -> pd.DataFrame:
  """Methods x formats with the number of products, the worst of the rows."""
  table = rows.pivot_table(
    index="method", columns="format", values="worst", aggfunc="max", sort=False
  )
  table = table[[form for form in FORMATS if form in table]]
  products = rows.groupby("method", sort=False).products.first()
  table.insert(0, "products", products.where(products > 0))
  return table


def add_worst(
  report: Report, rows: pd.DataFrame, measured: str, *, name: str
) -> None:
  """Adds methods x formats, the worst over the rows' groups."""
  _add(report, worst(rows), measured, name=name)


def _add(
  report: Report,
  table: pd.DataFrame,
  measured: str,
  *,
  name: str,
  caption: str = "Worst relative error",
) -> None:
  """Adds a table of errors, those that are of no use in red."""
  errors = table.select_dtypes("float").drop(
    columns="products", errors="ignore"
  )
  report.table(
    caption, table, measured_on=measured, name=name, bad=errors > FAILS
  )


def _add_by_family(
  report: Report, rows: pd.DataFrame, measured: str, form: str
) -> None:
  chosen = rows[(rows.format == form) & ~rows.method.str.contains("refine")]
  chosen = chosen[chosen.method != "exact solve"]
  if chosen.empty:
    return
  table = chosen.pivot_table(
    index="family", columns="method", values="worst", aggfunc="max", sort=False
  )[list(chosen.method.unique())]
  table = table.rename(columns={PAPER: PAPER.split(" (")[0]})
  _add(
    report,
    table.rename_axis("keys"),
    measured,
    name=f"by-family-{form}",
    caption=f"Worst relative error by family, {form}",
  )


def _add_fixed_scale(report: Report, rows: pd.DataFrame, measured: str) -> None:
  fixed = rows[rows.format.isin(list(ENVELOPE_FORMATS))].method.unique()
  table = rows[rows.method.isin(fixed)].pivot_table(
    index=["method", "beta"],
    columns="format",
    values="worst",
    aggfunc="max",
    sort=False,
  )
  names = {
    f"{form}{suffix}": f"{form} {words}"
    for form in ("INT16", "INT8")
    for suffix, words in (("", "dynamic"), (" envelope", "fixed"))
  }
  table = table[[name for name in names if name in table]].rename(columns=names)
  pairs = pd.MultiIndex.from_product([fixed, rows.beta.unique()])
  _add(
    report,
    table.reindex(pairs.set_names(["method", "beta"])),
    measured,
    name="fixed-scale",
    caption="Worst relative error, dynamic scale beside fixed scale",
  )


def _planned(
  chunk_size: int, decay: float, tolerance: float, precision: str
) -> dict:
  """Method, products, truncation and rounding of a plan."""
  plan = neumann_jax.plan(
    chunk_size,
    tolerance=tolerance,
    precision=precision,
    log_decay=jnp.full(chunk_size, -decay, jnp.float32),
  )
  spec = plan.spec
  name = spec.method + (" + refine" if spec.refine else "")
  if spec.method == "newton":
    name += f" (N={spec.order}, {spec.residual_steps} steps)"
  return {
    "method": name,
    "products": plan.products,
    "truncation": plan.truncation,
    "rounding": plan.rounding,
  }
