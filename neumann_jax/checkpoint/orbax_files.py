"""Whether the files that a folder of Orbax names are there, at full length.

Orbax reads arrays at the same time and writes a traceback for each one that
fails; the names and lengths of its files (OCDBT, by tensorstore) are known
without reading them.
"""

import pathlib
from collections.abc import Iterator

import tensorstore as ts


def check_whole(path: pathlib.Path) -> None:
  """Raises ValueError naming the first file that is missing or too short.

  Args:
    path: absolute path of a folder that Orbax wrote. Where the index itself
      cannot be read, the ValueError is tensorstore's.
  """
  for name, end in _places(ts.KvStore.open(path.as_uri() + "/").result()):
    file = path / name
    length = file.stat().st_size if file.is_file() else 0
    if length < end:
      raise ValueError(f"{name} has {length} bytes of at least {end}")


def _places(store: ts.KvStore) -> Iterator[tuple[str, int]]:
  """Every piece that the newest version refers to: its file and its end."""
  newest = ts.ocdbt.dump(store).result()["versions"][-1]
  open_nodes = [newest["root"]["location"]]
  while open_nodes:
    location = open_nodes.pop()
    yield _place(location)
    for entry in ts.ocdbt.dump(store, node=location).result()["entries"]:
      if "indirect_value" in entry:
        yield _place(entry["indirect_value"])
      elif "location" in entry:
        open_nodes.append(entry["location"])


def _place(location: str) -> tuple[str, int]:
  """kind:folder:name:offset:length."""
  _, folder, name, offset, length = location.split(":")
  return folder + name, int(offset) + int(length)
