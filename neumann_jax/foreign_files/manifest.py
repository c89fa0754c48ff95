"""A model as two files: weights, and a manifest that promises their hash."""

import hashlib
import pathlib
from typing import Any, TypeVar

import msgspec
import numpy as np

from . import folder, json_file, tensor_file
from .messages import clean, shown

T = TypeVar("T")


class _Weights(msgspec.Struct):
  """What every manifest says; others say more."""

  file: str
  sha256: str


def read(
  manifest: pathlib.Path, field: str, kind: type[T], *, eight_bits: bool = False
) -> tuple[T, pathlib.Path, dict[str, np.ndarray]]:
  """What a manifest says of a model, and its verified weights.

  Args:
    manifest: NAME.json.
    field: under which it has the shape of the model.
    kind: the dataclass of that shape.
    eight_bits: whether weights may be whole numbers of 8 bits.

  Returns:
    The shape; the path of the weights, beside the manifest; tensors by name,
    all finite.

  Raises:
    FileNotFoundError: if there is no such manifest.
    ValueError: if it says no such model, or the weights are missing, changed,
      not finite or elsewhere.
  """
  said = _said(manifest)
  try:
    promised = json_file.typed(said, _Weights)
    config = json_file.fields(said.get(field), kind, name=field)
  except ValueError as error:
    raise ValueError(
      f"{manifest.name} must name file, sha256 and {field} (the fields of "
      f"{kind.__name__}); it does not: {error}"
    ) from None
  path = folder.own_file(manifest.parent, promised.file)
  return config, path, _verified(manifest, path, promised.sha256, eight_bits)


def _said(manifest: pathlib.Path) -> dict[str, Any]:
  try:
    return json_file.typed(json_file.read(manifest), dict[str, Any])
  except ValueError as error:
    raise ValueError(f"{manifest.name} is no manifest: {error}") from None


def _verified(
  manifest: pathlib.Path, path: pathlib.Path, promised: str, eight_bits: bool
) -> dict[str, np.ndarray]:
  name = clean(path.name)
  if not path.is_file():
    raise ValueError(f"{manifest.name} names {name}, which is not there")
  weights = path.read_bytes()
  # The hash first: nothing is parsed of a file that is not the one promised;
  # and of the bytes that are parsed, so that no one can come between.
  found = hashlib.sha256(weights).hexdigest()
  if found != promised:
    raise ValueError(
      f"{name} has sha256 {found}, but {manifest.name} says {shown(promised)}"
    )
  try:
    tensors = tensor_file.parse(weights, eight_bits=eight_bits)
  except ValueError as error:
    raise ValueError(f"{name} is no safetensors file: {error}") from None
  for key, value in tensors.items():
    tensor_file.check_finite(name, key, value)
  return tensors
