"""Static cycles of the inverse, the rule and a layer on TPUs, from a CPU host.

  python -m experiments.tpu_cycles

Settings: `configs/tpu_cycles.py`. Nothing runs on a TPU: libtpu compiles each
kernel and its schedule is counted. Without libtpu one sentence says so.
"""

import dataclasses
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.harness import record, runner
from experiments.harness.progress import Progress
from experiments.harness.reporting import tables
from experiments.harness.reporting.report import Report, short, shown
from experiments.harness.settings import Checked, setting
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import kernels as tpu_kernels
from experiments.tpu_cycles import (
  layer_part,
  layers,
  rule_part,
  rules,
  schedule,
)
from experiments.tpu_cycles.kernels import BETAS, SUBSTITUTIONS, TOKAMAX


def _among(name: str, known: Collection[str]) -> Any:
  words = f"{name} must be among {'; '.join(known)}"
  return setting(among=known, some=True, words=words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is compiled, for what.

  Attributes:
    parts: among "inverse", "rule" and "layer".
    kinds: of TPU, among `schedule.TOPOLOGIES`.
    batches: matrices a grid step, multiples of 8.
    kernels: among `kernels.NAMES`.
    draws: chunks per family and decay whose error is measured.
    rules: among `rules.NAMES`.
    shape: rows, tokens, key heads and value heads of rules and layer.
    seed: of the draws.
  """

  parts: tuple[str, ...] = _among("parts", ("inverse", "rule", "layer"))
  kinds: tuple[str, ...] = _among("kinds", schedule.TOPOLOGIES)
  batches: tuple[int, ...] = setting(
    at_least=8,
    multiple_of=8,
    some=True,
    words="batches must be multiples of 8, at least one",
  )
  kernels: tuple[str, ...] = _among("kernels", tpu_kernels.NAMES)
  draws: int = setting(at_least=1)
  rules: tuple[str, ...] = _among("rules", rules.NAMES)
  shape: tuple[int, ...]
  seed: int

  def __post_init__(self) -> None:
    """Raises ValueError for a setting out of range."""
    super().__post_init__()
    shape = self.shape
    if len(shape) != 4 or min(shape) < 1 or shape[3] % shape[2]:
      raise ValueError(
        "shape must be (rows, tokens, key heads, value heads), the value heads "
        f"a whole multiple of the key heads, got {shape}"
      )


def tpu_cycles(settings: Settings, run: record.Run) -> None:
  """Compiles everything, writes the tables and `report.html`."""
  libtpu = importlib.metadata.version("libtpu")
  run.environment["versions"]["libtpu"] = libtpu
  report = Report(
    "TPU cycles of the chunk inverse and the rule",
    f"Scheduled bundles, compiled by libtpu {libtpu} on a CPU host and never "
    "run on a TPU: no stalls and no transfers are in them, a kernel's prologue "
    "is, and the bundles of a loop count as often as it runs. Command: "
    f"`{run.environment['command']}`.",
  )
  if "inverse" in settings.parts:
    _inverses(settings, run, report, libtpu)
  if "rule" in settings.parts:
    _rules(settings, run, report)
  if "layer" in settings.parts:
    _layers(settings, run, report)
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def _inverses(
  settings: Settings, run: record.Run, report: Report, libtpu: str
) -> None:
  missing = tpu_kernels.reason_without(settings.kernels)
  if missing:
    print(f"tpu_cycles: {missing}")
  each = len(settings.kinds) * len(settings.batches) + 1
  with Progress(each * len(settings.kernels), label="tpu_cycles") as tick:
    errors = {}
    for name in settings.kernels:
      tick(f"error of {name}")
      errors[name] = _errors(name, settings)
    for kind in settings.kinds:
      for row in _rows(kind, _compile(kind, settings, tick), errors):
        run.write("tpu_cycles", row)
  rows = run.frame("tpu_cycles")
  _report(report, rows, settings, libtpu)
  print(_closing(rows, libtpu))


def _rules(settings: Settings, run: record.Run, report: Report) -> None:
  each = len(settings.kinds) + 1
  with Progress(each * len(settings.rules), label="tpu_cycles") as tick:
    for row in rule_part.rows(
      settings.rules, settings.kinds, settings.shape, settings.seed, tick
    ):
      run.write("tpu_rules", row)
  rows = run.frame("tpu_rules")
  rule_part.add(report, rows, Shape(*settings.shape))
  print(rule_part.closing(rows))


def _layers(settings: Settings, run: record.Run, report: Report) -> None:
  each = len(layers.FORMS) + len(layer_part.INVERSES)
  each += len(layer_part.BESIDE)
  with Progress(each * len(settings.kinds), label="tpu_cycles") as tick:
    for row in layer_part.rows(settings.kinds, Shape(*settings.shape), tick):
      run.write("tpu_layers", row)
  rows = run.frame("tpu_layers")
  layer_part.add(report, rows, Shape(*settings.shape))
  print(layer_part.closing(rows))


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


def _rows(
  kind: str, found: Mapping[tuple[str, int], dict], errors: Mapping[str, dict]
) -> Iterator[dict[str, Any]]:
  """A row for every kernel at every batch; None where it was not compiled.

  Args:
    kind: of TPU it was compiled for, never run on.
    found: what `_compile` returned.
    errors: of each kernel, by range of beta.

  Yields:
    kind, kernel, batch: what it is; matrices a grid step.
    bundles: scheduled, a matrix; a loop's as often as it runs.
    to_tokamax: bundles over those of tokamax at the same batch.
    to_substitution: over the better row-wise substitution at the same batch.
    vector, matrix: mean part of the units' slots in use.
    error_beta_1, error_beta_2: worst relative error over key families, beta in
      0.6 to 1, and to 2.
    note: why something is missing.
  """
  bundles = {
    (kernel, batch): said["bundles"] / batch
    for (kernel, batch), said in found.items()
    if said.get("bundles") is not None
  }
  for (kernel, batch), said in found.items():
    ours = bundles.get((kernel, batch))

    def ratio(*peers: str, ours: Any = ours, batch: int = batch) -> Any:
      known = [bundles[p, batch] for p in peers if (p, batch) in bundles]
      return None if ours is None or not known else ours / min(known)

    yield {
      "kind": kind,
      "kernel": kernel,
      "batch": batch,
      "bundles": ours,
      "to_tokamax": ratio(TOKAMAX),
      "to_substitution": ratio(*SUBSTITUTIONS),
      "vector": said.get("vector"),
      "matrix": said.get("matrix"),
      "error_beta_1": errors[kernel].get(BETAS[0]),
      "error_beta_2": errors[kernel].get(BETAS[1]),
      "note": said.get("reason", ""),
    }


def _report(
  report: Report, rows: pd.DataFrame, settings: Settings, libtpu: str
) -> None:
  report.heading("The chunk inverse")
  report.text(
    "Bundles of a grid step over its matrices of 64 x 64, float32 in and out. "
    "Errors are those of the same body run on the CPU with its roundings "
    "explicit, worst over 8 families of keys and 3 decays, "
    f"{settings.draws} draws each, against float64."
  )
  for kind in settings.kinds:
    chosen = rows[rows.kind == kind]
    report.heading(f"Compiled for {kind}")
    report.table(
      f"Bundles a matrix, compiled for {kind}.",
      chosen.drop(columns="kind").rename(columns=lambda x: x.replace("_", " ")),
      measured_on=f"libtpu {libtpu}'s schedule for {kind}, never run on it",
      name=f"cycles-{kind}",
    )
    report.figure(
      _figure(chosen, kind),
      f"Bundles a matrix, compiled for {kind}; further left is better. Under a "
      "name stands its worst relative error, beta to 1.",
    )


def _figure(rows: pd.DataFrame, kind: str) -> Any:
  """A line a kernel, from fast to slow, and a mark a batch."""
  import matplotlib.pyplot as plt

  known = rows[rows.bundles.notna() & rows.error_beta_1.notna()]
  by_kernel = known.groupby("kernel", sort=False)
  fewest = by_kernel.bundles.min().sort_values(ascending=False, kind="stable")
  kernels, error = list(fewest.index), by_kernel.error_beta_1.first()
  figure, axes = plt.subplots(figsize=(8, 1.4 + 0.36 * len(kernels)))
  for batch, chosen in known.groupby("batch"):
    axes.scatter(
      chosen.bundles,
      chosen.kernel.map(kernels.index),
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


def _closing(rows: pd.DataFrame, libtpu: str) -> str:
  """The table on the terminal: bundles a matrix by kernel, kind and batch."""
  rows = rows.assign(at=rows.kind + "/" + rows.batch.astype(str))
  table = rows.set_index(["kernel", "at"]).bundles.unstack("at")
  table = table.reindex(index=rows.kernel.unique(), columns=rows["at"].unique())
  errors = rows.groupby("kernel").error_beta_1.first()
  digits = dict.fromkeys(table, 1)
  return (
    f"bundles a matrix, compiled by libtpu {libtpu}, never run\n"
    f"{tables.aligned(table.assign(error=errors), digits)}"
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the experiment where libtpu is installed.

  Args:
    argv: as of `runner.main`.
  """
  if not schedule.has_compiler():
    print(
      "tpu_cycles: nothing was compiled, because libtpu is not installed here; "
      "pip install -e '.[tpu]' brings it"
    )
    return
  runner.main("tpu_cycles", Settings, tpu_cycles, argv)
