"""Which files belong to a folder, and how large they are.

A folder of weights names files of its own. Another name would have a reader
open what its user never meant to show: a key, a device, another checkpoint.
"""

import os
import pathlib
import stat
from typing import Any

from .messages import shown

# Of file systems; longer names make the system's calls fail.
_LONGEST = 255


def as_path(value: Any, name: str) -> pathlib.Path:
  """What a user named, as a path.

  Args:
    value: a path or the text of one.
    name: of the argument.

  Raises:
    TypeError: for anything else.
  """
  if not isinstance(value, str | os.PathLike):
    raise TypeError(f"{name} must be a path, got {shown(value)}")
  return pathlib.Path(value)


def own_file(folder: pathlib.Path, *names: str) -> pathlib.Path:
  """The path of a file in a folder, whether or not it is there.

  The Hugging Face hub keeps `snapshots/REVISION` as links into `blobs` beside
  `snapshots`: these links are followed, others only within the folder.

  Args:
    folder: what the user named.
    names: of the folders below it, and of the file at last.

  Raises:
    ValueError: if a name is a path, or the file is a link that leads out.
  """
  for name in names:
    parts = pathlib.PureWindowsPath(name)  # knows \\ and C: beside /
    plain = parts.name == name and name not in ("", ".", "..")
    length = len(name.encode(errors="replace"))
    if not plain or "\0" in name or length > _LONGEST:
      raise ValueError(
        f"{folder} must name files of its own folder, got {shown(name)}"
      )
  path = folder.joinpath(*names)
  try:
    found, homes = path.resolve(), _homes(folder.resolve())
  except (
    OSError,
    RuntimeError,
    ValueError,
  ):  # a circle of links, half a letter
    raise ValueError(f"{folder} names {shown(names[-1])}, no file") from None
  if not any(found.is_relative_to(home) for home in homes):
    raise ValueError(
      f"{shown(names[-1])} in {folder} must lie in that folder, but is a link "
      "that leads out of it"
    )
  return path


def size(path: pathlib.Path) -> int:
  """Bytes of a regular file.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for a folder, a device or a pipe.
  """
  status = path.stat()
  # A pipe has no end and may never begin; so has /dev/zero.
  if not stat.S_ISREG(status.st_mode):
    raise ValueError("is no regular file")
  return status.st_size


def read(path: pathlib.Path, *, most: int) -> bytes:
  """The bytes of a regular file.

  Args:
    path: of the file.
    most: bytes that are read at all.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is none, or has more bytes; a clause without its name.
  """
  if (found := size(path)) > most:
    raise ValueError(f"has {found} bytes, more than the {most} that are read")
  with path.open("rb") as file:
    return file.read(most)


def _homes(root: pathlib.Path) -> list[pathlib.Path]:
  """Where files of a folder may lie."""
  homes = [root]
  for place in (root, *root.parents):
    if place.parent.name == "snapshots":
      homes.append(place.parent.parent / "blobs")
  return homes
