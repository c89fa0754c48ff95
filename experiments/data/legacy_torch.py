"""A dict of float32 tensors as torch wrote it before 1.6: 5 pickles, numbers.

A number that marks the format, its version, the machine's sizes, the tensors as
views of storages, the storages' names in order; then of every storage its count
in 8 bytes and its numbers. `torch_file` reads what torch writes since.
"""

import io
import pathlib
import pickletools
import struct
from typing import Any

import numpy as np

from posterior_jax.priors.checkpoints import tensor_pickle
from posterior_jax.priors.checkpoints.torch_archive import Refused
from posterior_jax.priors.checkpoints.torch_tensors import Tensors

_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES = 5


def read(path: pathlib.Path, most: int) -> dict[str, np.ndarray]:
  """The tensors of such a file; no code of it is run.

  Args:
    path: of the file.
    most: bytes that it may have, by what its reader needs of it.

  Raises:
    ValueError: for a file that is truncated, changed, above `most` bytes or of
      another format, and for a class that no dict of tensors needs, named.
  """
  with path.open("rb") as file:
    data = file.read(most + 1)  # and no more, however large it is
  if len(data) > most or not data.startswith(_MAGIC):
    raise ValueError(
      f"{path.name} must be a file of torch before 1.6, of at most {most} bytes"
    )
  try:
    *_, described, names, rest = _split(data)
    keys = tensor_pickle.load(names, Tensors(_Storages({})))
    storages = _Storages(_numbers(keys, rest))
    found = tensor_pickle.load(described, _Views(storages))
  except Refused as error:
    raise ValueError(f"{path.name} {error}") from None
  if not isinstance(found, dict) or not all(
    isinstance(name, str) and isinstance(value, np.ndarray)
    for name, value in found.items()
  ):
    raise ValueError(f"{path.name} must hold tensors by name")
  return found


class _Storages:
  """Numbers by the names of their storages."""

  def __init__(self, found: dict[str, bytes]) -> None:
    self._found = found
    self.held = sum(map(len, found.values()))

  def read(self, name: str) -> bytes:
    """Those of "data/KEY"."""
    key = name.removeprefix("data/")
    if key not in self._found:
      raise Refused("lacks a storage that a tensor names")
    return self._found[key]


class _Views(Tensors):
  """Storages have a sixth entry, which was for views of storages."""

  def storage(self, pid: Any) -> np.ndarray:
    """As today's, where it is no view."""
    *today, view = pid
    if view is not None:
      raise Refused("has a view of a storage, which is not read")
    return super().storage(today)


def _split(data: bytes) -> list[bytes]:
  """Five pickles and the rest."""
  file, ends = io.BytesIO(data), [0]
  try:
    for _ in range(_PICKLES):
      for count, _ in enumerate(pickletools.genops(file)):
        if count >= tensor_pickle.MOST_OPERATIONS:
          raise Refused("has a pickle of too many operations")
      ends.append(file.tell())
  except ValueError:
    raise Refused("is truncated or changed") from None
  return [data[a:b] for a, b in zip(ends, [*ends[1:], len(data)])]


def _numbers(keys: Any, rest: bytes) -> dict[str, bytes]:
  """Every storage's float32 numbers, which fill the file to its end."""
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise Refused("must list its storages' names")
  found, place = {}, 0
  for key in keys:
    if len(rest) < place + 8:
      raise Refused("is truncated or changed")
    (count,) = struct.unpack_from("<q", rest, place)
    end = place + 8 + 4 * count
    if count < 0 or end > len(rest):
      raise Refused("is truncated or changed")
    found[key] = rest[place + 8 : end]
    place = end
  if place != len(rest):
    raise Refused("is truncated or changed")
  return found
