"""The tables that the speed study prints last."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.harness.report import short
from experiments.inverse_speed.inverse_part import InverseRow, device_name
from experiments.inverse_speed.overflow_part import SweepRow
from experiments.inverse_speed.wy_part import StageRow

TINY = "on a CPU, for the tests only"


def mark(settings: Any) -> str:
  """What every title ends with where the run is none of a GPU's kernels."""
  if settings.implementation == "gpu":
    return ""
  if jax.default_backend() == "cpu":
    return f" ({TINY})"
  return f" (in XLA on a {jax.default_backend()}, for the tests only)"


def machine() -> str:
  """What ran the study, as every table says it."""
  return f"{device_name()} with jax {jax.__version__}"


def closing(found: Mapping[str, list], settings: Any) -> str:
  """The tables printed at the end."""
  lines = []
  if "inverse" in found:
    title = (
      f"inverse of {settings.count} matrices, C={settings.chunk_size}, float32 "
      f"in and out"
    )
    lines += [_headed(title, settings), *_inverse_lines(found["inverse"])]
  if "stage" in found:
    title = (
      f"stage k, v, gates -> u, w: {settings.tokens} tokens, "
      f"{settings.heads} heads of {settings.dim}"
    )
    lines += [_headed(title, settings), *_stage_lines(found["stage"])]
  if "sweep" in found:
    title = f"sweep: entries of T not finite, C={settings.chunk_size}"
    lines += [_headed(title, settings), *_sweep_lines(found["sweep"])]
  return "\n".join(lines)


def _inverse_lines(rows: Sequence[InverseRow]) -> list[str]:
  heads = ["name", "ms", "x copy", "x fla", "error beta<=1", "beta<=2", "note"]
  return aligned(
    heads,
    [
      [
        r.name,
        text(r.median_ms, 3),
        text(r.to_copy, 2),
        text(r.to_fla, 2),
        text(r.error_beta_1),
        text(r.error_beta_2),
        r.note,
      ]
      for r in rows
    ],
  )


def _stage_lines(rows: Sequence[StageRow]) -> list[str]:
  return aligned(
    ["name", "ms", "x limit", "x fla", "error u", "error w", "note"],
    [
      [
        r.name,
        text(r.median_ms, 3),
        text(r.to_limit, 2),
        text(r.to_fla, 2),
        text(r.error_u),
        text(r.error_w),
        r.note,
      ]
      for r in rows
    ],
  )


def _sweep_lines(rows: Sequence[SweepRow]) -> list[str]:
  heads = ["name", "beta", "matrices", "not finite", "note"]
  body = [
    [r.name, r.beta, str(r.matrices), text(r.nonfinite), r.note] for r in rows
  ]
  bad = [r.name for r in rows if r.must_be_zero and r.nonfinite != 0]
  verdict = "0 wherever it must be"
  if bad:
    verdict = f"FAILED for {', '.join(dict.fromkeys(bad))}"
  return [*aligned(heads, body), f"sweep: {verdict}"]


def _headed(title: str, settings: Any) -> str:
  return f"\n{title}; {machine()}{mark(settings)}"


def text(value: float | None, digits: int | None = None) -> str:
  """A number of a printed table, "-" where there is none."""
  if value is None:
    return "-"
  if isinstance(value, int):
    return str(value)
  return short(value) if digits is None else f"{value:.{digits}f}"


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Aligned lines, the first and the last column to the left."""
  table = [list(heads), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*table)]
  return [
    "  ".join(
      x.ljust(width) if i in (0, len(heads) - 1) else x.rjust(width)
      for i, (x, width) in enumerate(zip(line, widths))
    ).rstrip()
    for line in table
  ]
