"""What a run leaves behind: its folder, its tables and its environment record.

A run owns one folder. `environment.json` says where the numbers come from and
whether the run finished; each table is one pair of files: `NAME.jsonl`, row by
row, so that a run cut short keeps what it measured, and `NAME.csv` from it at
the end.
"""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import pandas as pd

from experiments.harness import folders, writing
from experiments.harness.processes import hosts
from experiments.harness.reporting import tables
from experiments.harness.rows import Table

PACKAGES = (
  "neumann-posterior",
  "jax",
  "jaxlib",
  "flax",
  "numpy",
  "scipy",
  "ml_collections",
  "scikit-image",
  "scikit-learn",
  "matplotlib",
  "optax",
  "pandas",
)


def environment(
  command: Sequence[str],
  config: Mapping[str, Any],
  inputs: Mapping[str, str] = types.MappingProxyType({}),
) -> dict:
  """Versions, devices, source revision, command and config, ready for JSON."""
  return {
    "command": shlex.join(command),
    "config": dict(config),
    "inputs": dict(inputs),
    "started": datetime.datetime.now(datetime.UTC).isoformat(),
    "python": platform.python_version(),
    "machine": f"{platform.system()} {platform.machine()}",
    "cpus": os.cpu_count(),
    "processes": jax.process_count(),
    "versions": {name: _version(name) for name in PACKAGES},
    "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
    "revision": _revision(),
  }


class Run:
  """The folder of one run, as a context that records how it ended.

  Attributes:
    folder: where everything the run makes belongs.
    environment: what `environment.json` holds.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    command: Sequence[str] = (),
    config: Mapping[str, Any] = types.MappingProxyType({}),
    inputs: Mapping[str, str] = types.MappingProxyType({}),
    resume: bool = False,
  ):
    """Opens the folder and writes the first record.

    Args:
      workdir: see `folders.open_folder`.
      command: that started the run.
      config: of the run.
      inputs: SHA-256 of what goes in, by name.
      resume: goes on with the run that `workdir` holds, in place; its record
        stays under `earlier` of the new one.

    Raises:
      Refused: the folder cannot be written or is held by another process, or
        `resume` does not fit (see
        `folders.check_resumable`).
    """
    workdir = pathlib.Path(workdir)
    self._held = contextlib.ExitStack()

    def opened() -> str:
      held = folders.open_again(workdir, config, inputs) if resume else None
      folder, self._held = held or folders.open_folder(workdir)
      return str(folder)

    # Of many processes the first holds the folder and writes.
    self.folder = pathlib.Path(hosts.from_first(opened))
    self._tables: dict[str, Table] = {}
    self._start = time.monotonic()

    def begin() -> None:
      if earlier := folders.earlier(self.folder):
        self.environment["earlier"] = earlier
      with folders.writable(self.folder):
        self._save("running")

    try:
      self.environment = environment(command, config, inputs)
      hosts.from_first(begin)
    except BaseException:
      with self._held:
        if not resume and hosts.is_first():  # no run has begun
          (self.folder / folders.ENVIRONMENT).unlink(missing_ok=True)
      raise

  def write(self, table: str, row: Mapping[str, Any] | tuple) -> None:
    """Appends a row, a NamedTuple or a mapping, to a table."""
    if hosts.is_first():
      self._table(table).write(row)

  def write_once(
    self, table: str, row: Mapping[str, Any] | tuple, key: Sequence[str]
  ) -> None:
    """Appends a row unless a run gone on with has written it.

    Args:
      table: its name.
      row: as for `write`.
      key: columns that tell the rows of the table apart.
    """
    if hosts.is_first():
      self._table(table).write_once(tables.as_mapping(row), key)

  def rows(self, table: str) -> list[dict[str, Any]]:
    """The rows of a table so far, those of a run gone on with included.

    Numbers that are infinite or undefined are the strings of `Table.write`. Of
    many processes all ask together.
    """
    return hosts.from_first(lambda: self._table(table).rows())

  def frame(self, table: str) -> pd.DataFrame:
    """The rows of a table so far, with numbers as numbers."""
    return tables.frame(self.rows(table))

  def _table(self, name: str) -> Table:
    if name not in self._tables:
      self._tables[name] = Table(self.folder / name)
    return self._tables[name]

  def origin(self) -> str:
    """Where the numbers come from, as the head of a report says it."""
    found = self.environment
    return (
      f"Measured on {', '.join(found['devices'])} ({found['machine']}, "
      f"{found['cpus']} CPUs) with jax {found['versions']['jax']} and Python "
      f"{found['python']}; command: `{found['command']}`. Everything needed to "
      "repeat it stands in `environment.json` beside this file, every number "
      "in the `.jsonl` and `.csv` tables."
    )

  def how_to_go_on(self) -> str:
    """What to do after a run was stopped, as half a sentence."""
    return (
      "the same command goes on with --resume "
      f"--workdir={shlex.quote(str(self.folder))}"
    )

  def seconds(self) -> float:
    """Time since the run began."""
    return time.monotonic() - self._start

  def _save(self, status: str) -> None:
    if not hosts.is_first():
      return
    self.environment |= {
      "status": status,
      "seconds": round(self.seconds(), 1),
    }
    writing.write_json(self.folder / folders.ENVIRONMENT, self.environment)

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, kind: type | None, *_: object) -> None:
    status = "finished" if kind is None else f"stopped by {kind.__name__}"
    with self._held:
      # What can be written still is; what ended the run is what is said.
      errors = [
        error
        for end in (
          *(table.close for table in self._tables.values()),
          lambda: self._save(status),
        )
        if (error := _tried(end)) is not None
      ]
    if errors and kind is None:
      raise errors[0]


def _tried(end: Callable[[], None]) -> OSError | None:
  try:
    end()
  except OSError as error:
    return error
  return None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _revision() -> str | None:
  """Git's name of the source's revision, `+changes` where files differ."""
  root = pathlib.Path(__file__).resolve().parents[2]
  git = ["git", "-C", str(root)]
  try:
    head = subprocess.check_output(
      [*git, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL, text=True
    ).strip()
    changed = subprocess.check_output(
      [*git, "status", "--porcelain"], stderr=subprocess.DEVNULL, text=True
    ).strip()
  except (OSError, subprocess.CalledProcessError):
    return None
  return head + ("+changes" if changed else "")


def command_line() -> list[str]:
  """The command that started this process, with the interpreter's bare name."""
  first, *rest = sys.orig_argv
  return [pathlib.Path(first).name, *rest]
