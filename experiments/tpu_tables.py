"""Rows of the TPU schedules, their ratios, and the table printed last."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report import short
from experiments.tpu_kernels import SUBSTITUTIONS, TOKAMAX


class Row(NamedTuple):
  """One compile.

  Attributes:
    kind: of TPU.
    kernel: its name.
    block: matrices a grid step; None where there is no schedule.
    bundles: see `tpu_schedule.Schedule`.
    per_matrix: bundles over matrices.
    written: see Schedule.
    trips: see Schedule.
    vector: see Schedule.
    matrix: see Schedule.
    seconds: that the compile and reading its dump took.
    libtpu: its version.
    reason: why there is no schedule, else None.
  """

  kind: str
  kernel: str
  block: int | None
  bundles: int | None
  per_matrix: float | None
  written: int | None
  trips: int | None
  vector: float | None
  matrix: float | None
  seconds: float | None
  libtpu: str
  reason: str | None


class Errors(NamedTuple):
  """Worst relative Frobenius errors of the strictly lower part.

  Attributes:
    error_beta_1: over every family, beta up to 1.
    error_beta_2: likewise up to 2.
  """

  error_beta_1: float
  error_beta_2: float


class Ratio(NamedTuple):
  """A schedule beside those of its rivals at the same block.

  Attributes:
    kind: of TPU.
    kernel: its name.
    block: matrices a grid step.
    per_matrix: bundles for one of them.
    to_tokamax: over tokamax's; None where that has no schedule.
    to_substitution: over the better of the two substitutions'.
    vector: mean use of the vector ALU's slots.
    matrix: of the matrix unit's.
    error_beta_1: see Errors.
    error_beta_2: see Errors.
  """

  kind: str
  kernel: str
  block: int
  per_matrix: float
  to_tokamax: float | None
  to_substitution: float | None
  vector: float | None
  matrix: float | None
  error_beta_1: float
  error_beta_2: float


def row(said: Mapping[str, Any], libtpu: str) -> Row:
  """The row of what the compiling process said after a compile."""
  bundles, block = said.get("bundles"), said.get("block")
  return Row(
    kind=said["kind"],
    kernel=said["kernel"],
    block=said.get("batch") if block is None else block,
    bundles=bundles,
    per_matrix=None if bundles is None else bundles / said["block"],
    written=said.get("written"),
    trips=said.get("trips"),
    vector=said.get("vector"),
    matrix=said.get("matrix"),
    seconds=said.get("seconds"),
    libtpu=libtpu,
    reason=said.get("reason"),
  )


def ratios(rows: Sequence[Row], errors: Mapping[str, Errors]) -> list[Ratio]:
  """Every schedule there is, beside its rivals, kinds in the order of rows."""
  found = []
  for kind in dict.fromkeys(row.kind for row in rows):
    own = [row for row in rows if row.kind == kind]
    for row in own:
      if row.per_matrix is None or row.block is None:
        continue
      best = {
        name: least(own, names, row.block)
        for name, names in (("tokamax", (TOKAMAX,)), ("rows", SUBSTITUTIONS))
      }
      found.append(
        Ratio(
          kind,
          row.kernel,
          row.block,
          row.per_matrix,
          _over(row.per_matrix, best["tokamax"]),
          _over(row.per_matrix, best["rows"]),
          row.vector,
          row.matrix,
          *errors[row.kernel],
        )
      )
  return found


def least(
  rows: Sequence[Row], kernels: Sequence[str], block: int
) -> float | None:
  """The fewest bundles a matrix that any of the kernels takes at a block."""
  return min(
    (
      row.per_matrix
      for row in rows
      if row.kernel in kernels
      and row.block == block
      and row.per_matrix is not None
    ),
    default=None,
  )


def closing(
  found: Sequence[Ratio], rows: Sequence[Row], versions: Mapping[str, Any]
) -> str:
  """The table that a run prints last."""
  heads = "kind,kernel,block,bundles/matrix,x tokamax,x substitution"
  heads += ",vector,matrix,error b<=1,error b<=2"
  lines = [heads.split(",")]
  lines += [
    [
      one.kind,
      one.kernel,
      str(one.block),
      f"{one.per_matrix:.1f}",
      *(_or_dash(x, ".2f") for x in (one.to_tokamax, one.to_substitution)),
      *(_or_dash(x, ".0%") for x in (one.vector, one.matrix)),
      short(one.error_beta_1),
      short(one.error_beta_2),
    ]
    for one in found
  ]
  widths = [max(map(len, column)) for column in zip(*lines)]
  text = [
    "  ".join(
      entry.ljust(width) if i < 2 else entry.rjust(width)
      for i, (entry, width) in enumerate(zip(line, widths))
    ).rstrip()
    for line in lines
  ]
  text += [
    f"{row.kind}, {row.kernel}, {row.block or 'any'}: {row.reason}"
    for row in rows
    if row.reason is not None
  ]
  kinds = list(dict.fromkeys(row.kind for row in rows))
  return "\n".join([*text, provenance(kinds, versions) + "."])


def provenance(kinds: Sequence[str], versions: Mapping[str, Any]) -> str:
  """What every figure of a schedule says of itself, without a full stop."""
  return (
    f"compiled for {', '.join(kinds)} by libtpu {versions['libtpu']}, never "
    "run on it; static schedule without stalls or DMA"
  )


def _over(value: float, other: float | None) -> float | None:
  return None if other is None else value / other


def _or_dash(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)
