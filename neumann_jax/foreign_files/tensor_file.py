"""safetensors files: the header measured first, and numbers that are finite."""

import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from . import folder
from .messages import clean, shown

MOST_HEADER = 16 << 20
# Each takes a kilobyte once it is read, of the 57 bytes that an empty one takes
# in a header; a file of 5 GB has some thousand.
MOST_TENSORS = 50_000
_LENGTH = 8  # bytes of the header's length
# safetensors' own table for bytes lacks bfloat16.
_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
}


def opened(path: pathlib.Path) -> safetensors.safe_open:
  """The file, mapped into memory: tensors are copied when they are asked for.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is truncated or of another kind; a clause.
  """
  held = folder.size(path)
  with path.open("rb") as file:
    _check_header(file, held)
  try:
    return safetensors.safe_open(path, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(clean(str(error))) from None


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file by name.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: as `opened`, and for a dtype that numpy does not hold; a clause.
  """
  file = opened(path)
  found = {}
  for name in file.keys():
    try:
      found[name] = file.get_tensor(name)
    except Exception as error:  # numpy and Rust have many words for a dtype
      reason = clean(str(error))
      raise ValueError(f"{shown(name)} cannot be read, {reason}") from None
  return found


def parse(data: bytes, *, eight_bits: bool = False) -> dict[str, np.ndarray]:
  """All tensors of the bytes of a file.

  Args:
    data: the bytes.
    eight_bits: whether whole numbers of 8 bits are read too.

  Raises:
    ValueError: as `read`, and for a dtype that is not floating point, or not
      one of 8 bits where those are read.
  """
  known: dict[str, Any] = dict(_DTYPES)
  if eight_bits:
    known["I8"] = np.int8
  _check_header(io.BytesIO(data), len(data))
  try:
    entries = safetensors.deserialize(data)
  except safetensors.SafetensorError as error:
    raise ValueError(clean(str(error))) from None
  found = {}
  for name, entry in entries:
    if (dtype := entry["dtype"]) not in known:
      raise ValueError(f"{shown(name)} has the dtype {clean(dtype)}")
    flat = np.frombuffer(entry["data"], known[dtype])
    found[name] = flat.reshape(entry["shape"])
  return found


def check_held(
  where: str,
  shapes: Mapping[str, tuple[int, ...]],
  *,
  layers: Mapping[str, int],
  sizes: Mapping[str, int],
) -> None:
  """Refuses a model of more than its files hold, before it is built.

  Args:
    where: the tensors are, for the message.
    shapes: of the tensors by name.
    layers: how many a config promises by the name of the promise; every layer
      has a tensor of its own.
    sizes: of axes, by name; every axis is some tensor's.

  Raises:
    ValueError: naming the first that is larger than all the tensors.
  """
  numbers = sum(math.prod(shape) for shape in shapes.values())
  for kind, promised, held in (
    ("tensors", layers, len(shapes)),
    ("numbers", sizes, numbers),
  ):
    for name, value in promised.items():
      if value > held:
        raise ValueError(
          f"{name} must be at most the {held} {kind} that {where} holds, got "
          f"{shown(value)}"
        )


def check_finite(where: str, name: str, array: np.ndarray) -> None:
  """Raises ValueError for what is a NaN or an infinity in float32.

  Args:
    where: the file or folder, for the message.
    name: of the tensor there.
    array: its numbers.
  """
  # Models are of float32 at most, where 1e39 of a float64 file is infinite.
  with np.errstate(over="ignore"):
    single = array.astype(np.float32) if array.dtype == np.float64 else array
  if not np.isfinite(single).all():
    raise ValueError(
      f"{clean(name)} in {where} must be finite, but holds NaN or infinities"
    )


def _check_header(file: BinaryIO, held: int) -> None:
  start = file.read(_LENGTH)
  length = int.from_bytes(start, "little")
  if len(start) < _LENGTH or length > held - _LENGTH:
    raise ValueError(f"its header ends after its {held} bytes")
  if length > MOST_HEADER:
    raise ValueError(f"its header has {length} bytes, more than {MOST_HEADER}")
  # An object for each tensor, one around them: counted, not parsed.
  if file.read(length).count(b"{") > MOST_TENSORS:
    raise ValueError(f"its header lists more than {MOST_TENSORS} tensors")
