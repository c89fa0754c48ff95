"""Static cycles of TPU kernels of the chunk inverse, from a CPU host.

  python -m experiments.tpu_cycles

Settings: `configs/tpu_cycles.py`. Nothing runs on a TPU: libtpu compiles each
kernel and its schedule is counted. Without libtpu one sentence says so.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.harness import record, runner
from experiments.harness.progress import Progress
from experiments.harness.report import Report, short, shown
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.tpu_cycles import kernels as tpu_kernels
from experiments.tpu_cycles import schedule
from experiments.tpu_cycles.kernels import BETAS, SUBSTITUTIONS, TOKAMAX


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is compiled, for what.

  Attributes:
    kinds: of TPU, among `tpu_schedule.TOPOLOGIES`.
    batches: matrices a grid step, multiples of 8.
    kernels: among `tpu_kernels.NAMES`.
    draws: chunks per family and decay whose error is measured.
    seed: of the draws.
  """

  kinds: tuple[str, ...]
  batches: tuple[int, ...]
  kernels: tuple[str, ...]
  draws: int
  seed: int

  def __post_init__(self) -> None:
    _check_names("kinds", self.kinds, schedule.TOPOLOGIES)
    _check_names("kernels", self.kernels, tpu_kernels.NAMES)
    if not self.batches or any(n < 8 or n % 8 for n in self.batches):
      raise ValueError(
        f"batches must be multiples of 8, at least one, got {self.batches}"
      )
    if self.draws < 1:
      raise ValueError(f"draws must be at least 1, got {self.draws}")


class CyclesRow(NamedTuple):
  """One kernel at one batch, compiled for one kind; None where it was not.

  Attributes:
    kind: of TPU it was compiled for, never run on.
    kernel: its name.
    batch: matrices a grid step.
    bundles: scheduled, a matrix; a loop's as often as it runs.
    to_tokamax: bundles over those of tokamax at the same batch.
    to_substitution: over the better row-wise substitution at the same batch.
    vector: mean part of the vector ALU's slots in use.
    matrix: likewise of the matrix unit's.
    error_beta_1: worst relative error over key families, beta in 0.6 to 1.
    error_beta_2: the same for beta to 2.
    note: why something is missing.
  """

  kind: str
  kernel: str
  batch: int
  bundles: float | None
  to_tokamax: float | None
  to_substitution: float | None
  vector: float | None
  matrix: float | None
  error_beta_1: float | None
  error_beta_2: float | None
  note: str


def tpu_cycles(settings: Settings, run: record.Run) -> None:
  """Compiles everything, writes the table and `report.html`."""
  libtpu = importlib.metadata.version("libtpu")
  run.environment["versions"]["libtpu"] = libtpu
  missing = tpu_kernels.reason_without(settings.kernels)
  if missing:
    print(f"tpu_cycles: {missing}")
  each = len(settings.kinds) * len(settings.batches) + 1
  with Progress(each * len(settings.kernels), label="tpu_cycles") as tick:
    errors = {}
    for name in settings.kernels:
      tick(f"error of {name}")
      errors[name] = _errors(name, settings)
    rows = []
    for kind in settings.kinds:
      measured = _compile(kind, settings, tick)
      for key in measured:
        rows.append(_row(kind, key, measured, errors))
        run.write("tpu_cycles", rows[-1]._asdict())
  report = _report(rows, settings, run.environment, libtpu)
  print(_closing(rows, libtpu))
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def _check_names(
  name: str, values: Sequence[str], allowed: Sequence[str] | Mapping[str, Any]
) -> None:
  for value in values:
    if value not in allowed:
      raise ValueError(
        f"{name} must be among {'; '.join(allowed)}, got {value!r}"
      )
  if not values:
    raise ValueError(f"{name} must name at least one")


def _errors(name: str, settings: Settings) -> dict:
  try:
    draws = InverseSettings(seed=settings.seed, draws=settings.draws)
    return tpu_kernels.errors(name, draws)
  except ImportError:
    return {}


def _compile(kind: str, settings: Settings, tick: Any) -> dict:
  """What each (kernel, batch) gave, for one kind."""
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    dump = pathlib.Path(folder) / "dump"
    dump.mkdir()
    for said in schedule.schedules(
      kind, settings.kernels, settings.batches, dump
    ):
      if "begin" in said:
        tick(f"{kind}: {said['begin']}, {said['batch']} matrices a step")
      else:
        found[said["kernel"], said["batch"]] = said
  return found


def _bundles(found: Mapping, kernel: str, batch: int) -> float | None:
  count = found.get((kernel, batch), {}).get("bundles")
  return None if count is None else count / batch


