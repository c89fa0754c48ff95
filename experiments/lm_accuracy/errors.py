"""How wrong each inverse of a model's own chunk matrices is, in decibels.

The signal-to-noise ratio of an approximation X is 20 log10(|T| / |T - X|) in
Frobenius norms of the strictly lower parts, T the float64 inverse of the same
float32 matrix. It is capped at `CEILING`, where float64 itself ends.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from experiments.evaluate_lm import inverse_errors
from experiments.evaluate_lm.inverse_errors import Judged
from experiments.harness.progress import Tick
from experiments.inverse_accuracy import cases
from experiments.lm_accuracy.capture import Captured
from experiments.lm_accuracy.text import NATURAL
from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.chunk_inverse.xla import count_products

ADVERSARIAL = "adversarial text"
GROUPS = (NATURAL, ADVERSARIAL)
CEILING = 320.0  # dB
FORMATS: dict[str, dict] = {
  "float64": {},
  **cases.FORMATS,
  "INT4": {"quant": QuantSpec(bits=4, scale="dynamic")},
}
# What is drawn matrix by matrix, error against certificate.
SCATTERED = (
  ("ladder", "bfloat16"),
  ("ladder", "INT8"),
  ("ladder + refine", "INT8"),
  ("+ mask", "float16"),
)
POINTS = 150  # of each of these and group


class Row(NamedTuple):
  """One method in one format on the matrices of one group.

  Attributes:
    group: one of `GROUPS`.
    chunk_size: C.
    method: name of the method.
    format: name of the operands' format.
    products: C x C products it takes.
    matrices: how many.
    overflowed: those with an entry that is not finite.
    mean_db: mean signal-to-noise ratio of the others; NaN for none.
    worst_db: the smallest of all; -inf where one overflowed.
    row_sum: largest row sum of |T - X|.
    certified: largest row sum of the certificate; NaN for float64, whose
      rounding is not the certificate's.
    violations: entries whose error exceeds their certificate.
  """

  group: str
  chunk_size: int
  method: str
  format: str
  products: int
  matrices: int
  overflowed: int
  mean_db: float
  worst_db: float
  row_sum: float
  certified: float
  violations: int


class Point(NamedTuple):
  """One method in one format on one matrix; fields as of `Row`."""

  group: str
  method: str
  format: str
  row_sum: float
  certified: float


class Found(NamedTuple):
  """One method in one format on all matrices.

  Attributes:
    method: its name.
    format: of the operands.
    spec: of the inverse.
    judged: matrix by matrix.
  """

  method: str
  format: str
  spec: InverseSpec
  judged: Judged


def methods(chunk_size: int) -> dict[str, dict]:
  """Fields of the specs, in the order of the paper's ablation, then ours."""
  paper = resolve(InverseSpec("banded"), chunk_size)
  order, terms, block = paper.order, paper.residual_steps, paper.block
  full = (block or chunk_size) - 1
  start = {"order": order, "block": block}
  series = start | {"residual_steps": terms}
  return {
    "full series": {
      "method": "unmasked",
      "order": full,
      "residual_steps": 1,
      "block": block,
    },
    f"truncated, N={order}": start
    | {"method": "unmasked", "residual_steps": 1},
    f"+ residual, S={terms}": series | {"method": "unmasked"},
    "+ mask": series | {"method": "banded"},
    "masked Newton": {"method": "newton"},
    "ladder": {"method": "ladder"},
    "ladder + refine": {"method": "ladder", "refine": 1},
  }


def measure(
  matrices: Captured, formats: Sequence[str], tick: Tick
) -> Iterator[Found]:
  """Every method in every format.

  Args:
    matrices: of one chunk size.
    formats: names of `FORMATS`.
    tick: called before each.
  """
  a = jnp.asarray(matrices.a)
  size = a.shape[-1]
  envelope = neumann_jax.envelope(
    jnp.asarray(matrices.beta), jnp.asarray(matrices.log_decay)
  )
  truth = key_families.exact_inverse(matrices.a)
  for form in formats:
    for method, fields in methods(size).items():
      tick(f"errors: {method}, {form}")
      spec = InverseSpec(**fields, **FORMATS[form])
      if form == "float64":
        x = _in_float64(matrices.a, spec)
        bound = np.full(x.shape, np.nan)
      else:
        x, bound = map(
          np.asarray, inverse_errors.approximate(a, envelope, spec, "auto")
        )
      yield Found(method, form, spec, inverse_errors.judged(x, truth, bound))


def rows(found: Found, matrices: Captured) -> Iterator[Row]:
  """A row for each group that has matrices."""
  size = matrices.a.shape[-1]
  for group, where in _groups(matrices):
    error, row_sum, certified, violations = (x[where] for x in found.judged)
    decibels = to_decibels(error)
    finite = np.isfinite(decibels)
    yield Row(
      group,
      size,
      found.method,
      found.format,
      count_products(found.spec, size),
      len(error),
      overflowed=int((~finite).sum()),
      mean_db=float(decibels[finite].mean()) if finite.any() else np.nan,
      worst_db=float(decibels.min()),
      row_sum=float(row_sum.max()),
      certified=float(certified.max()),
      violations=int(violations.sum()),
    )


def points(found: Found, matrices: Captured) -> Iterator[Point]:
  """The first `POINTS` matrices of each group."""
  for group, where in _groups(matrices):
    at = np.flatnonzero(where)[:POINTS]
    for row_sum, certified in zip(
      found.judged.row_sum[at], found.judged.certified[at]
    ):
      yield Point(
        group, found.method, found.format, float(row_sum), float(certified)
      )


def to_decibels(error: np.ndarray) -> np.ndarray:
  """Relative errors as signal-to-noise ratios; -inf for an infinite one."""
  with np.errstate(divide="ignore"):
    return np.minimum(-20 * np.log10(error), CEILING)


def _groups(matrices: Captured) -> Iterator[tuple[str, np.ndarray]]:
  natural = matrices.kind == NATURAL
  for group, where in zip(GROUPS, (natural, ~natural)):
    if where.any():
      yield group, where


def _in_float64(a: np.ndarray, spec: InverseSpec) -> np.ndarray:
  with jax.enable_x64(True):
    run = jax.jit(lambda a: neumann_jax.inverse(a, spec))
    return np.asarray(run(jnp.asarray(a, jnp.float64)))
