"""Accuracy tables of README and of the report (words: `accuracy_tables.md`)."""

import itertools
import pathlib
import platform
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

import neumann_jax
from experiments.harness import record
from experiments.harness.reporting import page
from experiments.harness.reporting.report import Report
from experiments.inverse_accuracy.cases import ENVELOPE_FORMATS, FORMATS, PAPER
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.inverse_accuracy.text_matrices import Difficulty

FAILS = 0.1  # a relative error above this is shown as a failure
MILD, WIDE = "0.6 to 1", "0 to 2"
FAMILY_FORMATS = ("float32", "bfloat16")
PAPER_NAMES = {
  32: "banded N4 S3",
  64: "banded N3 S8",
  128: "two banded N3 S8, merged",
}


def add_tables(
  report: Report,
  run: record.Run,  # with the tables of the study
  every: pd.DataFrame,  # all rows but the paper's other chunk sizes
  difficulty: Difficulty,  # of the model's matrices
  settings: InverseSettings,
) -> None:
  """Adds what the study found."""
  names = ("families", "model", "paper_settings")
  rows, model, paper = map(run.frame, names)
  mild, wide = rows[rows.beta == MILD], rows[rows.beta == WIDE]
  count, first = settings.draws, model.iloc[0]
  points = bounded(every)
  drawn = (
    f"{count} synthetic chunks of 64 keys (width 128, float64, rounded once to "
    "float32) for each of 8 key families and 3 decays; truth: float64 inverse."
  )
  read = (
    f"{difficulty.matrices} matrices: the first bytes of "
    f"{', '.join(difficulty.modules)} of Python {platform.python_version()}, "
    f"all linear layers and value heads, chunks of {first.chunk_size}."
  )
  again = (
    f"the same 8 families and 3 decays, {count} chunks each, beta in [0.6, 1]."
  )

  page.add(
    report,
    pathlib.Path(__file__).with_suffix(".md"),
    heat=heat(mild),
    mild=_table(worst(mild), "families", drawn),
    by_family=[_by_family(mild, form, drawn) for form in FAMILY_FORMATS],
    wide=_table(worst(wide), "families-beta-2", drawn),
    fixed_scale=_table(
      _fixed_scale(rows),
      "fixed-scale",
      drawn,
      "Worst relative error, dynamic scale beside fixed scale",
    ),
    fed=first,
    difficulty=difficulty,
    model=_table(worst(model), "model", read),
    paper_settings=_table(
      _paper_settings(paper),
      "paper-settings",
      again,
      "Worst relative error, the paper's (N, S) beside the ladder",
    ),
    settings=settings,
    points=len(points),
    violations=every.violations.sum(),
    certificate=certificate(points),
    plans=_plans(settings.chunk_size),
  )


def worst(rows: pd.DataFrame) -> pd.DataFrame:
  """Methods x formats with the number of products, the worst of the rows."""
  table = _worst(rows, "method", "format")
  table = table[[form for form in FORMATS if form in table]]
  products = rows.groupby("method", sort=False).products.first()
  table.insert(0, "products", products.where(products > 0))
  return table


def _worst(rows: pd.DataFrame, index: Any, columns: str) -> pd.DataFrame:
  return rows.pivot_table(
    index=index, columns=columns, values="worst", aggfunc="max", sort=False
  )


def _table(
  table: pd.DataFrame,
  name: str,
  measured: str,
  caption: str = "Worst relative error",
) -> page.Part:
  """A table of errors, those that are of no use in red."""
  errors = table.select_dtypes("float")
  bad = errors.drop(columns="products", errors="ignore") > FAILS
  return page.table(caption, table, measured_on=measured, name=name, bad=bad)


