"""Tensors into safetensors files of bounded size, and the index of these."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
from safetensors.numpy import save_file

from neumann_jax.checkpoint.safetensors_io import INDEX, SINGLE


def write(
  path: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  *,
  max_shard_bytes: int,
) -> None:
  """Writes named tensors into an existing folder, in their order.

  Args:
    path: the folder.
    tensors: taken one by one; those of one file are held in memory together.
    max_shard_bytes: of the tensors of a file, unless one alone is larger.
  """
  shards: list[list[str]] = []
  total = size = 0
  held: dict[str, np.ndarray] = {}

  def flush() -> None:
    # How many files there will be is known at the end: names come then.
    file = path / f"{len(shards)}.part"
    # transformers asks for this mark, and refuses files without it.
    save_file(held, file, metadata={"format": "pt"})
    shards.append(list(held))
    held.clear()

  for name, tensor in tensors:
    if held and size + tensor.nbytes > max_shard_bytes:
      flush()
      size = 0
    held[name] = np.ascontiguousarray(tensor)
    size, total = size + tensor.nbytes, total + tensor.nbytes
  flush()
  _name_shards(path, shards, total)


def _name_shards(
  path: pathlib.Path, shards: list[list[str]], total: int
) -> None:
  count = len(shards)
  if count == 1:
    (path / "0.part").rename(path / SINGLE)
    return
  homes: dict[str, str] = {}
  for i, names in enumerate(shards):
    file = f"model-{i + 1:05}-of-{count:05}.safetensors"
    (path / f"{i}.part").rename(path / file)
    homes |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": total}, "weight_map": homes}
  (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")
