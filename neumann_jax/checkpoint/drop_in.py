"""A Hugging Face directory again, with a model's weights in place of its own.

What this package does not read goes out as it came in: towers for pictures,
`mtp.*`, tokenizer, chat template, ids of special tokens, options of generation.
A safetensors file is copied and the bytes of its text tensors are written over:
the header stays true, because neither dtype nor shape of a tensor changes.
"""

import dataclasses
import json
import pathlib
import shutil
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from neumann_jax.checkpoint import hf_config, hf_layout, params
from neumann_jax.checkpoint.hf_layout import Piece, Tensor
from neumann_jax.checkpoint.safetensors_io import Files
from neumann_jax.foreign_files import tensor_file
from neumann_jax.foreign_files.folder import own_file
from neumann_jax.foreign_files.messages import clean
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model_config import ModelConfig

_DTYPES: dict[str, Any] = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
}
# The same weights in other formats: they would be the old ones.
_OTHER_WEIGHTS: tuple[str, ...] = (
  ".bin",
  ".pt",
  ".pth",
  ".ckpt",
  ".gguf",
  ".h5",
  ".msgpack",
)
_OTHER_WEIGHTS += (".onnx", ".ot", ".npz")


class _Home(NamedTuple):
  """What a stored tensor is: one of the model's, or a part of one."""

  tensor: Tensor
  piece: Piece | None


def check(config: ModelConfig, like: pathlib.Path) -> list[pathlib.Path]:
  """The files of a directory that another of its kind is made of.

  Args:
    config: of the model whose weights are written.
    like: a directory that `load` reads.

  Raises:
    FileNotFoundError: if a file of `like` is missing.
    ValueError: for another architecture, a file that is truncated or a link
      that leads out, or tensors of a dtype that weights are not written in.
  """
  found = hf_config.read_config(like)
  # A text model saved by itself goes back into the class that it came from.
  config = dataclasses.replace(config, vision_language=found.vision_language)
  if found != config:
    raise ValueError(
      f"like must hold a model of the same architecture, but the config.json "
      f"of {like} differs in {', '.join(_differences(found, config))}"
    )
  tensors, tied = hf_layout.tensors(config), config.tie_word_embeddings
  Files(like, hf_config.read_block_size(like)).check(tensors, tied=tied)
  # A link that leads out of `like` would bring another's file in.
  files = [
    own_file(like, path.name)
    for path in sorted(like.iterdir())
    if path.is_file() and not _is_other_weights(path.name)
  ]
  homes = _homes(tensors, tied=tied)
  for path in files:
    if path.suffix == ".safetensors":  # named by the index or not
      _check_file(path, homes)
  return files


def _check_file(path: pathlib.Path, homes: dict[str, _Home]) -> None:
  try:
    opened = tensor_file.opened(path)
  except ValueError as error:
    raise ValueError(
      f"{path} is truncated or not safetensors ({error})"
    ) from None
  for name in opened.keys():
    home = homes.get(hf_layout.text_name(name))
    if home is None:
      continue
    found, where = opened.get_slice(name), f"{clean(name)} in {path.name}"
    if (dtype := found.get_dtype()) not in _DTYPES:
      raise ValueError(
        f"{where} must be one of {', '.join(_DTYPES)} to be written over, got "
        f"{dtype}: save without like"
      )
    shape = home.tensor.shape if home.piece is None else home.piece.shape
    if tuple(found.get_shape()) != shape:
      raise ValueError(
        f"{where} must have shape {shape} to be written over, got "
        f"{clean(str(found.get_shape()))}"
      )


def write(
  model: LanguageModel, like: pathlib.Path, folder: pathlib.Path
) -> None:
  """Fills a folder with the files of another and the weights of a model.

  Args:
    model: of the architecture of `like`.
    like: a directory that `load` reads.
    folder: an empty one.

  Raises:
    FileNotFoundError: as `check`.
    ValueError: as `check`.
  """
  # All of `like` is checked before a file is copied.
  files, config = check(model.config, like), model.config
  tensors = hf_layout.tensors(config)
  homes = _homes(tensors, tied=config.tie_word_embeddings)
  sources = params.Sources(model)
  for path in files:
    shutil.copyfile(path, folder / path.name)
    if path.suffix == ".safetensors":
      _overwrite(folder / path.name, homes, sources)


def _is_other_weights(name: str) -> bool:
  """Whether a file, or the index of several, holds weights in other formats."""
  return name.removesuffix(".index.json").endswith(_OTHER_WEIGHTS)


def _differences(found: Any, want: Any) -> list[str]:
  fields = vars(want)
  return [name for name in fields if getattr(found, name) != fields[name]]


def _homes(tensors: tuple[Tensor, ...], *, tied: bool) -> dict[str, _Home]:
  homes = {}
  for tensor in tensors:
    homes[tensor.name] = _Home(tensor, None)
    for piece in tensor.pieces:
      homes[piece.name] = _Home(tensor, piece)
  if tied:  # some files of tied models hold the output matrix all the same
    homes["lm_head.weight"] = homes["model.embed_tokens.weight"]
  return homes


def _overwrite(
  path: pathlib.Path, homes: dict[str, _Home], sources: params.Sources
) -> None:
  """Writes the model's tensors over those of a file."""
  newest: tuple[str, np.ndarray] | None = None
  with path.open("r+b") as file:
    for name, entry, place in _entries(file):
      home = homes.get(hf_layout.text_name(name))
      if home is None:
        continue
      # Experts that lie apart follow each other, and are parts of one array.
      if newest is None or newest[0] != home.tensor.name:
        parts = (sources.get(param) for param in home.tensor.params)
        newest = home.tensor.name, home.tensor.join(*parts)
      value = newest[1] if home.piece is None else newest[1][home.piece.place]
      stored = np.ascontiguousarray(value, _DTYPES[entry["dtype"]])
      file.seek(place)
      file.write(stored.reshape(-1).view(np.uint8).data)


def _entries(file: Any) -> Iterator[tuple[str, dict[str, Any], int]]:
  """Names, entries and places of the tensors of a safetensors file."""
  (length,) = struct.unpack("<Q", file.read(8))
  header = json.loads(file.read(length))
  header.pop("__metadata__", None)
  inner = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
  for name, entry in inner:
    yield name, entry, 8 + length + entry["data_offsets"][0]
