"""A model on a mesh: which axis of each parameter goes over which mesh axis.

Parameters have logical axes, found from their names; rules send logical axes
to the mesh axes

  data      batches, parameters whole
  fsdp      batches as well, and parameters, gathered where they are used
  tensor    heads, feed-forward widths and the vocabulary
  sequence  tokens

so that the same program runs on one chip and on a mesh: `jax.jit` follows the
shardings of what it is given, and each layer asks for its tokens by rows and
its matrices whole over fsdp, see `layers.placement`. Only the sequence axis
changes the program, because tokens depend on each other: `on_mesh` runs a model
inside `jax.shard_map`.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from neumann_jax.checks import check_mesh
from neumann_jax.execution import Execution
from neumann_jax.layers.mixer import Axes
from neumann_jax.model import logical_axes
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model_config import ModelConfig
from neumann_jax.sequence_axis import local_length

__all__ = (
  "MESH_AXES",
  "RULES",
  "batch_sharding",
  "create",
  "make_mesh",
  "on_mesh",
  "param_shardings",
  "param_specs",
  "place",
)

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

Rules = Mapping[str, str | None]

# Heads, widths and vocabulary over tensor: each device multiplies its part and
# one sum ends the layer. The other side of each matrix over fsdp. Experts stay
# whole in number, because a group of rows of any size must find its expert.
RULES: Rules = {
  "embed": "fsdp",
  "heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "expert": None,
}

# fsdp splits batches too: it is data parallelism whose parameters are split.
_TOKENS = P(("data", "fsdp"), "sequence")


def make_mesh(
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes MESH_AXES.

  Args:
    data: devices along each axis, in the order of MESH_AXES.
    fsdp: see data.
    tensor: see data.
    sequence: see data.
    devices: to lay out; None: the first of `jax.devices()`.

  Raises:
    ValueError: if a size is below 1, or there are too few devices.

  Example:
    >>> from neumann_jax import sharding
    >>> dict(sharding.make_mesh(data=1).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}
  """
  shape = (data, fsdp, tensor, sequence)
  for name, size in zip(MESH_AXES, shape):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  # Not `jax.make_mesh`, whose axes are explicit by default: these are the
  # partitioner's, which finds the shardings of everything in between.
  devices = jax.devices() if devices is None else list(devices)
  count = int(np.prod(shape))
  if count > len(devices):
    raise ValueError(
      f"a mesh of {' x '.join(map(str, shape))} needs {count} devices, got "
      f"{len(devices)}"
    )
  return Mesh(np.asarray(devices[:count]).reshape(shape), MESH_AXES)


def param_specs(
  model: LanguageModel, mesh: Mesh, rules: Rules = RULES
) -> nnx.State:
  """How each parameter is split: the model's state with specs for arrays.

  A dimension that its mesh axis does not divide stays whole. The axis that
  stacks scanned layers is never split.

  Args:
    model: with arrays or with shapes only (`nnx.eval_shape`).
    mesh: of MESH_AXES.
    rules: mesh axis of each logical axis; None keeps it whole.

  Raises:
    ValueError: if a rule names an axis that the mesh does not have, or the
      mesh has explicit axes.
  """
  check_mesh("parameters", mesh)
  for logical, axis in rules.items():
    if axis is not None and axis not in mesh.shape:
      raise ValueError(
        f"rules send {logical!r} to mesh axis {axis!r}, but the mesh has "
        f"{', '.join(mesh.shape)}"
      )
  state = nnx.state(model)
  specs = [
    (
      path,
      variable.replace(
        _spec(
          logical_axes.of_model(path, model.layers), variable.shape, mesh, rules
        )
      ),
    )
    for path, variable in nnx.to_flat_state(state)
  ]
  return nnx.from_flat_state(specs)


def param_shardings(
  model: LanguageModel, mesh: Mesh, rules: Rules = RULES
) -> nnx.State:
  """`param_specs` as shardings on the mesh.

  `functools.partial(param_shardings, mesh=mesh)` is what `checkpoint.load` and
  `restore_orbax` take to read onto a mesh.
  """
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    param_specs(model, mesh, rules),
    is_leaf=lambda x: isinstance(x, P),
  )


