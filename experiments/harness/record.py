"""What a run leaves behind: its folder, its tables and its environment record.

A run owns one folder. `environment.json` says where the numbers come from and
whether the run finished; each table is one pair of files, `NAME.jsonl` and
`NAME.csv`, written row by row, so that a run cut short keeps what it measured.
"""

import csv
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pandas as pd

from experiments.harness import tables

ENVIRONMENT = "environment.json"
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


def open_folder(workdir: pathlib.Path) -> pathlib.Path:
  """Makes a folder for a new run; nothing already there is written over.

  Args:
    workdir: used itself where it is new or empty; otherwise the run gets the
      first free numbered folder in it: `workdir/2`, `workdir/3`, ...

  Returns:
    The empty folder of this run.

  Raises:
    ValueError: the folder cannot be made or written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    folder = workdir
    number = 2
    while any(folder.iterdir()):
      folder = workdir / str(number)
      number += 1
      folder.mkdir(exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
  except OSError as error:
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise ValueError(
      f"workdir {str(workdir)!r} cannot be written ({reason}); give a folder "
      "that can, as --workdir=DIR"
    ) from error
  return folder


def check_resumable(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Raises ValueError where a run of another config, or no run, is in the way.

  Args:
    workdir: of the run to go on with; new or empty means a fresh start.
    config: what the run goes on with.
  """
  if not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir())):
    return
  try:
    kept = json.loads((workdir / ENVIRONMENT).read_text())["config"]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f"workdir {str(workdir)!r} holds no run that could be resumed"
    ) from error
  now = json.loads(json.dumps(dict(config), default=str))
  for name in sorted(kept.keys() | now.keys()):
    if kept.get(name) != now.get(name):
      raise ValueError(
        f"workdir {str(workdir)!r} holds a run whose {name} is "
        f"{kept.get(name)!r}, not {now.get(name)!r}: resume it with its own "
        "config or give another --workdir"
      )


def environment(command: Sequence[str], config: Mapping[str, Any]) -> dict:
  """Versions, devices, source revision, command and config, ready for JSON."""
  return {
    "command": shlex.join(command),
    "config": dict(config),
    "started": datetime.datetime.now(datetime.UTC).isoformat(),
    "python": platform.python_version(),
    "machine": f"{platform.system()} {platform.machine()}",
    "cpus": os.cpu_count(),
    "versions": {name: _version(name) for name in PACKAGES},
    "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
    "revision": _revision(),
  }


class Table:
  """One table on disk: JSON lines appended row by row, in the end as CSV too.

  The first row fixes the columns. Opening a table that exists goes on with it;
  half a line left by a run that was killed is dropped first.
  """

  def __init__(self, stem: pathlib.Path):
    """Opens `stem.jsonl`, making it where it is not."""
    self._stem = stem
    path = stem.with_suffix(".jsonl")
    if path.exists():
      whole = path.read_bytes()
      path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    self._file = path.open("a+", encoding="utf-8", newline="")
    found = self.rows()
    self._columns = list(found[0]) if found else None

  def write(self, row: Mapping[str, Any] | tuple) -> None:
    """Appends one row of strings, numbers, booleans or None.

    Infinite and undefined numbers become the strings "inf", "-inf" and "nan",
    which strict JSON readers accept and `float` parses.

    Args:
      row: a value for every column, as a NamedTuple or a mapping.

    Raises:
      ValueError: the columns are not those of the first row.
    """
    row = tables.as_mapping(row)
    self._columns = self._columns or list(row)
    if list(row) != self._columns:
      raise ValueError(
        f"row has columns {list(row)}, but the table has {self._columns}"
      )
    plain = {name: _plain(value) for name, value in row.items()}
    self._file.write(json.dumps(plain, allow_nan=False) + "\n")
    self._file.flush()

  def rows(self) -> list[dict[str, Any]]:
    """All rows so far, as JSON holds them."""
    self._file.seek(0)
    found = [json.loads(line) for line in self._file]
    self._file.seek(0, os.SEEK_END)
    return found

  def close(self) -> None:
    """Closes the file and writes `stem.csv` from it."""
    rows = self.rows()
    self._file.close()
    with self._stem.with_suffix(".csv").open(
      "w", encoding="utf-8", newline=""
    ) as file:
      writer = csv.DictWriter(file, self._columns or [], lineterminator="\n")
      if rows:
        writer.writeheader()
      writer.writerows(rows)


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
    resume: bool = False,
  ):
    """Opens the folder and writes the first record.

    Args:
      workdir: see `open_folder`.
      command: that started the run.
      config: of the run.
      resume: goes on with the run that `workdir` holds, in place; its record
        stays under `earlier` of the new one.

    Raises:
      ValueError: the folder cannot be written, or `resume` does not fit (see
        `check_resumable`).
    """
    workdir = pathlib.Path(workdir)
    earlier = []
    if resume:
      check_resumable(workdir, config)
      earlier = _earlier(workdir)
    self.folder = workdir if earlier else open_folder(workdir)
    self.environment = environment(command, config)
    if earlier:
      self.environment["earlier"] = earlier
    self._tables: dict[str, Table] = {}
    self._start = time.monotonic()
    self._save("running")

  def write(self, table: str, row: Mapping[str, Any] | tuple) -> None:
    """Appends a row, a NamedTuple or a mapping, to a table."""
    self._table(table).write(row)

  def rows(self, table: str) -> list[dict[str, Any]]:
    """The rows of a table so far, those of a run gone on with included.

    Numbers that are infinite or undefined are the strings of `Table.write`.
    """
    return self._table(table).rows()

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

  def seconds(self) -> float:
    """Time since the run began."""
    return time.monotonic() - self._start

  def _save(self, status: str) -> None:
    self.environment |= {
      "status": status,
      "seconds": round(self.seconds(), 1),
    }
    text = json.dumps(self.environment, indent=2, default=str)
    (self.folder / ENVIRONMENT).write_text(text + "\n")

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, kind: type | None, *_: object) -> None:
    for table in self._tables.values():
      table.close()
    self._save("finished" if kind is None else f"stopped by {kind.__name__}")


def _plain(value: Any) -> Any:
  """The value as JSON knows it."""
  if isinstance(value, str | bool | int | None):
    return value
  number = float(value)
  return number if math.isfinite(number) else str(number)


def _earlier(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The records of the runs that a folder's tables come from, oldest first."""
  path = workdir / ENVIRONMENT
  if not path.exists():
    return []
  last = json.loads(path.read_text())
  return [*last.pop("earlier", []), last]


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
