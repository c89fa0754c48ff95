"""A run's own folder: new, or that of a run to go on with."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from experiments.harness import writing

ENVIRONMENT = "environment.json"
# Endings of files that a run writes once more when it is gone on with.
WRITTEN = (".json", ".jsonl", ".csv", ".html", ".safetensors")
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)


def open_folder(workdir: pathlib.Path) -> tuple[pathlib.Path, ExitStack]:
  """Makes a folder for a new run; nothing already there is written over.

  Args:
    workdir: used itself where it is new or empty; otherwise the run gets the
      first free numbered folder in it: `workdir/2`, `workdir/3`, ...

  Returns:
    The empty folder of this run, and what holds it (`writing.hold`).

  Raises:
    Refused: the folder cannot be made or written.
  """
  with writable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    folder, number = workdir, 1
    while True:
      if not _has_results(folder):
        # Another process may take it, or fill it, at this very moment.
        with contextlib.suppress(writing.Refused):
          held = writing.hold(folder)
          if not _has_results(folder):
            return folder, held
          held.close()
      number += 1
      folder = workdir / str(number)
      folder.mkdir(exist_ok=True)


def open_again(
  workdir: pathlib.Path, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[pathlib.Path, ExitStack]:
  """The folder of a run to go on with, or an empty one to start in.

  Args:
    workdir: of the run; it exists.
    config: what the run goes on with.
    inputs: SHA-256 of what goes in, by name.

  Returns:
    The folder, and what holds it.

  Raises:
    Refused: there is no such folder, another process holds it, or what it
      holds is no run, or one of another config or other inputs.
  """
  # Before the lock, which writes: a stranger's folder stays as it is.
  check_resumable(workdir, config, inputs)
  with writable(workdir):
    held = writing.hold(workdir)
  try:
    check_resumable(workdir, config, inputs)
  except BaseException:
    held.close()
    raise
  return workdir, held


def check_resumable(
  workdir: pathlib.Path, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
  """Raises Refused where a run of another config, or no run, is in the way.

  Args:
    workdir: of the run to go on with; an empty one means a fresh start.
    config: what the run goes on with.
    inputs: SHA-256 of what goes in, by name.
  """
  if not workdir.is_dir():
    raise writing.Refused(
      f"workdir {str(workdir)!r} is no folder, so that there is nothing to go "
      "on with: start without --resume"
    )
  if not _has_results(workdir):
    return
  try:
    found = json.loads((workdir / ENVIRONMENT).read_text("utf-8"))
    kept, went_in = dict(found["config"]), found.get("inputs")
    went_in = went_in if went_in is None else dict(went_in)
  except _UNREADABLE as error:
    raise writing.Refused(
      f"workdir {str(workdir)!r} holds no run that could be resumed, as its "
      f"{ENVIRONMENT} says none: start anew in another --workdir"
    ) from error
  if went_in is None:
    raise writing.Refused(
      f"workdir {str(workdir)!r} holds a run of an older version, which did "
      "not record the files that went in: go on with it under that version, or "
      "start anew in another --workdir"
    )
  now = json.loads(json.dumps(dict(config), default=str))
  for name, before, today in _differences(kept, now):
    raise writing.Refused(
      f"workdir {str(workdir)!r} holds a run whose {name} is {before!r:.200}, "
      f"not {today!r:.200}: resume it with its own config or give another "
      "--workdir"
    )
  for name, before, today in _differences(went_in, inputs):
    raise writing.Refused(
      f"workdir {str(workdir)!r} holds a run of another {name}: its SHA-256 "
      f"was {before!s:.12} and is {today!s:.12}; put back what was there or "
      "give another --workdir"
    )
  for path in workdir.iterdir():
    if path.suffix in WRITTEN and not path.is_file():
      raise writing.Refused(
        f"{str(path)!r} must be a file, so that it can be written again"
      )


def _differences(
  before: Mapping[str, Any], today: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """Name and both values, None where there is none, of what differs."""
  for name in sorted(before.keys() | today.keys()):
    if before.get(name) != today.get(name):
      yield name, before.get(name), today.get(name)


def _has_results(folder: pathlib.Path) -> bool:
  return any(map(writing.is_result, folder.iterdir()))


@contextlib.contextmanager
def writable(workdir: pathlib.Path) -> Iterator[None]:
  """Turns what the system says of a folder into Refused."""
  try:
    yield
  except OSError as error:
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise writing.Refused(
      f"workdir {str(workdir)!r} cannot be written ({reason}); give a folder "
      "that can, as --workdir=DIR"
    ) from error


def earlier(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The records of the runs that a folder's tables come from, oldest first."""
  path = workdir / ENVIRONMENT
  if not path.exists():
    return []
  last = json.loads(path.read_text("utf-8"))
  return [*last.pop("earlier", []), last]
