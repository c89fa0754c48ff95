"""The tensors that a pickle of torch may name, within what its file holds."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from posterior_jax.foreign_files.messages import clean, shown
from posterior_jax.priors.checkpoints.torch_archive import Refused

# Tied weights are one storage under a few names; a stride of 0 is any size.
MOST_REPEATS = 4
_MOST_AXES = 32
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


class Storages(Protocol):
  """Where the numbers are."""

  held: int

  def read(self, name: str) -> bytes:
    """Those of an entry."""


class _StorageType(NamedTuple):
  """Stands for a class such as torch.FloatStorage."""

  dtype: Any


class Function(NamedTuple):
  """Stands for a function of torch."""

  call: Callable[..., Any]


class Tensors:
  """Names, storages and the views of them, within what the file holds."""

  def __init__(self, storages: Storages) -> None:
    self._storages = storages
    self._read: dict[str, bytes] = {}
    # Small tensors may repeat their numbers as they like.
    self._left = MOST_REPEATS * storages.held + (1 << 24)
    self._known: dict[tuple[str, str], Any] = {
      ("collections", "OrderedDict"): Function(OrderedDict),
      ("torch._utils", "_rebuild_tensor_v2"): Function(self._view),
      ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    }

  def find(self, module: Any, name: Any) -> Any:
    """What stands for a name of torch or Python."""
    # Tuples of tuples of one tuple take for ever to hash, or to print.
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a name is no text")
    if module == "torch" and name in _DTYPES:
      return _StorageType(_DTYPES[name])
    if (module, name) not in self._known:
      found = clean(f"{module}.{name}")
      raise Refused(f"names the class {found}, which no dict of tensors needs")
    return self._known[module, name]

  def storage(self, pid: Any) -> np.ndarray:
    """[count], read once however many tensors share it."""
    kind, storage, key, _, count = pid
    if kind != "storage" or not isinstance(storage, _StorageType):
      raise Refused(f"names {shown(kind)}, which is no storage of numbers")
    if not isinstance(key, str) or not isinstance(count, int):
      raise ValueError("a storage has no name or no size")
    if key not in self._read:
      self._read[key] = self._storages.read(f"data/{key}")
    data, dtype = self._read[key], np.dtype(storage.dtype)
    if len(data) != count * dtype.itemsize:
      raise Refused(
        f"has a storage {clean(key)} of {len(data)} bytes, not {count} of "
        f"{dtype}"
      )
    return np.frombuffer(data, dtype)

  def _view(
    self,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    *_: Any,
  ) -> np.ndarray:
    """A view of the storage; gradients, hooks and metadata are left out."""
    if not isinstance(storage, np.ndarray):
      raise Refused("has a tensor without a storage")
    plain = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not plain or len(shape) != len(strides) or len(shape) > _MOST_AXES:
      raise Refused("has a tensor with impossible strides")
    numbers = [offset, *shape, *strides]
    if not all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers):
      raise Refused("has a tensor with impossible strides")
    size = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if size and last >= storage.size:
      raise Refused("has a tensor that ends outside of its storage")
    self._left -= size * storage.itemsize
    if self._left < 0:
      raise Refused("has tensors that repeat their storages too often")
    return np.lib.stride_tricks.as_strided(
      storage[offset:],
      tuple(shape),
      [storage.itemsize * s for s in strides],
      writeable=False,
    )


def _parameter(data: Any, *_: Any) -> Any:
  """The parameter's numbers."""
  return data
