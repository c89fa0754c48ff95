"""Models from and to directories: of Hugging Face, and of Orbax.

`load` and `save` know Qwen3.5 (dense and with experts) and Qwen3-Next as
`transformers` reads and writes them.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from neumann_jax.checkpoint import (
  drop_in,
  hf_config,
  hf_layout,
  safetensors_io,
  safetensors_shards,
)
from neumann_jax.checkpoint import params as param_place
from neumann_jax.checkpoint.new_folder import new_folder
from neumann_jax.execution import Execution, check_execution
from neumann_jax.foreign_files.folder import as_path
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.weight_quantization.quantized_model import is_quantized

# Files of 5 GB, as transformers long cut them.
MAX_SHARD_BYTES = 5_000_000_000


def load(
  path: str | pathlib.Path,
  execution: Execution = Execution(),  # noqa: B008  (frozen)
  *,
  shardings: Callable[[LanguageModel], Any] | None = None,
) -> LanguageModel:
  """The text model of a Hugging Face directory.

  Tensors go to the devices one by one: the host holds one of them (the experts
  of a layer count as one) beside what lives on it. Vision towers and `mtp.*`
  are left out.

  Args:
    path: with `config.json` and safetensors, one file or several and their
      index; names begin with `model.` or `model.language_model.`, and experts
      are fused or apart. Matrices may be in e4m3 with a `weight_scale_inv` for
      each block, as official FP8 checkpoints are: they are read as the floats
      that they stand for.
    execution: how it is computed; parameters are cast to its `param_dtype`,
      A_log and dt_bias to float32.
    shardings: called with the model of shapes, gives a tree of its parameters'
      `jax.sharding.Sharding`; None: all go to the default device, uncommitted.

  Raises:
    FileNotFoundError: if a file is missing: names on a hub are not fetched.
    TypeError: if execution is no `Execution`, or path no path.
    ValueError: for a config that this package does not compute, for a file
      that is truncated or corrupt or lies outside of the directory, and for
      tensors that are missing, surplus or misshapen; all before anything is
      loaded. Then for a tensor with a NaN or an infinity.

  Example:
    >>> import pathlib, tempfile
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import checkpoint
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   checkpoint.save(model, pathlib.Path(folder) / "model")
    ...   again = checkpoint.load(pathlib.Path(folder) / "model")
    >>> again.config == config
    True
  """
  check_execution(execution)
  path = as_path(path, "path")
  config = hf_config.read_config(path)
  files = safetensors_io.Files(path, hf_config.read_block_size(path))
  hf_config.check_held(config, files.shapes, str(path))
  tensors = hf_layout.tensors(config)
  files.check(tensors, tied=config.tie_word_embeddings)
  if config.tie_word_embeddings:
    files.check_tied()
  # Everything is checked before a weight goes to a device; from here on
  # tensors pass one by one, so that the host never holds the model.
  model = param_place.abstract_model(config, execution)
  targets = param_place.Targets(model, shardings)
  for tensor in tensors:
    for param, value in zip(tensor.params, tensor.split(files.read(tensor))):
      targets.put(param, value)
  return targets.model()


def save(
  model: LanguageModel,
  path: str | pathlib.Path,
  *,
  like: str | pathlib.Path | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes a Hugging Face directory that `load` and `transformers` read.

  Without `like` it holds the text model alone, in the names and the layout of
  `model.config.model_type`; parameters keep their dtype, and nothing says which
  tokens end a text. With `like` it is that directory with other text weights:
  tokenizer, chat template, generation_config.json, config.json with its special
  tokens, towers for pictures and `mtp.*` are copied byte for byte, and the
  model's tensors take the names, files and dtypes that they have there, which
  rounds float32 parameters where the directory is bfloat16. Weights in other
  formats and subfolders stay behind. The host holds the tensors of one file,
  with `like` one tensor, at a time.

  Args:
    model: of separate or of scanned layers.
    path: a new or an empty folder, in one that exists. It is there complete or
      not at all.
    like: the directory that the model was read from, or None.
    max_shard_bytes: of the tensors of a file, unless one alone is larger; not
      read with `like`.

  Raises:
    TypeError: if `path` is no path.
    FileExistsError: if something is at `path`; it stays as it was.
    FileNotFoundError: if the folder above, or a file of `like`, does not exist.
    ValueError: if max_shard_bytes is below 1, if parameters lie on devices of
      other processes, are quantised or adapted, or if `like` does not fit the
      model.

  Example:
    >>> import pathlib, tempfile
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import checkpoint
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder) / "model"
    ...   checkpoint.save(model, path)
    ...   sorted(file.name for file in path.iterdir())
    ['config.json', 'model.safetensors']
  """
  if max_shard_bytes < 1:
    raise ValueError(
      f"max_shard_bytes must be at least 1, got {max_shard_bytes}"
    )
  param_place.check_no_adapters(model)
  if is_quantized(model):
    raise ValueError(
      "model must have its weights as trained: quantised ones have no place "
      "in a Hugging Face directory; save it before quantize_weights"
    )
  with new_folder(as_path(path, "path")) as folder:
    if like is not None:
      drop_in.write(model, as_path(like, "like"), folder)
      return
    config = hf_config.to_json(model.config, model.execution.param_dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors_shards.write(
      folder, _named(model), max_shard_bytes=max_shard_bytes
    )


def _named(model: LanguageModel) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of a checkpoint, made one by one."""
  params = param_place.Sources(model)
  # Qwen3-Next is published with every expert apart, and read so by others.
  apart = model.config.model_type == "qwen3_next"
  for tensor in hf_layout.tensors(model.config):
    whole = tensor.join(*(params.get(param) for param in tensor.params))
    if apart and tensor.pieces:
      for piece in tensor.pieces:
        yield piece.name, whole[piece.place]
    else:
      yield tensor.name, whole
