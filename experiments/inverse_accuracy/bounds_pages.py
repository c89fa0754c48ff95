"""The report's pages on what is known without the exact inverse."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.harness.report import Report
from experiments.inverse_accuracy.errors import Row


def add_certificate(report: Report, rows: Sequence[Row]) -> None:
  """Adds the plot of certified bounds against true errors."""
  import matplotlib.pyplot as plt

  points = [
    (row.entry, row.certified, row.format)
    for row in rows
    if np.isfinite(row.entry) and np.isfinite(row.certified)
  ]
  figure, axes = plt.subplots(figsize=(6.4, 4.6))
  for form in dict.fromkeys(form for _, _, form in points):
    chosen = [point[:2] for point in points if point[2] == form]
    axes.loglog(*np.array(chosen).T, ".", label=form, markersize=4)
  ends = np.array([1e-8, max(bound for _, bound, _ in points)])
  axes.plot(ends, ends, color="black", linewidth=1, label="bound = error")
  axes.set_xlabel("true error, largest entry of a group")
  axes.set_ylabel("certified bound, largest entry")
  axes.legend(fontsize=8)
  broken = sum(row.violations for row in rows)
  report.heading("The certificate")
  report.text(
    "`neumann_jax.certify` bounds the error of every entry from the gates and "
    "one residual, without knowing the true inverse."
  )
  report.figure(
    figure,
    f"Certified bound against true error for {len(points)} pairs of case and "
    "group (those that overflowed are left out: their bound is infinite). "
    f"Entries whose error exceeded their bound: {broken}.",
  )


def add_plans(report: Report, chunk_size: int) -> None:
  """Adds what `neumann_jax.plan` picks for a few needs."""
  table = []
  for decay in (0.0, 0.05, 0.5):
    gates = jnp.full(chunk_size, -decay, jnp.float32)
    for tolerance in (1e-4, 1e-1):
      for precision in ("float32", "bfloat16"):
        plan = neumann_jax.plan(
          chunk_size,
          tolerance=tolerance,
          precision=precision,
          log_decay=gates,
        )
        steps = plan.spec.residual_steps
        name = plan.spec.method + (" + refine" if plan.spec.refine else "")
        if plan.spec.method == "newton":
          name += f" (N={plan.spec.order}, {steps} steps)"
        table.append([f"{decay:g}", tolerance, precision, name, *plan[1:4]])
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
    [
      "decay a token",
      "tolerance",
      "operands",
      "method",
      "products",
      "truncation",
      "rounding",
    ],
    table,
    measured_on=f"no data: gates with one decay everywhere, beta up to 1, "
    f"{chunk_size} tokens a chunk; rounding from the package's table.",
    name="plans",
  )
