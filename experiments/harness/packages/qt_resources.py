"""Files out of Qt's binary resources, NAME.rcc.

A header names where three parts start: a tree of entries of 14 or 22 bytes
(version 1, or a later one that adds a date), the files, and names in UTF-16.
An entry is a folder (how many entries, and which is the first) or a file (where
it starts, maybe packed by zlib). All numbers are big-endian.
"""

import struct
import zlib
from collections.abc import Iterator

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4  # flags of an entry


def members(data: bytes) -> dict[str, bytes]:
  """All files of a resource by their paths; those packed by zstd are left out.

  Raises:
    ValueError: if it is no such resource.
  """
  try:
    magic, version, tree, files, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
      raise ValueError
    size = 14 if version == 1 else 22
    # An entry points at entries behind it, so that a walk always ends.
    walk = _walk(data, (tree, files, names), size, 0, ())
    return dict(walk)
  except (struct.error, zlib.error, ValueError, RecursionError):
    raise ValueError("the file is no resource of Qt that can be read") from None


def _walk(
  data: bytes,
  parts: tuple[int, int, int],  # where tree, files and names start
  size: int,  # of an entry
  index: int,
  path: tuple[str, ...],
) -> Iterator[tuple[str, bytes]]:
  tree, files, _ = parts
  name, flags = struct.unpack_from(">IH", data, tree + index * size)
  # The root has no name.
  path = (*path, _name(data, parts, name)) if index else path
  if flags & _FOLDER:
    count, first = struct.unpack_from(">2I", data, tree + index * size + 6)
    if first <= index:
      raise ValueError
    for inner in range(first, first + count):
      yield from _walk(data, parts, size, inner, path)
  elif not flags & _ZSTD:
    (at,) = struct.unpack_from(">I", data, tree + index * size + 10)
    (length,) = struct.unpack_from(">I", data, files + at)
    packed = data[files + at + 4 : files + at + 4 + length]
    # Qt puts the unpacked length before what zlib made.
    yield (
      "/".join(path),
      zlib.decompress(packed[4:]) if flags & _ZLIB else packed,
    )


def _name(data: bytes, parts: tuple[int, int, int], at: int) -> str:
  start = parts[2] + at
  (length,) = struct.unpack_from(">H", data, start)
  # Six bytes: the length, and a hash that lookups use.
  return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")