def _row(kind: str, key: tuple, found: Mapping, errors: Mapping) -> CyclesRow:
  kernel, batch = key
  ours = _bundles(found, kernel, batch)

  def ratio(*rivals: str) -> float | None:
    others = [_bundles(found, rival, batch) for rival in rivals]
    known = [other for other in others if other is not None]
    return None if ours is None or not known else ours / min(known)

  error = [errors[kernel].get(beta) for beta in BETAS]
  said = found[key]
  return CyclesRow(
    kind,
    kernel,
    batch,
    ours,
    ratio(TOKAMAX),
    ratio(*SUBSTITUTIONS),
    said.get("vector"),
    said.get("matrix"),
    error[0],
    error[1],
    said.get("reason", ""),
  )


def _report(
  rows: Sequence[CyclesRow], settings: Settings, environment: Any, libtpu: str
) -> Report:
  report = Report(
    "TPU cycles of the chunk inverse",
    "Scheduled bundles of a grid step over its matrices of 64 x 64, float32 in "
    f"and out, compiled by libtpu {libtpu} on a CPU host and never run on a "
    "TPU: no stalls and no transfers are in them, a kernel's prologue is, and "
    "the bundles of a loop count as often as it runs. Errors are those of the "
    "same body run on the CPU with its roundings explicit, worst over 8 "
    f"families of keys and 3 decays, {settings.draws} draws each, against "
    f"float64. Command: `{environment['command']}`.",
  )
  for kind in settings.kinds:
    chosen = [row for row in rows if row.kind == kind]
    report.heading(f"Compiled for {kind}")
    report.table(
      f"Bundles a matrix, compiled for {kind}.",
      [name.replace("_", " ") for name in CyclesRow._fields[1:]],
      [list(row[1:]) for row in chosen],
      measured_on=f"libtpu {libtpu}'s schedule for {kind}, never run on it",
      name=f"cycles-{kind}",
    )
    report.figure(
      _figure(chosen, kind),
      f"Bundles a matrix, compiled for {kind}; further left is better. Under a "
      "name stands its worst relative error, beta to 1.",
    )
  return report


def _figure(rows: Sequence[CyclesRow], kind: str) -> Any:
  """A line a kernel, from fast to slow, and a mark a batch."""
  import matplotlib.pyplot as plt

  known = [
    (row.kernel, row.batch, row.bundles, row.error_beta_1)
    for row in rows
    if row.bundles is not None and row.error_beta_1 is not None
  ]
  error = {kernel: x for kernel, _, _, x in known}
  fewest = {name: min(n for k, _, n, _ in known if k == name) for name in error}
  kernels = sorted(fewest, key=fewest.__getitem__, reverse=True)
  figure, axes = plt.subplots(figsize=(8, 1.4 + 0.36 * len(kernels)))
  for batch in sorted({batch for _, batch, _, _ in known}):
    at = {k: bundles for k, b, bundles, _ in known if b == batch}
    axes.scatter(
      list(at.values()),
      [kernels.index(kernel) for kernel in at],
      label=f"{batch} matrices a grid step",
    )
  labels = [f"{name}\nerror {short(error[name])}" for name in kernels]
  axes.set_yticks(range(len(kernels)), labels, fontsize=8)
  axes.set_xscale("log")
  ticks = (50, 100, 200, 400, 800)
  axes.set_xticks(ticks, [str(tick) for tick in ticks])
  axes.minorticks_off()
  axes.set_xlabel(f"bundles a matrix, compiled for {kind}, never run")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
  figure.tight_layout()
  return figure


def _closing(rows: Sequence[CyclesRow], libtpu: str) -> str:
  """The table on the terminal: bundles a matrix by kernel, kind and batch."""
  columns = list(dict.fromkeys((row.kind, row.batch) for row in rows))
  found = {(r.kernel, r.kind, r.batch): r.bundles for r in rows}
  lines = [f"bundles a matrix, compiled by libtpu {libtpu}, never run"]
  head = "".join(f"{kind + '/' + str(n):>10}" for kind, n in columns)
  lines.append(f"{'kernel':32}{head}   error")
  for kernel in dict.fromkeys(row.kernel for row in rows):
    cells = [found.get((kernel, *at)) for at in columns]
    text = "".join(f"{'-' if x is None else f'{x:.1f}':>10}" for x in cells)
    error = next(r.error_beta_1 for r in rows if r.kernel == kernel)
    lines.append(
      f"{kernel:32}{text}   {math.nan if error is None else error:.1e}"
    )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the experiment where libtpu is installed.

  Args:
    argv: as of `runner.main`.
  """
  if importlib.util.find_spec("libtpu") is None:
    print(
      "tpu_cycles: nothing was compiled, because libtpu is not installed here; "
      "pip install -e '.[tpu]' brings it"
    )
    return
  runner.main("tpu_cycles", Settings, tpu_cycles, argv)
