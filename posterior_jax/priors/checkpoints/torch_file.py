"""Tensors out of the files of `torch.save`, without torch and without code.

Such a file is a zip: `data.pkl` describes tensors as views of storages, which
lie beside it as plain numbers. A pickle can call anything, so this reader knows
a handful of names, none of which is the real thing, and refuses all others.
"""

import io
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
# How files of torch before 1.6 begin: the pickle of a number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class _Refused(Exception):
  """What the unpickler met, as a clause of the message."""


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file that `torch.save` wrote.

  Args:
    path: of a dict of tensors (a state dict), in the zip format of torch 1.6
      and later.

  Returns:
    Read-only views by name, as strided in the file; bfloat16 by ml_dtypes.

  Raises:
    ValueError: for a file that is truncated, changed, of the formats before
      1.6, or no file of torch; for a class that no dict of tensors needs,
      named; for an entry that is no tensor, named.
  """
  try:
    with zipfile.ZipFile(path) as file:
      found = _Archive(file).load()
  except zipfile.BadZipFile as error:
    raise ValueError(f"{path.name} {_reason(path, error)}") from None
  except _Refused as error:
    raise ValueError(f"{path.name} {error}") from None
  if not isinstance(found, dict):
    raise ValueError(
      f"{path.name} must hold a dict of tensors, got {type(found).__name__}"
    )
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
      raise ValueError(
        f"{path.name} must hold tensors by name, but its {name!r} is of type "
        f"{type(value).__name__}"
      )
  return dict(found)


def _reason(path: pathlib.Path, error: Exception) -> str:
  """Why a file is no zip."""
  with path.open("rb") as file:
    start = file.read(512)
  if start.startswith(_LEGACY):
    return "is of torch before 1.6: load it there and save it again"
  if start[257:262] == b"ustar":
    return "is a tar of torch before 0.2: load it there and save it again"
  if start.startswith(b"PK"):
    return f"is truncated or changed: {error}"
  return "must be a zip file as torch.save writes it, and is none"


class _StorageType(NamedTuple):
  """Stands for a class such as torch.FloatStorage."""

  dtype: Any


class _RebuildTensor(NamedTuple):
  """Stands for torch._utils._rebuild_tensor_v2."""

  def __call__(
    self,
    storage: np.ndarray,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    *_: Any,
  ) -> np.ndarray:
    """A view of the storage; gradients, hooks and metadata are left out."""
    if not isinstance(storage, np.ndarray):
      raise _Refused("has a tensor without a storage")
    numbers = [offset, *shape, *strides]
    whole = all(isinstance(n, int) and n >= 0 for n in numbers)
    if not whole or len(shape) != len(strides):
      raise _Refused("has a tensor with impossible strides")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if math.prod(shape) and last >= storage.size:
      raise _Refused("has a tensor that ends outside of its storage")
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(
      storage[offset:],
      tuple(shape),
      [size * s for s in strides],
      writeable=False,
    )


class _RebuildParameter(NamedTuple):
  """Stands for torch._utils._rebuild_parameter."""

  def __call__(self, data: np.ndarray, *_: Any) -> np.ndarray:
    """The parameter's numbers."""
    return data


# Tuples cannot be changed by what a pickle asks of them.
_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
  ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
} | {("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
  """Knows the names above alone; storages come from the archive."""

  def __init__(self, data: bytes, archive: "_Archive"):
    super().__init__(io.BytesIO(data), encoding="utf-8")
    self._archive = archive

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise _Refused(
        f"names the class {module}.{name}, which no dict of tensors needs"
      )
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, storage, key, _, count = pid
    if kind != "storage" or not isinstance(storage, _StorageType):
      raise _Refused(f"names {kind!r}, which is no storage of numbers")
    return self._archive.storage(str(key), np.dtype(storage.dtype), count)


class _Archive:
  """The zip: its one folder, `data.pkl` in it and the storages."""

  def __init__(self, file: zipfile.ZipFile):
    self._file = file
    self._storages: dict[tuple[str, np.dtype], np.ndarray] = {}
    pickles = [n for n in file.namelist() if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise _Refused("must hold one data.pkl as torch.save writes it")
    self._folder = pickles[0].removesuffix("data.pkl")

  def load(self) -> Any:
    """What `data.pkl` describes."""
    names = self._file.namelist()
    order = self._folder + "byteorder"
    if order in names and self._read("byteorder") != b"little":
      raise _Refused("was written by a big-endian machine, which is not read")
    try:
      return _Unpickler(self._read("data.pkl"), self).load()
    except (_Refused, zipfile.BadZipFile):
      raise
    except Exception as error:  # anything can come of a broken pickle
      raise _Refused(f"has a data.pkl that is broken: {error}") from None

  def storage(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
    """[count], read once however many tensors share it."""
    if (key, dtype) not in self._storages:
      data = self._read(f"data/{key}")
      if len(data) != count * dtype.itemsize:
        raise _Refused(
          f"has a storage {key} of {len(data)} bytes, not {count} of {dtype}"
        )
      self._storages[key, dtype] = np.frombuffer(data, dtype)
    return self._storages[key, dtype]

  def _read(self, name: str) -> bytes:
    try:
      entry = self._file.getinfo(self._folder + name)
    except KeyError:
      raise _Refused(f"lacks {name}") from None
    if entry.compress_type != zipfile.ZIP_STORED:
      raise _Refused(f"has a compressed {name}, which torch.save never writes")
    return self._file.read(entry)
