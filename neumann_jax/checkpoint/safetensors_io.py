"""The safetensors files of a Hugging Face directory, a tensor at a time."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import safetensors

from neumann_jax.checkpoint import hf_layout
from neumann_jax.checkpoint.hf_layout import Tensor
from neumann_jax.foreign_files import folder, json_file, tensor_file
from neumann_jax.foreign_files.messages import clean, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Prefixes of what is no part of the text model.
_IGNORED = ("mtp.", "model.visual.", "visual.", "model.language_model.mtp.")
# What numpy and ml_dtypes hold.
_DTYPES = ("F32", "F16", "BF16", "F64")
# Of a matrix that is multiplied by its scales, one for each block of it.
_CODES, _SCALES = "F8_E4M3", "_scale_inv"
# A wrong config would list hundreds.
_SHOWN = 4  # names that a message lists


class Files:
  """Tensors of a directory by their name in a text model.

  Files are mapped into memory; a tensor is copied when it is read.

  Args:
    path: a directory with one safetensors file or several and their index.
    block_size: rows and columns that share a scale, for matrices in e4m3; None
      where there are none.

  Attributes:
    shapes: shape of every tensor of the text model.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: for a file that is truncated or corrupt or lies elsewhere, for
      an index that names what its files lack, and for a dtype that is not
      floating point.
  """

  def __init__(
    self, path: pathlib.Path, block_size: tuple[int, int] | None = None
  ) -> None:
    self.path, self._block_size = path, block_size
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._code_files: dict[str, str] = {}  # of tensors in e4m3
    self._homes: dict[str, tuple[safetensors.safe_open, str]] = {}
    single = folder.own_file(path, SINGLE).is_file()
    index = None if single else _read_index(path)
    files = [SINGLE] if index is None else sorted(set(index.values()))
    # Files of nothing but what is left out may be left out as well.
    needed = {
      file
      for name, file in (index or {}).items()
      if not name.startswith(_IGNORED)
    }
    there = [file for file in files if folder.own_file(path, file).is_file()]
    for file in files:
      if file not in there and (index is None or file in needed):
        raise FileNotFoundError(
          f"{path / INDEX} names {clean(file)}, which is missing"
        )
    held: dict[str, set[str]] = {}
    for file in there:
      held[file] = self._open(file)
      # Many small files, each of which lists as much as one may.
      if sum(map(len, held.values())) > json_file.MOST_NAMES:
        raise ValueError(
          f"{path} holds more than {json_file.MOST_NAMES} tensors"
        )
    for name, file in (index or {}).items():
      if file in held and name not in held[file]:
        raise ValueError(
          f"{path / INDEX} names {clean(name)}, which {clean(file)} lacks"
        )
    self._pair_scales()

  def read(self, tensor: Tensor) -> np.ndarray:
    """The tensor, put together if the files hold its pieces."""
    if tensor.name in self.shapes or not tensor.pieces:
      return self._get(tensor.name)
    # One buffer of the whole, filled piece by piece: the dtype is that of a
    # file.
    first = self._get(next(iter(tensor.pieces)).name)
    whole = np.empty(tensor.shape, first.dtype)
    for piece in tensor.pieces:
      whole[piece.place] = self._get(piece.name)
    return whole

  def check(self, wanted: Sequence[Tensor], *, tied: bool) -> None:
    """Raises ValueError unless the tensors are those wanted.

    Args:
      wanted: all that the model needs.
      tied: whether the output matrix may be there though it is not needed.
    """
    # Some files of tied models hold the output matrix all the same.
    left = set(self.shapes) - ({"lm_head.weight"} if tied else set())
    missing, misshapen = [], []
    for name, shape in self._expected(wanted):
      if name not in self.shapes:
        missing.append(name)
      elif self.shapes[name] != shape:
        found = clean(str(self.shapes[name]), most=20)
        misshapen.append(f"{name} is {found}, not {shape}")
      left.discard(name)
    surplus = [clean(name, most=40) for name in sorted(left)]
    groups = {"missing": missing, "surplus": surplus}
    groups["misshapen"] = misshapen
    wrong = [_listed(kind, names) for kind, names in groups.items() if names]
    if wrong:
      raise ValueError(
        f"tensors in {self.path} do not fit its config.json: {'; '.join(wrong)}"
      )

  def check_tied(self) -> None:
    """Raises ValueError where an output matrix is not the embedding."""
    if "lm_head.weight" not in self.shapes:
      return
    embedding = self._get("model.embed_tokens.weight")
    if not np.array_equal(self._get("lm_head.weight"), embedding):
      raise ValueError(
        f"lm_head.weight in {self.path} must equal the embedding, for its "
        "config.json has tie_word_embeddings"
      )

  def _expected(
    self, wanted: Sequence[Tensor]
  ) -> Iterator[tuple[str, tuple[int, ...]]]:
    # Both forms are published; a file that mixes them lacks some of either.
    named = 0
    for tensor in wanted:
      whole = tensor.name in self.shapes
      named += 0 if whole else len(tensor.pieces)
      # More pieces than tensors are not there, and would take long to name.
      apart = not whole and named <= len(self.shapes)
      if apart and any(p.name in self.shapes for p in tensor.pieces):
        yield from ((p.name, p.shape) for p in tensor.pieces)
      else:
        yield tensor.name, tensor.shape

  def _get(self, name: str) -> np.ndarray:
    value = self._stored(name)
    if name in self._code_files:
      value = value * self._scales(name)
    tensor_file.check_finite(str(self.path), name, value)
    return value

  def _stored(self, name: str) -> np.ndarray:
    """As it is in the file, but for codes in e4m3, which are floats here."""
    file, stored = self._homes[name]
    if name not in self._code_files:
      return file.get_tensor(stored)
    # safetensors gives no numpy array of them. The format: the length of a JSON
    # header in 8 bytes, it, and then the data.
    with (self.path / self._code_files[name]).open("rb") as f:
      length = int.from_bytes(f.read(8), "little")
      start, end = json.loads(f.read(length))[stored]["data_offsets"]
      f.seek(8 + length + start)
      data = f.read(end - start)
    codes = np.frombuffer(data, ml_dtypes.float8_e4m3fn)
    return codes.reshape(self.shapes[name]).astype(np.float32)

  def _scales(self, name: str) -> np.ndarray:
    """One for each entry of a matrix in e4m3."""
    scales = self._stored(name + _SCALES).astype(np.float32)
    assert self._block_size is not None
    for axis, size in zip((-2, -1), self._block_size):
      # The last block of an axis is shorter where the size does not divide it.
      length = self.shapes[name][axis]
      scales = scales.repeat(min(size, length), axis)
      scales = scales.take(range(length), axis)
    return scales

  def _pair_scales(self) -> None:
    """Takes scales out of the tensors; raises where a matrix lacks its own."""
    for name in sorted(self._code_files):
      shape, scales = self.shapes[name], self.shapes.pop(name + _SCALES, None)
      if self._block_size is None or len(shape) < 2:
        raise ValueError(
          f"{clean(name)} in {self.path} is in e4m3, which needs a matrix and "
          "a weight_block_size in the quantization_config of config.json"
        )
      blocks = tuple(-(-n // b) for n, b in zip(shape[-2:], self._block_size))
      if scales != (*shape[:-2], *blocks):
        raise ValueError(
          f"{clean(name)}{_SCALES} in {self.path} must have shape "
          f"{(*shape[:-2], *blocks)}, got {scales}"
        )

  def _open(self, file: str) -> set[str]:
    """Enters the tensors of a file, and returns their names in it."""
    try:
      opened = tensor_file.opened(self.path / file)
    except ValueError as error:
      raise ValueError(
        f"{self.path / file} is truncated or not safetensors ({error})"
      ) from None
    # Vision towers and the like are known, so that an index may name them, and
    # left out.
    stored = set(opened.keys())
    for key in stored:
      if not key.startswith(_IGNORED):
        self._enter(file, opened, key)
    return stored

  def _enter(self, file: str, opened: safetensors.safe_open, key: str) -> None:
    name = hf_layout.text_name(key)
    found = opened.get_slice(key)
    if found.get_dtype() == _CODES:
      self._code_files[name] = file
    elif found.get_dtype() not in _DTYPES:
      raise ValueError(
        f"{clean(key)} in {self.path / file} must be one of "
        f"{', '.join(_DTYPES)}, got {found.get_dtype()}"
      )
    if name in self.shapes:
      raise ValueError(f"{self.path} holds {clean(name)} more than once")
    self.shapes[name] = tuple(found.get_shape())
    self._homes[name] = opened, key


def _read_index(path: pathlib.Path) -> dict[str, str]:
  file = folder.own_file(path, INDEX)
  if not file.is_file():
    raise FileNotFoundError(f"path must hold {SINGLE} or {INDEX}, got {path}")
  try:
    index = json_file.read_names(file, "weight_map")
  except ValueError as error:
    raise ValueError(
      f"{file} must be JSON with a weight_map ({error})"
    ) from None
  homes = {}
  for name, home in index.items():
    if not isinstance(home, str):
      raise ValueError(
        f"{file} must name the file of {clean(name)}, got {shown(home)}"
      )
    homes[name] = home
  return homes


def _listed(kind: str, names: Sequence[str]) -> str:
  rest = len(names) - _SHOWN
  more = f" and {rest} more" if rest > 0 else ""
  few = ", ".join(names[:_SHOWN])
  return f"{len(names)} {kind} ({few}{more})"
