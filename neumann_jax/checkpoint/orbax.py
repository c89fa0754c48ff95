"""Models from and to folders of Orbax, with their config beside."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from neumann_jax.checkpoint import hf_config, orbax_tree
from neumann_jax.checkpoint.params import (
  Path,
  Shardings,
  abstract_model,
  check_no_adapters,
  flat_params,
  flat_shardings,
  on_default_device,
  with_params,
)
from neumann_jax.execution import Execution, check_execution
from neumann_jax.foreign_files.folder import as_path
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model.scan_layers import stack_layers, unstack_layers

Places = Mapping[Path, jax.sharding.Sharding | None]


def save_orbax(model: LanguageModel, path: str | pathlib.Path) -> None:
  """Writes the parameters with Orbax, each where its devices are.

  Args:
    model: of separate or of scanned layers.
    path: a new folder, in one that exists. It is there complete or not at all.

  Raises:
    TypeError: if `path` is no path.
    FileExistsError: if something is at `path`; it stays as it was.
    FileNotFoundError: if the folder above does not exist.
    OSError: if the disk has no room for the parameters.
    ValueError: for a model with adapters.
  """
  check_no_adapters(model)
  path = as_path(path, "path").absolute()
  if not path.parent.is_dir():
    raise FileNotFoundError(
      f"path must lie in a folder that exists, got {path}"
    )
  if path.exists():
    raise FileExistsError(f"path must be new, got {path}")
  metadata = {
    "config": hf_config.to_whole_json(
      model.config, model.execution.param_dtype
    ),
    "scan_layers": model.execution.scan_layers,
  }
  params = {_name(key): x for key, x in flat_params(model).items()}
  orbax_tree.write(params, path, metadata)


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
    TypeError: if execution is no `Execution`, or path no path.
    ValueError: if it was not written by `save_orbax`, a file in it is not as it
      was then, or a parameter holds a NaN or an infinity.
  """
  check_execution(execution)
  path = as_path(path, "path").absolute()
  if not path.is_dir():
    raise FileNotFoundError(f"path must be a folder of save_orbax, got {path}")
  metadata = orbax_tree.read_metadata(path, writer="save_orbax")
  try:
    config = hf_config.from_json(metadata["config"])
    scanned = bool(metadata["scan_layers"])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is damaged, or was not written by save_orbax"
    ) from error
  stored = dataclasses.replace(execution, scan_layers=scanned)
  model = abstract_model(config, stored)
  # Stored as stacks or apart, it is read as it was stored, and turned after:
  # Orbax reads whole arrays.
  same = scanned == execution.scan_layers
  places = flat_shardings(model, shardings if same else None)
  found = orbax_tree.read(path, _targets(model, places), writer="save_orbax")
  for name, value in found.items():
    if not _finite(value):
      raise ValueError(
        f"{name} in {path} must be finite, but holds NaN or infinities"
      )
  params = {key: found.pop(_name(key)) for key in places}
  model = with_params(model, _uncommitted(params, places))
  return model if same else _turned(model, shardings)


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


@jax.jit  # where the array is: no host may hold all of it
def _finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()
