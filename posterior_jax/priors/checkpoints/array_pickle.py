"""Pickled dicts of numpy arrays, as checkpoints of plain JAX were often kept.

The names that numpy's pickles call are stood for by parts of ours: an array is
the bytes of the file under a shape that they must fill exactly.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from posterior_jax.foreign_files import folder
from posterior_jax.foreign_files.messages import clean, shown
from posterior_jax.priors.checkpoints import tensor_pickle
from posterior_jax.priors.checkpoints.torch_archive import Refused
from posterior_jax.priors.checkpoints.torch_tensors import Function

MOST_BYTES = 1 << 30  # of a file, which is held whole
_MOST_AXES = 32
_MOST_DEPTH = 8  # dicts within dicts
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a pickled dict of them.

  Args:
    path: of the file.

  Returns:
    Read-only arrays by name; "a/b" for those of a dict within the dict.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: for a file that is truncated or above 1 GiB, for a class that no
      array of numbers needs, named, and for an entry that is no array, named.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"path must be a pickled dict of arrays, got {path}"
    )
  if (size := folder.size(path)) > MOST_BYTES:
    raise ValueError(f"{path.name} has {size} bytes, above {MOST_BYTES}")
  try:
    found = tensor_pickle.load(path.read_bytes(), _Arrays())
    return dict(_flat(found, (), set()))
  except Refused as error:
    raise ValueError(f"{path.name} {error}") from None


class _Dtype:
  """Stands for numpy.dtype; its state says little-endian and no more."""

  def __init__(self, code: Any, *_: Any) -> None:
    if code not in _DTYPES:
      raise Refused(f"has an array of dtype {shown(code)}")
    self.dtype = np.dtype(code)

  def build(self, state: Any) -> None:
    """(version, byte order, no fields, ...) as `numpy.dtype.__reduce__`."""
    plain = all(part is None for part in state[2:5])
    if state[1] not in ("<", "|") or not plain:
      raise Refused("has an array that is not of plain little-endian numbers")


class _Array:
  """Stands for an array between its making and its contents."""

  value: np.ndarray | None = None

  def build(self, state: Any) -> None:
    """(version, shape, dtype, Fortran order, bytes)."""
    _, shape, kind, fortran, data = state
    few = isinstance(shape, tuple) and len(shape) <= _MOST_AXES
    if not few or not all(isinstance(n, int) and 0 <= n < 2**63 for n in shape):
      raise Refused("has an array of an impossible shape")
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes):
      raise Refused("has an array of other things than numbers")
    if len(data) != math.prod(shape) * kind.dtype.itemsize:
      raise Refused(
        f"has an array of {len(data)} bytes, not {shape} of {kind.dtype}"
      )
    order: Any = "F" if fortran is True else "C"
    self.value = np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _reconstruct(*_: Any) -> _Array:
  return _Array()


_KNOWN: dict[tuple[str, str], Callable[..., Any] | None] = {
  ("numpy", "ndarray"): None,  # an argument, never called
  ("numpy", "dtype"): _Dtype,
  # numpy 2 moved the module.
  ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
  ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Arrays:
  """The names of a pickle of arrays."""

  def find(self, module: Any, name: Any) -> Any:
    """What stands for a name of numpy."""
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a name is no text")
    if (module, name) not in _KNOWN:
      found = clean(f"{module}.{name}")
      raise Refused(f"names the class {found}, which no dict of arrays needs")
    call = _KNOWN[module, name]
    return None if call is None else Function(call)

  def storage(self, pid: Any) -> Any:
    """None: its numbers are all inside."""
    raise Refused("has numbers outside of itself, as no dict of arrays has")


def _flat(
  found: Any, above: tuple[str, ...], seen: set[int]
) -> list[tuple[str, np.ndarray]]:
  """Arrays of a dict of dicts under joined names."""
  where = "/".join(above)
  # A memo makes a dict its own entry, or one of 2^n paths.
  if isinstance(found, dict) and len(above) < _MOST_DEPTH:
    if id(found) in seen:
      raise Refused(f"has the dict {clean(where)} twice")
    seen.add(id(found))
    parts = (
      _flat(value, (*above, str(key)), seen) for key, value in found.items()
    )
    return [pair for part in parts for pair in part]
  value = found.value if isinstance(found, _Array) else None
  if value is None or not above:
    raise Refused(f"must hold arrays by name, but its {clean(where)!r} is none")
  return [(where, value)]
