"""What `plan` takes for every head of a model, and whether it keeps its word.

A head's gates decide how far its chunks remember, and with it how many
products suffice. The measured error is the worst over all of its captured
matrices.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from experiments.evaluate_lm import inverse_errors
from experiments.lm_accuracy.capture import Captured
from experiments.lm_accuracy.errors import FORMATS
from neumann_jax import InverseSpec, Plan
from neumann_jax.chunk_inverse.planner import rounding_bound
from neumann_jax.chunk_inverse.spec_names import without_format
from neumann_jax.chunk_inverse.xla import count_products


class Row(NamedTuple):
  """The plan of one head at one tolerance in one format.

  Attributes:
    chunk_size: C.
    layer: number among the Gated DeltaNet layers.
    head: value head.
    format: of the operands.
    tolerance: largest allowed row sum of |T - X|.
    matrices: how many the head has.
    planned: the method, "exact" where no product form suffices.
    products: C x C products of the plan; 0 for "exact".
    ladder: products of the ladder, refined if need be, at this tolerance; 0
      where even the refined one does not promise it.
    promised: truncation and rounding together.
    row_sum: largest row sum of |T - X| over the head's matrices.
    certified: largest row sum of their certificates.
  """

  chunk_size: int
  layer: int
  head: int
  format: str
  tolerance: float
  matrices: int
  planned: str
  products: int
  ladder: int
  promised: float
  row_sum: float
  certified: float


def measure(
  layer: Captured, *, tolerances: Sequence[float], formats: Sequence[str]
) -> Iterator[Row]:
  """Plans for every head of a layer, and measures what they give.

  Args:
    layer: all captured matrices of a layer.
    tolerances: of `plan`.
    formats: names of `FORMATS`.

  Yields:
    One row a format, tolerance and head.
  """
  size = layer.a.shape[-1]
  truth = key_families.exact_inverse(layer.a)
  a = jnp.asarray(layer.a)
  envelope = neumann_jax.envelope(
    jnp.asarray(layer.beta), jnp.asarray(layer.log_decay)
  )
  known: dict[InverseSpec, inverse_errors.Judged] = {}
  heads = {head: layer.head == head for head in np.unique(layer.head)}
  for form in formats:
    for tolerance in tolerances:
      for head, own in heads.items():
        plan = _plan(layer, own, tolerance, FORMATS[form])
        if plan.spec not in known:
          x, bound = inverse_errors.approximate(a, envelope, plan.spec, "auto")
          known[plan.spec] = inverse_errors.judged(
            np.asarray(x), truth, np.asarray(bound)
          )
        judged = known[plan.spec]
        yield Row(
          size,
          int(layer.layer[0]),
          int(head),
          form,
          tolerance,
          int(own.sum()),
          without_format(plan.spec),
          plan.products,
          _ladder(size, tolerance, FORMATS[form]),
          plan.truncation + plan.rounding,
          float(judged.row_sum[own].max()),
          float(judged.certified[own].max()),
        )


def _plan(
  layer: Captured, own: np.ndarray, tolerance: float, arithmetic: Mapping
) -> Plan:
  return neumann_jax.plan(
    layer.a.shape[-1],
    tolerance=tolerance,
    beta_max=float(layer.beta[own].max()),
    log_decay=jnp.asarray(layer.log_decay[own]),
    **arithmetic,
  )


def _ladder(size: int, tolerance: float, arithmetic: Mapping) -> int:
  """Products of the ladder that promises the tolerance for any beta <= 1."""
  for refine in (0, 1):
    spec = InverseSpec("ladder", refine=refine, **arithmetic)
    bound = rounding_bound(spec, size, 1.0)
    if bound is not None and bound <= tolerance:
      return count_products(spec, size)
  return 0
