"""What `plan` takes for every head of a model, and whether it keeps its word.

A head's gates decide how far its chunks remember, and with it how many
products suffice. The measured error is the worst over all of its captured
matrices.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

import neumann_jax
from experiments.harness.subjects.matrix_errors import MatrixErrors, Problem
from experiments.lm_accuracy.capture import Captured
from experiments.lm_accuracy.errors import FORMATS
from neumann_jax import InverseSpec, Plan
from neumann_jax.chunk_inverse.planner import rounding_bound
from neumann_jax.chunk_inverse.spec_names import without_format
from neumann_jax.chunk_inverse.xla import count_products


def measure(
  layer: Captured,  # all captured matrices of a layer
  *,
  tolerances: Sequence[float],  # of `plan`: the largest row sum of |T - X|
  formats: Sequence[str],  # names of `FORMATS`
) -> Iterator[dict[str, Any]]:
  """Plans for every head of a layer, and measures what they give.

  A row for each format, tolerance and head has the planned method ("exact"
  where no product form suffices) and its products (0 for "exact"); products of
  the ladder, refined if need be, at this tolerance (0 where even the refined
  one does not promise it); what is promised, truncation and rounding together;
  the largest row sums of |T - X| and of its certificate.
  """
  size = layer.a.shape[-1]
  problem = Problem.of(*layer[:3])
  known: dict[InverseSpec, MatrixErrors] = {}
  heads = {head: layer.head == head for head in np.unique(layer.head)}
  for form in formats:
    for tolerance in tolerances:
      ladder = _ladder_products(size, tolerance, FORMATS[form])
      for head, own in heads.items():
        plan = _plan(layer.take(own), tolerance, FORMATS[form])
        if plan.spec not in known:
          known[plan.spec] = problem.errors(plan.spec, "auto")
        worst = known[plan.spec].worst(own)
        yield {
          "chunk_size": size,
          "layer": int(layer.layer[0]),
          "head": int(head),
          "format": form,
          "tolerance": tolerance,
          "matrices": int(own.sum()),
          "planned": without_format(plan.spec),
          "products": plan.products,
          "ladder": ladder,
          "promised": plan.truncation + plan.rounding,
          "row_sum": worst["row_sum"],
          "certified": worst["certified"],
        }


def _plan(own: Captured, tolerance: float, arithmetic: Mapping) -> Plan:
  return neumann_jax.plan(
    own.a.shape[-1],
    tolerance=tolerance,
    beta_max=float(own.beta.max()),
    log_decay=jnp.asarray(own.log_decay),
    **arithmetic,
  )


def _ladder_products(size: int, tolerance: float, arithmetic: Mapping) -> int:
  """Products of the ladder that promises the tolerance for any beta <= 1."""
  for refine in (0, 1):
    spec = InverseSpec("ladder", refine=refine, **arithmetic)
    bound = rounding_bound(spec, size, 1.0)
    if bound is not None and bound <= tolerance:
      return count_products(spec, size)
  return 0


def summary(rows: pd.DataFrame) -> pd.DataFrame:
  """A row for each chunk size, format and tolerance, over all heads."""
  keys = ["chunk_size", "format", "tolerance"]
  found = []
  for key, own in rows.groupby(keys, sort=False):
    both = _both_promise(own)
    spent, ladder = both["products"].sum(), both["ladder"].sum()
    picks = Counter(own["planned"]).most_common(3)
    found.append(
      {
        **dict(zip(("chunk", "format", "tolerance"), key)),
        "heads": len(own),
        "matrices": own["matrices"].sum(),
        "picked most (heads)": ", ".join(f"{name} ({n})" for name, n in picks),
        "heads that save": (both["products"] < both["ladder"]).sum(),
        "products saved, %": 100 * (1 - spent / ladder) if ladder else math.nan,
        "left to the solve": (own["products"] == 0).sum(),
        "worst measured / tolerance": worst_share(own),
      }
    )
  return pd.DataFrame(found)


def saving_words(rows: pd.DataFrame) -> str:
  """One sentence on what plans save."""
  both = _both_promise(rows)
  saving = (both["products"] < both["ladder"]).sum()
  if not saving:
    return "No plan saves a product against the ladder on this model."
  return (
    f"Plans save products against the ladder in {saving} of {len(both)} cases "
    "of head, format, tolerance and chunk size where both promise the "
    "tolerance."
  )


def worst_share(rows: pd.DataFrame) -> float:
  """Largest measured row sum over its tolerance; NaN without plans."""
  return float((rows["row_sum"] / rows["tolerance"]).max())


def _both_promise(rows: pd.DataFrame) -> pd.DataFrame:
  """Where a product form and the ladder both promise the tolerance."""
  return rows[(rows["products"] > 0) & (rows["ladder"] > 0)]
