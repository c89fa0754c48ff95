"""Bytes that every machine has: sources and docs of Python's standard library.

Held out is every module, or package with all its modules, whose name's hash
says so: the same ones under any version of Python. Their tests are neither
trained on nor held out. A folder of one's own is split in the same way, by the
names of what lies in it.
"""

import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence
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
  """A text file.

  Attributes:
    name: its path in the folder, with slashes.
    data: its bytes, valid UTF-8.
  """

  name: str
  data: bytes


def training_text(folder: str = "") -> list[Document]:
  """All documents but the held-out ones and their tests.

  Args:
    folder: of files that end in one of `SUFFIXES`; "" means the standard
      library of this Python.

  Raises:
    ValueError: if there is none.
  """
  found = [d for d in _documents(folder) if not _touches(d.name)]
  return _some(found, folder, "training text")


def held_out_text(folder: str = "") -> list[Document]:
  """The documents that are never trained on; arguments as above."""
  found = [d for d in _documents(folder) if is_held_out(d.name)]
  return _some(found, folder, "held-out text")


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


def _documents(folder: str) -> Iterator[Document]:
  """The text files of a folder, in the order of their names."""
  root = pathlib.Path(folder or sysconfig.get_paths()["stdlib"])
  for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES):
    parts = path.relative_to(root).parts
    if set(parts) & set(_OTHERS) or parts[0].startswith(_BUILT):
      continue
    data = path.read_bytes()
    if data and _is_text(data):
      yield Document("/".join(parts), data)


def _is_text(data: bytes) -> bool:
  try:
    data.decode()
  except UnicodeDecodeError:
    return False
  return True


def _some(found: list[Document], folder: str, what: str) -> list[Document]:
  if found:
    return found
  place = repr(folder) if folder else "the standard library"
  raise ValueError(
    f"data must be a folder with {what}, UTF-8 files that end in "
    f"{', '.join(SUFFIXES)}; {place} has none"
  )
