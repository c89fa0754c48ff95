"""Models from and to folders of Orbax, with their config beside.

Orbax reads arrays at the same time and writes a traceback for each one that
fails. The names and lengths of its files (OCDBT, by tensorstore) are known
without reading them, so that a damaged folder is refused in one sentence first.
"""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from neumann_jax.checkpoint import hf_config
from neumann_jax.checkpoint.params import (
  Path,
  Shardings,
  abstract_model,
  flat_params,
  flat_shardings,
  on_default_device,
  with_params,
)
from neumann_jax.execution import Execution
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model.scan_layers import stack_layers, unstack_layers

Places = Mapping[Path, jax.sharding.Sharding | None]


def save_orbax(model: LanguageModel, path: str | pathlib.Path) -> None:
  """Writes the parameters with Orbax, each where its devices are.

  Args:
    model: of separate or of scanned layers.
    path: a new folder, in one that exists. It is there complete or not at all.

  Raises:
    FileExistsError: if something is at `path`; it stays as it was.
    FileNotFoundError: if the folder above does not exist.
  """
  path = pathlib.Path(path).absolute()
  if not path.parent.is_dir():
    raise FileNotFoundError(
      f"path must lie in a folder that exists, got {path}"
    )
  if path.exists():
    raise FileExistsError(f"path must be new, got {path}")
  metadata = {
    "config": hf_config.to_json(model.config, model.execution.param_dtype),
    "scan_layers": model.execution.scan_layers,
  }
  # A flat dictionary: the folder then depends on no class of flax.
  params = {_name(key): x for key, x in flat_params(model).items()}
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, params, custom_metadata=metadata)
  except BaseException:
    # Orbax writes beside the folder first, and leaves that behind on an error.
    for unfinished in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
      shutil.rmtree(unfinished)
    raise


def restore_orbax(
  path: str | pathlib.Path,
  execution: Execution = Execution(),  # noqa: B008  (frozen)
  *,
  shardings: Shardings | None = None,
) -> LanguageModel:
  """The model that `save_orbax` wrote.

  Layers may be scanned in one and separate in the other; then the parameters
  are on the devices twice for a while.

  Args:
    path: the folder.
    execution: how it is computed; parameters are cast to its `param_dtype`,
      A_log and dt_bias to float32.
    shardings: as for `load`.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if it was not written by `save_orbax`, or is damaged.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise FileNotFoundError(f"path must be a folder of save_orbax, got {path}")
  with ocp.StandardCheckpointer() as checkpointer, _whole(path):
    _check_files(path)
    metadata = checkpointer.metadata(path).custom_metadata
    config = hf_config.from_json(metadata["config"])
    scanned = bool(metadata["scan_layers"])
  stored = dataclasses.replace(execution, scan_layers=scanned)
  model = abstract_model(config, stored)
  # Stored as stacks or apart, it is read as it was stored, and turned after:
  # Orbax reads whole arrays.
  same = scanned == execution.scan_layers
  places = flat_shardings(model, shardings if same else None)
  with ocp.StandardCheckpointer() as checkpointer, _whole(path):
    found = checkpointer.restore(path, _targets(model, places))
  params = {key: found.pop(_name(key)) for key in places}
  model = with_params(model, _uncommitted(params, places))
  return model if same else _turned(model, shardings)


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[None]:
  """Whatever Orbax finds wrong with a folder, in one sentence."""
  try:
    yield
  except Exception as error:  # it raises Exception itself for lost data
    raise ValueError(
      f"{path} is damaged, or was not written by save_orbax"
    ) from error


def _turned(model: LanguageModel, shardings: Shardings | None) -> LanguageModel:
  """Separate layers of scanned ones, or the other way, where they belong."""
  # Turned on the device: a stack and its layers are there together for a while.
  turn = unstack_layers if model.execution.scan_layers else stack_layers
  model = turn(model)
  places = flat_shardings(model, shardings)
  params = flat_params(model)
  moved = {key: jax.device_put(params[key], places[key]) for key in places}
  return with_params(model, moved)


def _targets(
  model: LanguageModel, places: Places
) -> dict[str, jax.ShapeDtypeStruct]:
  # Orbax must be told a place; where it is left open, the default device.
  default = jnp.zeros(0).sharding
  return {
    _name(key): jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=places[key] or default
    )
    for key, x in flat_params(model).items()
  }


def _uncommitted(
  params: dict[Path, jax.Array], places: Places
) -> dict[Path, jax.Array]:
  """Arrays of an open place by way of the host, one by one.

  Orbax commits all that it reads, and no copy on the device undoes that.
  """
  return {
    key: x if places[key] else on_default_device(np.asarray(x))
    for key, x in params.items()
  }


def _name(path: Path) -> str:
  return ".".join(map(str, path))


def _check_files(path: pathlib.Path) -> None:
  """Raises ValueError naming the first file that is missing or too short.

  Args:
    path: absolute path of a folder that Orbax wrote. Where the index itself
      cannot be read, the ValueError is tensorstore's.
  """
  for name, end in _places(ts.KvStore.open(path.as_uri() + "/").result()):
    file = path / name
    length = file.stat().st_size if file.is_file() else 0
    if length < end:
      raise ValueError(f"{name} has {length} bytes of at least {end}")


def _places(store: ts.KvStore) -> Iterator[tuple[str, int]]:
  """Every piece that the newest version refers to: its file and its end."""
  # A B-tree: inner nodes name nodes, leaves hold values or name their place.
  newest = ts.ocdbt.dump(store).result()["versions"][-1]
  open_nodes = [newest["root"]["location"]]
  while open_nodes:
    location = open_nodes.pop()
    yield _place(location)
    for entry in ts.ocdbt.dump(store, node=location).result()["entries"]:
      if "indirect_value" in entry:
        yield _place(entry["indirect_value"])
      elif "location" in entry:
        open_nodes.append(entry["location"])


def _place(location: str) -> tuple[str, int]:
  """kind:folder:name:offset:length."""
  _, folder, name, offset, length = location.split(":")
  return folder + name, int(offset) + int(length)
