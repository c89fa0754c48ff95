"""All that a run writes, and who may: nothing is ever there in part.

A file is written beside its place and renamed, so that whoever is killed, or
finds the disk full, leaves the old one or the new one. Rows are appended line
by line; half a line is dropped by the next who opens the table. One process at
a time writes into a folder. What goes into a run is known by its SHA-256.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import filelock

# Names of what is no result: the lock, who holds it, files not yet in place.
LOCK, HOLDER, BESIDE = ".lock", ".holder", ".beside-"
ASIDE = ".aside-"  # a folder that another one is about to replace


class Refused(ValueError):
  """A folder or file cannot be used as asked; the message is one sentence."""


class Unwritable(OSError):
  """A file cannot be written: errno, words and the file's name."""


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
  """Writes a file whole or not at all.

  Args:
    path: in a folder that exists; what is there is replaced.
    data: bytes, or text that is written as UTF-8. What has none, such as bytes
      of a file's name that are no text, stands as an escape, as in JSON.

  Returns:
    The path.

  Raises:
    Unwritable: the old file stays.
  """
  if isinstance(data, str):
    data = data.encode("utf-8", "backslashreplace")
  # Its own: several processes may write the same at once, as the winners that
  # every one of them knows.
  beside = path.with_name(f"{BESIDE}{uuid.uuid4().hex[:12]}")
  with _naming(path):
    try:
      with beside.open("wb") as file:
        file.write(data)
        file.flush()
        # Renamed before it is on the disk, it could be empty after a power cut.
        os.fsync(file.fileno())
      beside.replace(path)
    except BaseException:
      with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
      raise
  return path


def write_json(path: pathlib.Path, found: Any) -> pathlib.Path:
  """Writes what JSON holds, other things as their words; see `write`."""
  return write(path, json.dumps(found, indent=2, default=str) + "\n")


@contextlib.contextmanager
def beside(folder: pathlib.Path, *names: str) -> Iterator[pathlib.Path]:
  """A folder to write files in that are moved into place once all are there.

  Args:
    folder: where they belong.
    *names: of the files, in the order in which they are moved: what speaks of
      others last.

  Yields:
    The folder, for libraries that write files themselves.
  """
  with _naming(folder):
    place = pathlib.Path(tempfile.mkdtemp(prefix=BESIDE, dir=folder))
    try:
      yield place
      for name in names:
        _sync(place / name)
        (place / name).replace(folder / name)
    finally:
      shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def in_place_of(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which takes the place of `path` once it is whole.

  No system replaces a folder in one call that Python has: between two renames
  the old one stands aside, from where `hold` puts it back after a kill.

  Args:
    path: what is there goes, at the end.

  Yields:
    A place for the folder, where nothing is yet.

  Raises:
    Unwritable: the old folder stays.
  """
  old = path.with_name(f"{ASIDE}{path.name}")
  with _naming(path):
    around = pathlib.Path(tempfile.mkdtemp(prefix=BESIDE, dir=path.parent))
    try:
      yield around / path.name
      for file in (around / path.name).rglob("*"):
        if file.is_file():
          _sync(file)
      if path.exists():
        path.replace(old)
      (around / path.name).replace(path)
    finally:
      _settle(old)
      shutil.rmtree(around, ignore_errors=True)


class Lines:
  """A text file that grows line by line, each there whole or not at all."""

  def __init__(self, path: pathlib.Path):
    """Opens it, making it where it is not; half a line at its end goes."""
    self._path = path
    with _naming(path):
      self._file = path.open("a+b", buffering=0)
      self._file.seek(0)
      self._length = self._file.read().rfind(b"\n") + 1
      self._file.truncate(self._length)

  def append(self, line: str) -> None:
    """Adds a line.

    Raises:
      Unwritable: the lines before stay.
    """
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    with _naming(self._path):
      try:
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part first
          left = left[self._file.write(left) :]
      except BaseException:
        self._file.truncate(self._length)
        raise
    self._length += len(data)

  def read(self) -> list[str]:
    """All lines."""
    return self._path.read_text("utf-8").splitlines()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def is_result(path: pathlib.Path) -> bool:
  """Whether a file of a run's folder is one of its results."""
  passing = path.name.startswith((BESIDE, ASIDE))
  return path.name not in (LOCK, HOLDER) and not passing


def hold(folder: pathlib.Path) -> contextlib.ExitStack:
  """Makes this process the only one that writes into a folder.

  The system takes the lock from a process that has died; what that left
  unfinished is removed, and a folder that it had put aside is put back.

  Args:
    folder: exists.

  Returns:
    What lets go of it when closed.

  Raises:
    Refused: another process holds the folder; it says which.
    Unwritable: the folder cannot be written.
  """
  with contextlib.ExitStack() as held, _naming(folder):
    lock = filelock.FileLock(folder / LOCK)
    try:
      held.enter_context(lock.acquire(blocking=False))
    except filelock.Timeout as error:
      raise Refused(
        f"workdir {str(folder)!r} is in use by {_holder(folder)}: wait until "
        "that has ended, stop it, or give another --workdir"
      ) from error
    for left in list(folder.rglob(".*")):
      # A numbered run within has a lock, and maybe a process, of its own.
      above = left.relative_to(folder).parents
      if any((folder / x / LOCK).exists() for x in list(above)[:-1]):
        continue
      if left.name.startswith(ASIDE):
        _settle(left)
      elif left.name.startswith(BESIDE):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    held.callback((folder / HOLDER).unlink, missing_ok=True)
    said = {"process": os.getpid(), "host": socket.gethostname()}
    write_json(folder / HOLDER, said)
    return held.pop_all()


def digest(path: str | pathlib.Path) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def digests(name: str, paths: Iterable[str | pathlib.Path]) -> dict[str, str]:
  """SHA-256 by "NAME FILE" of files, and of those in folders, at any depth."""
  found = {}
  for path in map(pathlib.Path, paths):
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in inside:
      if file.is_file():
        words = file.relative_to(path) if path.is_dir() else path.name
        found[f"{name} {words}"] = digest(file)
  return found


def _sync(path: pathlib.Path) -> None:
  """Puts a file on the disk: renamed before, it could be empty after a cut."""
  with path.open("rb") as file:
    os.fsync(file.fileno())


def _settle(old: pathlib.Path) -> None:
  """Puts a folder that stands aside back, unless another took its place."""
  path = old.with_name(old.name.removeprefix(ASIDE))
  if not old.exists():
    return
  if path.exists():
    shutil.rmtree(old, ignore_errors=True)
  else:
    old.replace(path)


def _holder(folder: pathlib.Path) -> str:
  """Who says that it holds the folder."""
  for _ in range(20):
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
      said = json.loads((folder / HOLDER).read_text("utf-8"))
      process, host = int(said["process"]), f"{said['host']:.100}"
      if host != socket.gethostname() or _alive(process):
        return f"process {process} on {host}"
    time.sleep(0.05)  # it took the lock of a dead one, and is about to say so
  return "another process"


def _alive(process: int) -> bool:
  try:
    os.kill(process, 0)  # asks, sends nothing
  except ProcessLookupError:
    return False
  except PermissionError:  # it is somebody else's
    pass
  return True


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Puts the file's name into errors of the system that do not say it."""
  try:
    yield
  except OSError as error:
    if error.errno is None:
      raise
    words = os.strerror(error.errno)
    raise Unwritable(error.errno, words, str(path)) from error
