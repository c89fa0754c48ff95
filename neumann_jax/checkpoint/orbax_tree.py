"""Arrays by name in folders of Orbax, each from and to where it lies.

Orbax verifies no data that it reads: a flipped bit is another weight, and a
file that is missing or cut a traceback for every array. So every file is hashed
when it is written, and nothing is read before all of them are as they were.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

# What the system may say of a disk.
_FAULTS = tuple(
  getattr(errno, name)
  for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")
)
SUMS = "sha256.json"  # of every other file of the folder, by its name


def write(
  arrays: Mapping[str, jax.Array], path: pathlib.Path, metadata: dict[str, Any]
) -> None:
  """Writes arrays, in every process those of its devices.

  Args:
    arrays: by name; all processes give the same names.
    path: absolute, a new folder in one that exists and that all processes see.
      It is there complete or not at all.
    metadata: what JSON holds.

  Raises:
    OSError: if the system does not let it be written, as on a full disk.
  """
  # Asked first: of a disk that gets full, Orbax's threads print pages.
  if shutil.disk_usage(path.parent).free < sum(
    x.nbytes for x in arrays.values()
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  # All processes write to one place, which is renamed once it is hashed.
  beside = path.with_name(f".{path.name}.unfinished")
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      # A flat dictionary: the folder then depends on no class of flax.
      checkpointer.save(
        beside, dict(arrays), custom_metadata=metadata, force=True
      )
    if jax.process_index() == 0:
      sums = json.dumps(_sums(beside), indent=1)
      (beside / SUMS).write_text(sums + "\n", encoding="utf-8")
      beside.rename(path)
    multihost_utils.sync_global_devices(f"orbax {path}")
  except BaseException as error:
    # Orbax writes beside a folder first, and leaves that behind on an error.
    for unfinished in path.parent.glob(f"{beside.name}*"):
      shutil.rmtree(unfinished, ignore_errors=True)
    if (fault := _of_the_system(error)) is not None:
      words = os.strerror(fault)
      raise OSError(fault, words, str(path)) from error
    raise


def _of_the_system(error: BaseException) -> int | None:
  """The number of an error that Orbax and tensorstore pass on as words."""
  said = str(error)
  return next((n for n in _FAULTS if os.strerror(n) in said), None)


def read_metadata(path: pathlib.Path, *, writer: str) -> dict[str, Any]:
  """The metadata of a folder, once every file of it is as it was written.

  Args:
    path: absolute.
    writer: who should have written it, for the message.

  Raises:
    ValueError: if a file is not as it was, or `write` made no such folder.
  """
  with ocp.StandardCheckpointer() as checkpointer, _whole(path, writer):
    _check_sums(path)
    return checkpointer.metadata(path).custom_metadata


def read(
  path: pathlib.Path,
  targets: Mapping[str, Any],
  *,
  writer: str,
) -> dict[str, jax.Array]:
  """The arrays of a folder, each where its target has a sharding.

  Args:
    path: absolute; `read_metadata` has checked it.
    targets: by name `jax.ShapeDtypeStruct` with a sharding on any mesh, or a
      numpy array for one that stays on the host.
    writer: as for `read_metadata`.

  Raises:
    ValueError: if the folder does not hold them.
  """
  with ocp.StandardCheckpointer() as checkpointer, _whole(path, writer):
    return checkpointer.restore(path, dict(targets))


@contextlib.contextmanager
def _whole(path: pathlib.Path, writer: str) -> Iterator[None]:
  """Whatever Orbax finds wrong with a folder, in one sentence."""
  try:
    yield
  except Exception as error:  # it raises Exception itself for lost data
    words = f"{path} is damaged, or was not written by {writer}"
    ours = f": {error}" if isinstance(error, _Changed) else ""
    raise ValueError(words + ours) from error


class _Changed(ValueError):
  """A file is not what was written."""


def _check_sums(path: pathlib.Path) -> None:
  """Raises _Changed naming the first file that is missing or another."""
  if not (path / SUMS).is_file():
    raise _Changed(
      f"{SUMS} is missing, which older versions did not write: read the folder "
      "with the version that wrote it and save it again"
    )
  try:
    promised = dict(json.loads((path / SUMS).read_text("utf-8")))
  except (ValueError, TypeError) as error:
    raise _Changed(f"{SUMS} holds no hashes") from error
  # Of the names that are there: a changed list leads to no other folder.
  found = _sums(path)
  for name, sha256 in promised.items():
    if name not in found:
      raise _Changed(f"{name[:200]!r} is missing")
    if found[name] != sha256:
      raise _Changed(f"{name} has sha256 {found[name]}, {SUMS} says another")


def _sums(path: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file, but the list of them, by its name in the folder."""
  found = {}
  for file in sorted(path.rglob("*")):
    if file.is_file() and file != path / SUMS:
      with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
      found[file.relative_to(path).as_posix()] = digest.hexdigest()
  return found
