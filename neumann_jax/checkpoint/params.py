"""Where a parameter of separate layers lies in a model, scanned or not."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from neumann_jax.checkpoint.hf_layout import Path
from neumann_jax.execution import Execution
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model_config import ModelConfig
from neumann_jax.weight_quantization.quantized_model import has_adapters

Shardings = Callable[[LanguageModel], Any]


def abstract_model(config: ModelConfig, execution: Execution) -> LanguageModel:
  """The model with shapes and dtypes for parameters."""
  return nnx.merge(*_traced(config, execution))


@functools.lru_cache(maxsize=8)
def _traced(config: ModelConfig, execution: Execution) -> tuple[Any, Any]:
  """What `abstract_model` merges: tracing every initialiser takes a second."""
  model = nnx.eval_shape(
    lambda: LanguageModel(config, execution, rngs=nnx.Rngs(0))
  )
  return nnx.split(model)


def place(model: LanguageModel, path: Path) -> tuple[Path, int | None]:
  """The parameter of `model`, and its row if it is a stack of layers'."""
  if path[0] != "layers" or not model.execution.scan_layers:
    return path, None
  # Layer n of the model is row n // period of stack n % period.
  row, layer = divmod(int(path[1]), model.config.period)
  return ("layers", layer, *path[2:]), row


def flat_params(model: LanguageModel) -> dict[Path, jax.Array]:
  """Arrays (or shapes) of the parameters by path, in the order of the state."""
  state = nnx.state(model)
  paths = [path for path, _ in nnx.to_flat_state(state)]
  return dict(zip(paths, jax.tree.leaves(state), strict=True))


def check_no_adapters(model: LanguageModel) -> None:
  """Raises ValueError for a model of `tuning.add_adapters`.

  Files of whole models have no place for adapters, which would be lost.
  """
  if has_adapters(model):
    raise ValueError(
      "model must have no adapters: merge_adapters adds them to its weights, "
      "and save_adapters writes them alone"
    )


def with_params(
  model: LanguageModel, params: Mapping[Path, jax.Array]
) -> LanguageModel:
  """The model with these arrays for parameters."""
  graph, state = nnx.split(model)
  leaves = [params[path] for path in flat_params(model)]
  treedef = jax.tree.structure(state)
  return nnx.merge(graph, jax.tree.unflatten(treedef, leaves))


def flat_shardings(
  model: LanguageModel, shardings: Shardings | None
) -> dict[Path, Sharding | None]:
  """A sharding for every parameter.

  Args:
    model: of shapes or arrays.
    shardings: called with it, gives a tree of as many shardings as it has
      parameters, in their order; None: None for all, uncommitted arrays on
      the default device.

  Raises:
    ValueError: if the numbers differ.
  """
  paths = list(flat_params(model))
  if shardings is None:
    return dict.fromkeys(paths, None)
  # Any tree will do, a state or a dictionary: leaves count in their order.
  leaves = jax.tree.leaves(shardings(model))
  if len(leaves) != len(paths):
    raise ValueError(
      f"shardings must give one for each of the {len(paths)} parameters, got "
      f"{len(leaves)}"
    )
  return dict(zip(paths, leaves))


class Targets:
  """Parameters of a model to be, filled one by one on their devices.

  Args:
    model: of shapes, from `abstract_model`.
    shardings: called with it, gives a tree of as many shardings as it has
      parameters, in their order; None: uncommitted, on the default device.

  Raises:
    ValueError: if the numbers differ.
  """

  def __init__(self, model: LanguageModel, shardings: Shardings | None) -> None:
    self._model, self._shapes = model, flat_params(model)
    self._shardings = flat_shardings(model, shardings)
    self._filled: dict[Path, jax.Array] = {}

  def put(self, path: Path, value: np.ndarray) -> None:
    """Casts and places a parameter, named as with separate layers."""
    path, row = place(self._model, path)
    target, sharding = self._shapes[path], self._shardings[path]
    if row is None:
      self._filled[path] = _on_devices(value, target.dtype, sharding)
      return
    one = _on_devices(value, target.dtype, _of_row(sharding))
    # A stack is filled row by row, in place: the rows of one parameter lie far
    # apart in a checkpoint, and the host should not collect them.
    if path not in self._filled:
      self._filled[path] = _zeros(target.shape, target.dtype, sharding)
    self._filled[path] = _set_row(self._filled[path], one, row)

  def model(self) -> LanguageModel:
    """The model, once every parameter was put."""
    return with_params(self._model, self._filled)


class Sources:
  """Parameters of a model on the host, one by one.

  Args:
    model: with separate or scanned layers.

  Raises:
    ValueError: if parameters lie on devices of other processes.
  """

  def __init__(self, model: LanguageModel) -> None:
    self._model, self._params = model, flat_params(model)
    # All at once at the start: a folder must not end half-written for the last.
    for path, param in self._params.items():
      if not param.is_fully_addressable:
        raise ValueError(
          f"{'.'.join(map(str, path))} lies on devices of other processes: "
          "gather it first, or use save_orbax"
        )

  def get(self, path: Path) -> np.ndarray:
    """The parameter, named as with separate layers."""
    path, row = place(self._model, path)
    value = self._params[path]
    return np.asarray(value if row is None else value[row])


def on_default_device(value: np.ndarray) -> jax.Array:
  """An uncommitted array.

  `jax.jit` compiles once for committed and once for uncommitted arguments. What
  users make beside a model (an optimiser's state, tokens, caches) is
  uncommitted; a committed model would meet it in the first step, give back
  committed results, and have the second step compiled again.
  """
  # No device is named: that is what leaves the array free to go to another.
  return jax.device_put(value)


def _on_devices(
  value: np.ndarray, dtype: jnp.dtype, sharding: Sharding | None
) -> jax.Array:
  """Each device gets its part, cast on the way."""
  if sharding is None:
    return on_default_device(np.ascontiguousarray(value).astype(dtype))
  return jax.make_array_from_callback(
    value.shape,
    sharding,
    lambda index: np.ascontiguousarray(value[index]).astype(dtype),
  )


def _zeros(
  shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None
) -> jax.Array:
  return jnp.zeros(shape, dtype, device=sharding)


def _of_row(sharding: Sharding | None) -> Sharding | None:
  """Of a row of an array that has this sharding."""
  if not isinstance(sharding, NamedSharding):
    return sharding
  spec = PartitionSpec(*tuple(sharding.spec)[1:])
  return NamedSharding(sharding.mesh, spec)


# Donated, or every row would copy the stack; `row` is traced, so that all rows
# of a shape are one program.
@functools.partial(jax.jit, donate_argnums=0)
def _set_row(stack: jax.Array, value: jax.Array, row: int) -> jax.Array:
  return lax.dynamic_update_index_in_dim(stack, value, row, 0)