def place(
  model: LanguageModel, mesh: Mesh, rules: Rules = RULES
) -> LanguageModel:
  """The model with its parameters laid out on the mesh.

  Args:
    model: with arrays.
    mesh: of MESH_AXES.
    rules: see `param_specs`.

  Raises:
    ValueError: if a rule names an axis that the mesh does not have.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import sharding
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> placed = sharding.place(model, sharding.make_mesh())
    >>> tuple(placed.embed_tokens.embedding[...].sharding.spec)
    ('tensor', 'fsdp')
  """
  graph, state = nnx.split(model)
  shardings = param_shardings(model, mesh, rules)
  return nnx.merge(graph, jax.device_put(state, shardings))


def create(
  config: ModelConfig,
  execution: Execution,
  mesh: Mesh,
  *,
  seed: int = 0,
  rules: Rules = RULES,
) -> LanguageModel:
  """A fresh model whose parameters are made where they belong.

  No device ever holds more than its part. The values are those of
  `LanguageModel(config, execution, rngs=nnx.Rngs(seed))`.

  Args:
    config: the architecture.
    execution: how it is computed.
    mesh: of MESH_AXES.
    seed: of the parameters.
    rules: see `param_specs`.
  """

  def make() -> LanguageModel:
    return LanguageModel(config, execution, rngs=nnx.Rngs(seed))

  # Made inside `jit` with the shardings of its outputs, XLA makes each part on
  # its device.
  abstract = nnx.eval_shape(make)
  shardings = param_shardings(abstract, mesh, rules)
  state = jax.jit(lambda: nnx.state(make()), out_shardings=shardings)()
  return nnx.merge(nnx.graphdef(abstract), state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of token arrays [B, T]: rows over data and fsdp, tokens over sequence.

  Raises:
    ValueError: for a mesh with explicit axes, as `jax.make_mesh` makes them.
  """
  check_mesh("tokens", mesh)
  return NamedSharding(mesh, _TOKENS)


def on_mesh(
  mesh: Mesh, function: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
  """A function of a model and its tokens, with the tokens split over the mesh.

  The model's `execution.sequence_axis` must be "sequence". Rows and tokens are
  `jax.shard_map`'s; the tensor axis stays with `jax.jit`, which must be around
  the call. Parameters split over fsdp are gathered at the start: the partition
  of all four axes at once aborts XLA's partitioner (jaxlib 0.10 to 0.12).

  Args:
    mesh: of MESH_AXES.
    function: (model, *arrays) -> [rows, T / shards, ...], given arrays of
      [rows, T / shards, ...] or None.

  Returns:
    (model, *arrays) -> [B, T, ...], for arrays of [B, T, ...] or None, with B
    a whole multiple of data * fsdp; differentiable in the model and in the
    arrays. Raises ValueError for another sequence_axis or uneven arrays.
  """
  check_mesh("tokens", mesh)

  def call(model: LanguageModel, *arrays: jax.Array | None) -> jax.Array:
    axis = model.execution.sequence_axis
    if axis != "sequence":
      raise ValueError(
        "execution.sequence_axis must be 'sequence' on a mesh that splits the "
        f"tokens, got {axis!r}"
      )
    for array in arrays:
      if array is not None:
        _check_even(array, mesh)
    # The state's specs are P(): gathered whole over data and fsdp at the start.
    # tensor is not among the axis names and stays with the partitioner.
    graph, state = nnx.split(model)
    # An axis of one device is nobody's to split: taken too, it leaves nothing
    # for a second `jax.shard_map` inside.
    names = {name for name, size in mesh.shape.items() if size == 1}
    return jax.shard_map(
      lambda state, *arrays: function(nnx.merge(graph, state), *arrays),
      mesh=mesh,
      in_specs=(P(), *(_TOKENS for _ in arrays)),
      out_specs=_TOKENS,
      axis_names={"data", "fsdp", axis} | names,
    )(state, *arrays)

  return call


def _check_even(array: jax.Array, mesh: Mesh) -> None:
  local_length(array.shape[1], mesh, "sequence")
  rows = mesh.shape["data"] * mesh.shape["fsdp"]
  if array.shape[0] % rows:
    raise ValueError(
      f"rows must be a whole multiple of data * fsdp = {rows}, got "
      f"{array.shape[0]}"
    )


def _spec(logical: Axes, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> P:
  # Scanned layers lead with the periods, which have no logical axis.
  unnamed: tuple[None, ...] = (None,) * (len(shape) - len(logical))
  axes = unnamed + tuple(x and rules.get(x) for x in logical)
  # Uneven parts would be padded by XLA, and differ from device to device.
  fits = (
    axis if axis is not None and size % mesh.shape[axis] == 0 else None
    for axis, size in zip(axes, shape)
  )
  return P(*fits)
