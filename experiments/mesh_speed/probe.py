"""A few layers of a language model, and its training step on a mesh.

The loss takes targets beside the tokens: where a device holds some tokens of a
row, the next token of its last one is another device's.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from neumann_jax import Execution, LanguageModel, ModelConfig, sharding

ONE = "one"  # the name of no mesh: a single device


class Batch(NamedTuple):
  """Tokens and the ones that follow them, [B, T] int32."""

  tokens: jax.Array | np.ndarray
  targets: jax.Array | np.ndarray


class Training(NamedTuple):
  """What the next step needs: parameters and AdamW's moments."""

  params: nnx.State
  moments: optax.OptState


class Probe(NamedTuple):
  """A model on a mesh, ready to be trained."""

  training: Training  # the first step's
  # (training, batch) -> (training, loss); compiled, donates training
  step: Callable[[Training, Batch], tuple[Training, jax.Array]]
  batch: Batch  # of every step, on the mesh


def sizes(name: str, devices: int) -> dict[str, int] | None:
  """The axes of a mesh by its name, or None where they do not fit.

  Args:
    name: axes of `sharding.make_mesh` joined by "*": one has all devices; of
      two the first has 2 and the second the rest; "one" is a single device.
    devices: how many there are.

  Raises:
    ValueError: for a name that is none.
  """
  axes = name.split("*")
  if axes == [ONE]:
    return {"data": 1}
  known = sharding.MESH_AXES
  if len(axes) > 2 or len({*axes}) < len(axes) or not {*axes} <= {*known}:
    raise ValueError(
      f"a mesh must be {ONE!r}, or one or two of {', '.join(known)} joined by "
      f"'*', got {name!r}"
    )
  if len(axes) == 1:
    return {name: devices} if devices > 1 else None
  if devices < 4 or devices % 2:
    return None
  return dict(zip(axes, (2, devices // 2), strict=True))


def draw(config: ModelConfig, rows: int, tokens: int, seed: int) -> Batch:
  """Uniform random text: what is timed does not depend on its sense."""
  rng = np.random.default_rng(seed)
  text = rng.integers(0, config.vocab_size, (rows, tokens + 1), np.int32)
  return Batch(text[:, :-1], text[:, 1:])


def build(
  config: ModelConfig,  # the architecture
  execution: Execution,  # how it is computed, without a sequence axis
  axes: Mapping[str, Any],  # of `sharding.make_mesh`
  batch: Batch,  # on the host
  *,
  rate: float,  # of AdamW
  seed: int,  # of the parameters
) -> Probe:
  """The model with the same parameters on any mesh, and its step.

  Raises:
    ValueError: for a batch that the mesh does not divide.
  """
  mesh = sharding.make_mesh(**axes)
  _check_fits(batch, axes)
  model = sharding.create(config, execution, mesh, seed=seed)
  losses = _losses
  if axes.get("sequence", 1) > 1:
    model = model.with_execution(sequence_axis="sequence")
    losses = sharding.on_mesh(mesh, _losses)
  graph, params = nnx.split(model)
  optimiser = optax.adamw(rate)
  places = _places(optimiser, params, mesh)
  moments = jax.jit(optimiser.init, out_shardings=places.moments)(params)
  # Named, because a step whose results lie elsewhere than its arguments is
  # compiled again for the second one.
  everywhere = NamedSharding(mesh, P())
  step = jax.jit(
    functools.partial(_step, graph, losses, optimiser),
    donate_argnums=0,
    out_shardings=(places, everywhere),
  )
  batch = jax.device_put(batch, sharding.batch_sharding(mesh))
  return Probe(Training(params, moments), step, batch)


def _places(
  optimiser: optax.GradientTransformation, params: nnx.State, mesh: Mesh
) -> Training:
  """Shardings: those of the parameters, and moments beside what they are of."""
  everywhere = NamedSharding(mesh, P())
  own = jax.tree.map(lambda x: x.sharding, params)
  moments = optax.tree.map_params(
    optimiser,
    lambda _, place: place,
    jax.eval_shape(optimiser.init, params),
    own,
    transform_non_params=lambda _: everywhere,
  )
  return Training(own, moments)


def _check_fits(batch: Batch, axes: Mapping[str, int]) -> None:
  rows, tokens = batch.tokens.shape
  over = axes.get("data", 1) * axes.get("fsdp", 1)
  if rows % over:
    raise ValueError(f"{rows} rows cannot be split over {over} devices")
  if tokens % axes.get("sequence", 1):
    raise ValueError(
      f"{tokens} tokens cannot be split over {axes['sequence']} devices"
    )


def _losses(
  model: LanguageModel, tokens: jax.Array, targets: jax.Array
) -> jax.Array:
  """Cross-entropy of every token, [B, T]."""
  logits, _ = model(tokens)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def _step(graph, losses, optimiser, training, batch):
  def loss(params):
    return jnp.mean(losses(nnx.merge(graph, params), *batch))

  value, gradient = jax.value_and_grad(loss)(training.params)
  # optax raises a float to the integer count of steps.
  with jax.numpy_dtype_promotion("standard"):
    updates, moments = optimiser.update(
      gradient, training.moments, training.params
    )
  params = optax.apply_updates(training.params, updates)
  return Training(params, moments), value
