"""The report's pages on the chunk inverse, from the rows of inverse_study."""

import platform
from collections.abc import Sequence

from experiments.harness.report import Cell, Report
from experiments.inverse_accuracy.cases import (
  ENVELOPE_FORMATS,
  FORMATS,
  METHODS,
  PAPER_FORMATS,
)
from experiments.inverse_accuracy.errors import Row
from experiments.inverse_accuracy.text_matrices import Difficulty

FAILS = 0.1  # a relative error above this is shown as a failure
MILD, WIDE = "0.6 to 1", "0 to 2"


def add_families(report: Report, rows: Sequence[Row], count: int) -> None:
  """Adds the study of named key families.

  Args:
    report: takes the tables and pictures.
    rows: every case on the groups of `inverse_study.family_groups`.
    count: chunks per family and decay.
  """
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
  mild = [row for row in rows if row.beta == MILD]
  worst_table(report, mild, measured, name="families")
  report.heading("Where they break")
  _by_family(report, mild, measured, form="float32")
  _by_family(report, mild, measured, form="bfloat16")
  report.heading("Beta up to 2")
  report.text(
    "Negative eigenvalues (beta beyond 1) are where powers of A overflow. The "
    "ladder and the masked Newton iteration never form one."
  )
  wide = [row for row in rows if row.beta == WIDE]
  worst_table(report, wide, measured, name="families-beta-2")
  report.heading("Integers with one scale fixed by the gates")
  report.text(
    "The envelope bounds every operand in advance, so the scale needs no data: "
    "the largest beta over the largest code. Cheaper than scaling "
    "by row and column, and a bit or two worse; one refinement makes "
    "up for it."
  )
  _fixed_scale(report, rows, measured)


def add_model(
  report: Report, rows: Sequence[Row], difficulty: Difficulty
) -> None:
  """Adds the matrices of the shipped model that reads held-out text.

  Args:
    report: takes the table.
    rows: every case on the model's group.
    difficulty: how hard its matrices are.
  """
  report.heading("A trained Gated DeltaNet model that reads text")
  report.text(
    "The byte model that ships with the package, on modules of the Python "
    "standard library that it was not trained on: "
    f"{rows[0].decay} log decay a token, negated, half of them above "
    f"{difficulty.decay:.2g}; beta {rows[0].beta}. Pairs of keys in a chunk "
    f"have a mean |cosine| of {difficulty.cosine:.2f} and rows of |A| sum up "
    f"to {difficulty.row_sum:.1f}."
  )
  worst_table(
    report,
    rows,
    f"{difficulty.matrices} matrices: the first bytes of "
    f"{', '.join(difficulty.modules)} of Python {platform.python_version()}, "
    "all linear layers and value heads, chunks of "
    f"{rows[0].chunk_size}.",
    name="model",
  )


def worst_table(
  report: Report, rows: Sequence[Row], measured: str, *, name: str
) -> None:
  """Adds methods x formats, the worst over the rows' groups."""
  table = []
  for method in dict.fromkeys(row.method for row in rows):
    cells = [_worst(rows, method=method, format=form) for form in FORMATS]
    products = next(r.products for r in rows if r.method == method)
    table.append([method, products or None, *cells])
  report.table(
    "Worst relative error",
    ["method", "products", *FORMATS],
    table,
    measured_on=measured,
    name=name,
  )


def add_paper_settings(report: Report, rows: Sequence[Row], count: int) -> None:
  """Adds the paper's three settings beside the ladder.

  Args:
    report: takes the table.
    rows: `inverse_cases.paper_cases` at several chunk sizes.
    count: chunks per family and decay.
  """
  names = {
    32: "banded N4 S3",
    64: "banded N3 S8",
    128: "two banded N3 S8, merged",
  }
  table = []
  for size in dict.fromkeys(row.chunk_size for row in rows):
    for method in ("banded", "ladder"):
      chosen = [r for r in rows if (r.chunk_size, r.method) == (size, method)]
      cells = [_worst(chosen, format=f) for f in PAPER_FORMATS]
      name = names[size] if method == "banded" else method
      table.append([size, name, chosen[0].products, *cells])
  report.heading("The paper's settings by chunk length")
  report.table(
    "Worst relative error, the paper's (N, S) beside the ladder",
    ["chunk", "method", "products", *PAPER_FORMATS],
    table,
    measured_on=f"the same 8 families and 3 decays, {count} chunks each, beta "
    "in [0.6, 1].",
    name="paper-settings",
  )


def _by_family(
  report: Report, rows: Sequence[Row], measured: str, *, form: str
) -> None:
  families = list(dict.fromkeys(row.family for row in rows))
  methods = [m for m in METHODS if "refine" not in m]
  table = [
    [family]
    + [_worst(rows, family=family, method=m, format=form) for m in methods]
    for family in families
  ]
  report.table(
    f"Worst relative error by family, {form}",
    ["keys", *(method.replace(" (paper, C=64)", "") for method in methods)],
    table,
    measured_on=measured,
    name=f"by-family-{form}",
  )


def _fixed_scale(report: Report, rows: Sequence[Row], measured: str) -> None:
  table = []
  for method in dict.fromkeys(
    row.method for row in rows if row.format in ENVELOPE_FORMATS
  ):
    for beta in (MILD, WIDE):
      cells = [
        _worst(rows, method=method, format=form, beta=beta)
        for form in ("INT16", "INT16 envelope", "INT8", "INT8 envelope")
      ]
      table.append([method, beta, *cells])
  report.table(
    "Worst relative error, dynamic scale beside fixed scale",
    [
      "method",
      "beta",
      "INT16 dynamic",
      "INT16 fixed",
      "INT8 dynamic",
      "INT8 fixed",
    ],
    table,
    measured_on=measured,
    name="fixed-scale",
  )


def _worst(rows: Sequence[Row], **fields: str) -> Cell | None:
  """The largest error of the rows with these fields; None without any."""
  errors = [
    row.worst
    for row in rows
    if all(getattr(row, name) == value for name, value in fields.items())
  ]
  if not errors:
    return None
  return Cell(max(errors), bad=not max(errors) <= FAILS)
