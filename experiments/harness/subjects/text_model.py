"""The model that an experiment names: a checkpoint's, or a small random one.

Its weights are as trained, or quantised after training.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax import Execution, LanguageModel, ModelConfig, checkpoint
from neumann_jax.weight_quantization import matrix
from neumann_jax.weight_quantization.quantized_model import quantize_weights

RANDOM = "random"
AS_TRAINED = "none"


class Source(NamedTuple):
  """Where a model comes from."""

  folder: pathlib.Path | None  # of the checkpoint, None for random weights
  config: ModelConfig  # the architecture


def find(name: str) -> Source:
  """The model that a config's `checkpoint` names; no weights are read.

  Args:
    name: a Hugging Face folder, or "random" for a small model of random
      weights, which knows nothing: for the tests.

  Raises:
    FileNotFoundError: the folder has no `config.json`.
    ValueError: there is no such folder, or its config does not fit.
  """
  if name == RANDOM:
    return Source(None, random_config())
  folder = _folder(name)
  return Source(folder, checkpoint.read_config(folder))


def files(source: Source) -> list[pathlib.Path]:
  """Of the checkpoint, by name; none of random weights."""
  if source.folder is None:
    return []
  return [path for path in sorted(source.folder.iterdir()) if path.is_file()]


def load(source: Source, execution: Execution, seed: int) -> LanguageModel:
  """The model with its weights.

  Args:
    source: from `find`.
    execution: how it is computed.
    seed: of random weights.

  Raises:
    FileNotFoundError: a file of the checkpoint is missing.
    ValueError: a file of the checkpoint is corrupt.
  """
  if source.folder is None:
    return random_model(source.config, execution, seed)
  return checkpoint.load(source.folder, execution)


def check_weights(name: str) -> None:
  """Raises ValueError unless "none" or a name of `matrix.PRESETS`."""
  if name != AS_TRAINED:
    matrix.preset(name)


def with_weights(model: LanguageModel, name: str) -> LanguageModel:
  """The model with its weights as trained, or quantised as a preset says."""
  if name == AS_TRAINED:
    return model
  return quantize_weights(model, matrix.preset(name))


def weights_words(name: str) -> str:
  """How a report names the weights."""
  return "weights as trained" if name == AS_TRAINED else f"weights {name}"


def random_config() -> ModelConfig:
  """A small model that reads bytes."""
  return ModelConfig(
    hidden_size=64,
    num_hidden_layers=4,
    layer_types=("linear_attention", "full_attention") * 2,
    intermediate_size=128,
    head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    initializer_range=0.1,
  )


def random_model(
  config: ModelConfig, execution: Execution, seed: int
) -> LanguageModel:
  """Random weights whose decays are as slow as trained ones can be."""

  def make(key: jax.Array) -> LanguageModel:
    model = LanguageModel(config, execution, rngs=nnx.Rngs(key))
    for path, rate in nnx.to_flat_state(nnx.state(model)):
      if path[-1] == "A_log":
        drawn = jax.random.uniform(key, rate.shape, minval=1e-3, maxval=1e-2)
        rate[...] = jnp.log(drawn)
    return model

  # The key is an operand: XLA would draw from a constant when it compiles.
  return nnx.jit(make)(jax.random.key(seed))


def _folder(path: str) -> pathlib.Path:
  if not path:
    raise ValueError(
      "checkpoint must name a folder: give --config.checkpoint=DIR"
    )
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise ValueError(f"checkpoint {path!r} is not a folder")
  return folder
