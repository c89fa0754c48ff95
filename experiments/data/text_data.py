"""Bytes that every machine has: sources and docs of Python's standard library.

Held out is every module, or package with all its modules, whose name's hash
says so: the same ones under any version of Python. Their tests are neither
trained on nor held out. A folder of one's own is split in the same way, by the
names of what lies in it.
"""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Tokens beyond the 256 bytes. A document begins with DOCUMENT, a task with its
# own mark; ASK stands before what the task asks for. The vocabulary has room.
DOCUMENT, RECALL, NEEDLE, STATE, COPY, ASK = range(256, 262)
VOCABULARY = 264

SUFFIXES = (".py", ".txt", ".rst", ".md")
# One name in so many is held out.
HELD_OUT_SHARE = 8
# Not the library's: other packages, and what a build wrote of its machine.
_OTHERS = ("site-packages", "dist-packages", "__pycache__")
_BUILT = ("config-", "_sysconfigdata")
_TESTS = ("test", "tests", "idle_test")


class Document(NamedTuple):
  """A text file."""

  name: str  # its path in the folder, with slashes
  data: bytes  # its bytes, valid UTF-8


def training_text(folder: str = "") -> list[Document]:
  """All documents but the held-out ones and their tests, or ValueError.

  They are the files of a folder that end in one of `SUFFIXES`; "" means the
  standard library of this Python.
  """
  return _documents(folder, lambda name: not _touches(name), "training text")


def held_out_text(folder: str = "") -> list[Document]:
  """The documents that are never trained on, likewise."""
  return _documents(folder, is_held_out, "held-out text")


def is_held_out(name: str) -> bool:
  """Whether a document is held out: by its first component, tests never."""
  parts = pathlib.PurePosixPath(name).with_suffix("").parts
  return not set(parts) & set(_TESTS) and _chosen(parts[0])


def stream(documents: Sequence[Document]) -> np.ndarray:
  """Documents one after another, DOCUMENT before each: [n] uint16 tokens."""
  parts = []
  for document in documents:
    parts.append(np.array([DOCUMENT], np.uint16))
    parts.append(np.frombuffer(document.data, np.uint8).astype(np.uint16))
  return np.concatenate(parts)


def first(documents: Sequence[Document], size: int) -> Sequence[Document]:
  """The first documents, `size` bytes in all; 0 means all of them."""
  if not size:
    return documents
  chosen, left = [], size
  for document in documents:
    if left > 0:
      chosen.append(document._replace(data=document.data[:left]))
      left -= len(document.data)
  return chosen


def fingerprint(documents: Sequence[Document]) -> dict[str, int | str]:
  """How many documents and bytes, and the SHA-256 of names and bytes."""
  digest = hashlib.sha256()
  for document in documents:
    digest.update(f"{document.name}\n{len(document.data)}\n".encode())
    digest.update(document.data)
  return {
    "documents": len(documents),
    "bytes": sum(len(document.data) for document in documents),
    "sha256": digest.hexdigest(),
  }


def _touches(name: str) -> bool:
  """Whether a document is held out, or tests what is."""
  parts = pathlib.PurePosixPath(name).with_suffix("").parts
  tested = [part.removeprefix("test_") for part in parts[1:2]]
  return _chosen(parts[0]) or (parts[0] in _TESTS and any(map(_chosen, tested)))


def _chosen(word: str) -> bool:
  digest = hashlib.sha256(word.encode()).digest()
  return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def _documents(
  folder: str, wanted: Callable[[str], bool], what: str
) -> list[Document]:
  """The text files whose name is wanted, in the order of their paths."""
  root = pathlib.Path(folder or sysconfig.get_paths()["stdlib"])
  found = []
  for path in sorted(_paths(root)):
    parts = path.relative_to(root).parts
    name = "/".join(parts)
    if parts[0].startswith(_BUILT) or not wanted(name):
      continue
    # A pipe or a device of that name has no end.
    data = path.read_bytes() if path.is_file() else b""
    if data and _is_text(data):
      found.append(Document(name, data))
  if found:
    return found
  place = repr(folder) if folder else "the standard library"
  raise ValueError(
    f"data must be a folder with {what}, UTF-8 files that end in "
    f"{', '.join(SUFFIXES)}; {place} has none"
  )


def _paths(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Its text files; folders of others, which may be huge, are not entered."""
  for folder, inner, files in os.walk(root):
    inner[:] = [name for name in inner if name not in _OTHERS]
    paths = (pathlib.Path(folder, file) for file in files)
    yield from (path for path in paths if path.suffix in SUFFIXES)


def _is_text(data: bytes) -> bool:
  try:
    data.decode()
  except UnicodeDecodeError:
    return False
  return True
