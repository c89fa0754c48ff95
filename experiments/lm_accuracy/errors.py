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
import pandas as pd

import neumann_jax
from experiments.harness.progress import Tick
from experiments.harness.subjects.matrix_errors import (
  MatrixErrors,
  Problem,
  errors_of,
)
from experiments.inverse_accuracy import cases
from experiments.lm_accuracy.capture import Captured
from experiments.lm_accuracy.token_rows import groups
from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.chunk_inverse.xla import count_products

CEILING = 320.0  # dB: 2^-53 is 319 dB below 1
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


class Measured(NamedTuple):
  """One method in one format on all matrices."""

  method: str  # its name
  format: str  # of the operands
  spec: InverseSpec  # of the inverse
  # matrix by matrix; the certificate is NaN for float64, whose rounding is not
  # the certificate's
  errors: MatrixErrors


def methods(chunk_size: int) -> dict[str, dict]:
  """Fields of the specs, in the order of the paper's ablation, then ours."""
  paper = resolve(InverseSpec("banded"), chunk_size)
  order, terms, block = paper.order, paper.residual_steps, paper.block
  series = {"order": order, "residual_steps": terms, "block": block}
  plain = series | {"method": "unmasked", "residual_steps": 1}
  return {
    "full series": plain | {"order": (block or chunk_size) - 1},
    f"truncated, N={order}": plain,
    f"+ residual, S={terms}": series | {"method": "unmasked"},
    "+ mask": series | {"method": "banded"},
    "masked Newton": {"method": "newton"},
    "ladder": {"method": "ladder"},
    "ladder + refine": {"method": "ladder", "refine": 1},
  }


def measure(
  matrices: Captured, formats: Sequence[str], tick: Tick
) -> Iterator[Measured]:
  """Every method in every format, formats outermost."""
  problem = Problem.of(*matrices[:3])
  for form in formats:
    for method, fields in methods(matrices.a.shape[-1]).items():
      tick(f"errors: {method}, {form}")
      spec = InverseSpec(**fields, **FORMATS[form])
      if form == "float64":
        x = _in_float64(matrices.a, spec)
        bound = np.full(x.shape, np.nan)
        found = errors_of(x, problem.truth, bound)
      else:
        found = problem.errors(spec, "auto")
      yield Measured(method, form, spec, found)


def summary(found: Measured, matrices: Captured) -> pd.DataFrame:
  """Rows of the table "errors", one for each group that is not empty.

  How many matrices, and how many of them overflowed; the mean signal-to-noise
  ratio of the others (NaN for none) and the worst of all (-inf where one
  overflowed); the largest row sums of |T - X| and of its certificate, entries
  beyond it.
  """
  frame = _frame(found, matrices)
  decibels = frame.decibels.where(np.isfinite(frame.decibels))
  return (
    frame.assign(finite=decibels, overflowed=decibels.isna())
    .groupby(
      ["group", "chunk_size", "method", "format", "products"], sort=False
    )
    .agg(
      matrices=("error", "size"),
      overflowed=("overflowed", "sum"),
      mean_db=("finite", "mean"),
      worst_db=("decibels", "min"),
      row_sum=("row_sum", "max"),
      certified=("certified", "max"),
      violations=("violations", "sum"),
    )
    .reset_index()
  )


def points(found: Measured, matrices: Captured) -> pd.DataFrame:
  """The first `POINTS` matrices of each group: error and certificate."""
  columns = ["group", "method", "format", "row_sum", "certified"]
  frame = _frame(found, matrices)
  return frame.groupby("group", sort=False).head(POINTS)[columns]


def to_decibels(error: np.ndarray) -> np.ndarray:
  """Relative errors as signal-to-noise ratios; -inf for an infinite one."""
  with np.errstate(divide="ignore"):
    return np.minimum(-20 * np.log10(error), CEILING)


def _frame(found: Measured, matrices: Captured) -> pd.DataFrame:
  """A row a matrix, the groups one after another."""
  size = matrices.a.shape[-1]
  every = pd.DataFrame(found.errors._asdict()).assign(
    chunk_size=size,
    method=found.method,
    format=found.format,
    products=count_products(found.spec, size),
    decibels=to_decibels(found.errors.error),
  )
  named = groups(tuple(matrices.kind))
  return pd.concat([every[where].assign(group=g) for g, where in named])


def _in_float64(a: np.ndarray, spec: InverseSpec) -> np.ndarray:
  with jax.enable_x64(True):
    run = jax.jit(lambda a: neumann_jax.inverse(a, spec))
    return np.asarray(run(jnp.asarray(a, jnp.float64)))
