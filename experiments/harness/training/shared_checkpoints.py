"""Checkpoints that many processes write together, each its own part."""

import pathlib
from typing import Any

import jax

from neumann_jax.checkpoint import orbax_tree

_WRITER = "a run of several processes"


def save(path: pathlib.Path, arrays: dict[str, Any]) -> None:
  """Writes arrays by name; see `orbax_tree.write`."""
  orbax_tree.write(arrays, path.absolute(), {"shapes": _shapes(arrays)})


def fault(path: pathlib.Path) -> str:
  """What is wrong with the files of a checkpoint, or nothing."""
  try:
    orbax_tree.read_metadata(path.absolute(), writer=_WRITER)
  except ValueError as error:
    return str(error)
  return ""


def restore(
  path: pathlib.Path, like: dict[str, Any]
) -> dict[str, jax.Array] | None:
  """The arrays of a checkpoint, each where its namesake in `like` lies.

  They may have been written on another mesh. None if they are not those.
  """
  path = path.absolute()
  metadata = orbax_tree.read_metadata(path, writer=_WRITER)
  if metadata["shapes"] != _shapes(like):
    return None
  targets = {name: _target(x) for name, x in like.items()}
  return orbax_tree.read(path, targets, writer=_WRITER)


def _target(x: Any) -> Any:
  """What Orbax is told of an array; of the host's, one of its kind."""
  if not isinstance(x, jax.Array):
    return x
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _shapes(arrays: dict[str, Any]) -> dict[str, list]:
  return {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}