def heat(rows: pd.DataFrame) -> Any:
  """Worst errors, method by family, a panel for every format."""
  import matplotlib.pyplot as plt

  forms = [form for form in FORMATS if form in set(rows.format)]
  # The solve is there in one format only.
  rows = rows[rows.method != "exact solve"]
  methods, families = rows.method.unique(), rows.family.unique()
  figure, panels = plt.subplots(
    *(1, len(forms)),
    figsize=(2.4 + 1.7 * len(forms), 0.8 + 0.26 * len(methods)),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for axes, form in zip(panels[0], forms):
    errors = _worst(rows[rows.format == form], "method", "family")
    errors = errors.reindex(index=methods, columns=families)
    shown = axes.imshow(
      np.log10(errors.clip(1e-7, 1)), cmap="inferno", vmin=-7, vmax=0
    )
    axes.set_title(form, fontsize=9)
    names = [family.replace("_", " ") for family in families]
    axes.set_xticks(range(len(families)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(methods)), methods, fontsize=7)
  bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.01)
  bar.set_ticks([-6, -4, -2, 0], labels=["1e-6", "1e-4", "0.01", "1 or more"])
  bar.ax.tick_params(labelsize=7)
  return figure


def _by_family(
  rows: pd.DataFrame, form: str, measured: str
) -> page.Part | None:
  """Families x methods without refinement in a format, None without any."""
  rows = rows[rows.format == form]
  rows = rows[~rows.method.str.contains("refine|exact solve")]
  if rows.empty:
    return None
  table = _worst(rows, "family", "method")[list(rows.method.unique())]
  table = table.rename(columns={PAPER: PAPER.split(" (")[0]})
  caption = f"Worst relative error by family, {form}"
  return _table(
    table.rename_axis("keys"), f"by-family-{form}", measured, caption
  )


def _fixed_scale(rows: pd.DataFrame) -> pd.DataFrame:
  """Both kinds of scale, by method and range of beta."""
  fixed = rows[rows.format.isin(list(ENVELOPE_FORMATS))].method.unique()
  chosen = rows[rows.method.isin(fixed)]
  table = _worst(chosen, ["method", "beta"], "format")
  names = {
    f"{form}{suffix}": f"{form} {words}"
    for form in ("INT16", "INT8")
    for suffix, words in (("", "dynamic"), (" envelope", "fixed"))
  }
  table = table[[name for name in names if name in table]].rename(columns=names)
  pairs = pd.MultiIndex.from_product([fixed, rows.beta.unique()])
  return table.reindex(pairs.set_names(["method", "beta"]))


def _paper_settings(rows: pd.DataFrame) -> pd.DataFrame:
  """The paper's three settings beside the ladder, by chunk length."""
  found = {
    size: worst(own).rename({"banded": PAPER_NAMES[size]})
    for size, own in rows.groupby("chunk_size", sort=False)
  }
  return pd.concat(found, names=["chunk"]).reset_index("method")


def bounded(rows: pd.DataFrame) -> pd.DataFrame:
  """The rows that have an error and a bound on it."""
  return rows[np.isfinite(rows.entry) & np.isfinite(rows.certified)]


def certificate(points: pd.DataFrame) -> Any:
  """Certified bounds against true errors."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(6.4, 4.6))
  for form, chosen in points.groupby("format", sort=False):
    axes.loglog(chosen.entry, chosen.certified, ".", label=form, markersize=4)
  ends = np.array([1e-8, points.certified.max()])
  axes.plot(ends, ends, color="black", linewidth=1, label="bound = error")
  axes.set_xlabel("true error, largest entry of a group")
  axes.set_ylabel("certified bound, largest entry")
  axes.legend(fontsize=8)
  return figure


def _plans(chunk_size: int) -> page.Part:
  """What `neumann_jax.plan` picks for a few needs."""
  needs = (0.0, 0.05, 0.5), (1e-4, 1e-1), FAMILY_FORMATS
  rows = [_planned(chunk_size, *need) for need in itertools.product(*needs)]
  return page.table(
    "Plans",
    pd.DataFrame(rows),
    measured_on="no data: gates with one decay everywhere, beta up to 1, "
    f"{chunk_size} tokens a chunk; rounding from the package's table.",
    name="plans",
  )


def _planned(
  chunk_size: int, decay: float, tolerance: float, precision: Any
) -> dict[str, Any]:
  """What is needed, and the plan for it."""
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
    "decay per token": f"{decay:g}",
    "tolerance": tolerance,
    "operands": precision,
    "method": name,
    "products": plan.products,
    "truncation": plan.truncation,
    "rounding": plan.rounding,
  }
