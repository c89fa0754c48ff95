"""Static schedules of TPU kernels, compiled by libtpu on a CPU host.

`schedules` compiles by `compile_one`, in a process of its own for each kind of
TPU because libtpu reads its flags once; `read` reads what libtpu dumped.

What libtpu dumps is one line a VLIW bundle, and how many slots of each unit
the bundle fills. A bundle inside a loop of the kernel stands there once; it
counts here as often as the loop runs. That of the grid is no such loop: a
schedule is that of one grid step, with what the kernel does once around it.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOPOLOGIES = {
  "v5e": "v5e:2x2",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:2x2",
  "7x": "tpu7x:2x2x1",
}
FINAL = "schedule-analysis_final_bundles.txt"
BUNDLES = "-final_bundles.txt"
SLOTS = "final_hlo-static-per-bundle-utilization.txt"
# Of a compile that dumps its schedule into a folder, on a host without a TPU.
ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_PLATFORMS": "cpu",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_LOG_DIR": "disabled",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


class ScheduleError(ValueError):
  """A dump that cannot be read as one schedule; the message is a sentence."""


@dataclasses.dataclass(frozen=True)
class Schedule:
  """One kernel at one block, compiled for one kind.

  Attributes:
    bundles: of a grid step and of what surrounds the grid's loop, the bundles
      of a loop inside counted as often as it runs.
    written: the bundles of the program, each counted once.
    trips: of the loop inside the kernel; 1 where there is none.
    vector: mean part of the slots of the vector ALU in use.
    matrix: likewise of the matrix unit.
  """

  bundles: int
  written: int
  trips: int
  vector: float
  matrix: float


def has_compiler() -> bool:
  """Whether libtpu, which compiles without a TPU, is installed here."""
  return importlib.util.find_spec("libtpu") is not None


def total_bundles(text: str) -> int:
  """The count that a `FINAL` file states."""
  match = re.search(r"total scheduled bundles:\s*(\d+)", text)
  if match is None:
    raise ScheduleError("the schedule analysis states no total of bundles")
  return int(match[1])


def loop_depths(text: str) -> tuple[list[int], int]:
  """How deep in loops each bundle of a `BUNDLES` file lies.

  Args:
    text: of the file; a `>` stands before a bundle for every loop around it.

  Returns:
    Loops around each bundle, the grid's included, in order; and how many
    loops begin inside the grid's.
  """
  pattern = r"^\s*(?:0x[0-9a-f]+|0)\s+(?:([A-Z]{2}))?\s*:\s*((?:>\s*)*)\{"
  found = re.findall(pattern, text, re.M)
  depths = [marks.count(">") for _, marks in found]
  inner = sum(
    mark == "LB" and depth > 1 for (mark, _), depth in zip(found, depths)
  )
  return depths, inner


def slot_use(text: str) -> tuple[dict[str, int], list[dict[str, int]]]:
  """Capacities of the units and the slots used, from a `SLOTS` file.

  Args:
    text: of the file.

  Returns:
    Slots of each unit by its name, and those in use by name for each bundle.
  """
  lines = text.splitlines()
  try:
    at = next(i for i, x in enumerate(lines) if x.startswith("== UTILIZATION"))
    names = [name.strip() for name in lines[at - 2].split(",")]
    capacity = dict(zip(names, map(int, lines[at - 1].split()), strict=True))
    used = [
      dict(zip(names, map(int, line.split()), strict=True))
      for line in lines[at + 1 :]
      if line.strip()
    ]
  except (StopIteration, ValueError) as error:
    raise ScheduleError("the slots in use cannot be read") from error
  return capacity, used


def read(folder: pathlib.Path, label: str, trips: int) -> Schedule:
  """The schedule in a dump.

  Args:
    folder: of the dump of one compile.
    label: in the names of the kernel's files.
    trips: of the one loop inside the kernel; 1 where there is none.

  Raises:
    ScheduleError: a file is missing, two kernels match, or the loops are not
      those that `trips` counts.
  """
  total = written(folder, label)
  depths, inner = loop_depths(_file(folder, label, BUNDLES))
  capacity, used = slot_use(_file(folder, label, SLOTS))
  if not total == len(depths) == len(used):
    raise ScheduleError(
      f"the dump's files disagree: {total} bundles in the analysis, "
      f"{len(depths)} in the program and {len(used)} with slots"
    )
  if inner > 1 or max(depths) > 2 or (inner and trips == 1):
    raise ScheduleError(
      f"the kernel has {inner} loops inside that of the grid, whose trips are "
      "not known"
    )
  weights = [trips if depth == 2 else 1 for depth in depths]
  bundles = sum(weights)

  def use(unit: str) -> float:
    slots = sum(w * row[unit] for w, row in zip(weights, used))
    return slots / (bundles * capacity[unit])

  return Schedule(
    bundles, total, trips if inner else 1, use("VALU"), use("MXU")
  )


def written(folder: pathlib.Path, label: str) -> int:
  """The bundles of a kernel, each counted once, whatever loops it has.

  Args:
    folder: of the dump of one compile.
    label: in the names of the kernel's files.
  """
  return total_bundles(_file(folder, label, FINAL))


def schedules(
  kind: str,
  kernels: Sequence[str],
  batches: Sequence[int],
  folder: pathlib.Path,
  rules: Sequence[str] = (),
  shape: Sequence[int] = (),
) -> Iterator[dict[str, Any]]:
  """Compiles for one kind in another process; yields what it says.

  Args:
    kind: among TOPOLOGIES.
    kernels: names from `kernels`.
    batches: matrices a grid step.
    folder: empty; takes the dumps.
    rules: names from `rules`.
    shape: of their operands: rows, tokens, key heads and value heads.

  Yields:
    `{"begin": kernel, "batch": n}` before a compile. After it the same with
    `"kernel"` for `"begin"` and what `compile_one.measure` returns, or "rule"
    and what `compile_one.measure_rule` returns.

  Raises:
    ScheduleError: the process failed as a whole.
  """
  command = [sys.executable, "-m", "experiments.tpu_cycles.compile_one", kind]
  command += ["--dump", str(folder), "--kernels", *kernels]
  command += ["--batches", *map(str, batches)]
  if rules:
    command += ["--rules", *rules, "--shape", *map(str, shape)]
  yield from _said(kind, command, environment(folder))


def layers(
  kind: str, forms: Sequence[str], shape: Sequence[int]
) -> Iterator[dict[str, Any]]:
  """Compiles decoder layers for one kind, without a dump; see `schedules`.

  Args:
    kind: among TOPOLOGIES.
    forms: among `layers.FORMS`.
    shape: rows, tokens, key heads and value heads.

  Yields:
    `{"begin": form, "batch": None}` before a compile. After it "layer" and what
    `compile_one.measure_layer` returns.

  Raises:
    ScheduleError: the process failed as a whole.
  """
  command = [sys.executable, "-m", "experiments.tpu_cycles.compile_one", kind]
  command += ["--layers", *forms, "--shape", *map(str, shape)]
  yield from _said(kind, command, {**os.environ, **ENVIRONMENT})


def _said(
  kind: str, command: Sequence[str], env: dict[str, str]
) -> Iterator[dict[str, Any]]:
  """The lines of a compiling process as they come."""
  with tempfile.TemporaryFile("w+") as log:
    with subprocess.Popen(
      command,
      env=env,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
    ) as child:
      assert child.stdout is not None
      try:
        for line in child.stdout:
          if line.startswith("{"):
            yield json.loads(line)
        # Else it is stopped below while it ends by itself.
        child.wait()
      finally:
        child.terminate()
    if child.returncode:
      log.seek(0)
      how = "exit" if child.returncode > 0 else "signal"
      ended = f"{how} {abs(child.returncode)}"
      said = log.read().strip().splitlines() or [ended]
      raise ScheduleError(f"compiling for {kind} stopped: {said[-1]}")


def environment(folder: pathlib.Path) -> dict[str, str]:
  """Variables of a process that compiles and dumps into `folder`."""
  flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
  return {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": flags}


def _file(folder: pathlib.Path, label: str, ending: str) -> str:
  """The one file of a kernel; `BUNDLES` ends like no analysis."""
  found = [
    path
    for path in folder.iterdir()
    if label in path.name and path.name.endswith(ending)
  ]
  if len(found) != 1:
    raise ScheduleError(
      f"libtpu dumped {len(found)} files of {label!r} that end in {ending!r}, "
      "not one"
    )
  return found[0].read_text(errors="replace")
