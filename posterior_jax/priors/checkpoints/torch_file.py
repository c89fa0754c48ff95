"""Tensors out of the files of `torch.save`, without torch and without code.

Such a file is a zip (`torch_archive`): `data.pkl` describes tensors as views of
storages (`tensor_pickle`), which lie beside it as plain numbers.
"""

import pathlib

import numpy as np

from posterior_jax.foreign_files.messages import shown
from posterior_jax.priors.checkpoints import tensor_pickle
from posterior_jax.priors.checkpoints.torch_archive import Archive, Refused
from posterior_jax.priors.checkpoints.torch_tensors import Tensors


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
      named; for an entry that is no tensor, named; for a description that
      takes more time or memory than tensors need.
  """
  try:
    with Archive(path) as archive:
      found = tensor_pickle.load(archive.pickle(), Tensors(archive))
  except Refused as error:
    raise ValueError(f"{path.name} {error}") from None
  if not isinstance(found, dict):
    raise ValueError(
      f"{path.name} must hold a dict of tensors, got {_kind(found)}"
    )
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
      raise ValueError(
        f"{path.name} must hold tensors by name, but its {shown(name)} is of "
        f"type {_kind(value)}"
      )
  return dict(found)


def _kind(value: object) -> str:
  return "tuple" if isinstance(value, tuple) else type(value).__name__
