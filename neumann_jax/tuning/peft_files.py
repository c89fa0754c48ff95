"""Adapters in the folders of PEFT, from and to models."""

import json
import pathlib
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from neumann_jax.checkpoint import hf_layout
from neumann_jax.checkpoint.hf_layout import Path
from neumann_jax.checkpoint.new_folder import new_folder
from neumann_jax.checkpoint.params import flat_params, with_params
from neumann_jax.foreign_files import tensor_file
from neumann_jax.foreign_files.folder import as_path, own_file
from neumann_jax.foreign_files.messages import clean
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.tuning.lora import adapters, add_adapters
from neumann_jax.tuning.peft_config import (
  CONFIG,
  check_settings,
  read_config,
  spec_of,
  targets_of,
)

WEIGHTS = "adapter_model.safetensors"
# A model of transformers inside PEFT's.
_PREFIX = "base_model.model."
_NAME = re.compile(
  r"base_model\.model\.model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight"
)
_EXPERTS = ".mlp.experts."


def save_adapters(
  model: LanguageModel,
  path: str | pathlib.Path,
  *,
  base: str = "",
  text_only: bool = False,
) -> None:
  """Writes a folder that `PeftModel.from_pretrained` reads.

  Its names are those of the class that the checkpoint's `architectures` names:
  for one that was published with vision, as Qwen3.5 is, the vision-language
  class, which `AutoModelForImageTextToText` loads and servers run. In another
  class PEFT finds none of its names, warns of missing keys and adapts nothing.

  Args:
    model: of `add_adapters`, with separate or scanned layers.
    path: a new or empty folder, in one that exists. It is there complete or
      not at all.
    base: the name of the model that was adapted, for the reader's use.
    text_only: whether the names are those of the text model alone, which
      `AutoModelForCausalLM` loads from any of these checkpoints.

  Raises:
    TypeError: if `path` is no path.
    FileExistsError: if something is at `path`; it stays as it was.
    FileNotFoundError: if the folder above does not exist.
    ValueError: if the model has no adapters, if they lie on devices of other
      processes, or if one holds NaN or infinities.
  """
  found = adapters(model)
  if not found:
    raise ValueError("model has no adapters: add_adapters makes them")
  inside = model.config.vision_language and not text_only
  named = hf_layout.inside_name if inside else str
  tensors = {_PREFIX + named(name): x for name, x in _tensors(model)}
  for name, value in tensors.items():
    tensor_file.check_finite("model", name, value)
  spec = found[0].spec
  modules, parameters = targets_of(tensors, model.config.model_type)
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "r": spec.rank,
    "lora_alpha": spec.alpha,
    "use_rslora": spec.use_rslora,
    "target_modules": modules,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  if parameters:  # a key that PEFT below 0.17 does not know
    config["target_parameters"] = parameters
  with new_folder(as_path(path, "path")) as folder:
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def load_adapters(
  model: LanguageModel, path: str | pathlib.Path
) -> LanguageModel:
  """The model with the adapters of a folder that PEFT or `save_adapters` wrote.

  It may be one of a text model or of a vision-language one. A map that it
  leaves out beside others of its name, as PEFT does with `layers_to_transform`,
  has an adapter of zeros, which changes nothing and stays zero when tuned on.

  Args:
    model: the base, of linear maps as trained.
    path: the folder.

  Returns:
    A new model, which shares every array of the old one.

  Raises:
    TypeError: if `path` is no path.
    FileNotFoundError: if a file is missing.
    ValueError: for a kind of adapter that this package does not compute or a
      setting that it does not know, for a damaged file, and for tensors that do
      not fit `r` or the model; all before an adapter is allocated.
  """
  path = as_path(path, "path")
  config = read_config(path)
  tensors = _read_tensors(path)
  _check_no_experts(path, tensors)
  check_settings(path, config)
  places = {name: _NAME.fullmatch(name) for name in tensors}
  for name, match in places.items():
    if match is None:
      raise ValueError(
        f"tensors of {path} must be adapters of the layers of a text model, "
        f"got {clean(name, most=120)}"
      )
  names = {match[2].split(".")[-1] for match in places.values() if match}
  spec = spec_of(path, config, tuple(sorted(names)))
  _check_rank(path, spec.rank, tensors)
  # Of shapes: a file must not have anything allocated before all of it fits.
  adapted = nnx.eval_shape(
    lambda model: add_adapters(model, spec, rngs=nnx.Rngs(0)), model
  )
  return with_params(
    adapted, flat_params(model) | _filled(adapted, tensors, path)
  )


def _check_rank(
  path: pathlib.Path, rank: int, tensors: dict[str, np.ndarray]
) -> None:
  """Raises ValueError unless every tensor has the rank that the config says."""
  for name, value in tensors.items():
    axis = 0 if name.endswith("lora_A.weight") else 1
    if value.ndim != 2 or value.shape[axis] != rank:
      raise ValueError(
        f"{clean(name, most=120)} in {path} must have shape "
        f"{'[r, in]' if axis == 0 else '[out, r]'} with r = {rank}, got "
        f"{value.shape}"
      )


def _check_no_experts(
  path: pathlib.Path, tensors: dict[str, np.ndarray]
) -> None:
  """Told before settings that PEFT derives from adapters of experts."""
  few = sorted(name for name in tensors if _EXPERTS in name)
  if few:
    raise ValueError(
      f"{path} adapts routed experts ({clean(few[0], most=120)}), which is not "
      "computed here: merge it in PEFT (merge_and_unload) and load the "
      "checkpoint, or adapt other linear maps"
    )


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  file = own_file(path, WEIGHTS)
  try:
    tensors = tensor_file.read(file)
  except ValueError as error:
    raise ValueError(
      f"{file} is truncated or not safetensors ({error})"
    ) from None
  for name, value in tensors.items():
    tensor_file.check_finite(str(path), name, value)
  named = {hf_layout.text_name(name): x for name, x in tensors.items()}
  if len(named) < len(tensors):
    raise ValueError(
      f"{file} has adapters of a map of a text model and of a vision-language "
      "one at once"
    )
  return named


def _filled(
  model: LanguageModel, found: dict[str, np.ndarray], path: pathlib.Path
) -> dict[Path, jax.Array]:
  """The adapters of a model of shapes, from the tensors of a file."""
  wanted = {_PREFIX + name: place for name, place in _places(model)}
  maps = {_map(name) for name in found}
  lacking = [
    name for name in wanted.keys() - found.keys() if _map(name) in maps
  ]
  for words, few in (
    ("lack", sorted(lacking)),  # one matrix of a pair
    ("have", sorted(found.keys() - wanted.keys())),
  ):
    if few:
      raise ValueError(
        f"adapters in {path} {words} {clean(few[0], most=120)}"
        f"{f' and {len(few) - 1} more' if len(few) > 1 else ''}, unlike the "
        "model's linear maps of these names"
      )
  params = flat_params(model)
  for name in found:
    shape = params[wanted[name][0]].shape[:-3:-1]  # transposed in the file
    if found[name].shape != shape:
      raise ValueError(
        f"{clean(name, most=120)} in {path} must have shape {shape}, got "
        f"{found[name].shape}"
      )
  filled: dict[Path, np.ndarray] = {}
  for name, (key, row) in wanted.items():
    if key not in filled:
      filled[key] = np.zeros(params[key].shape, np.float32)
    if name in found:
      whole = filled[key]
      (whole if row is None else whole[row])[...] = found[name].T
  return {key: jnp.asarray(value) for key, value in filled.items()}


def _map(name: str) -> str:
  """Name of the linear map that a matrix of a file belongs to."""
  return name.rpartition(".lora_")[0]


def _tensors(model: LanguageModel) -> Iterator[tuple[str, np.ndarray]]:
  """Names in a text model and values in a file: [r, in] and [out, r]."""
  params, host = flat_params(model), {}
  for name, (key, row) in _places(model):
    if not params[key].is_fully_addressable and not (
      params[key].is_fully_replicated
    ):
      raise ValueError(
        f"{'.'.join(map(str, key))} lies on devices of other processes: gather "
        "it first"
      )
    if key not in host:
      host[key] = np.asarray(params[key], np.float32)
    value = host[key] if row is None else host[key][row]
    yield name, np.ascontiguousarray(value.T)


def _places(
  model: LanguageModel,
) -> Iterator[tuple[str, tuple[Path, int | None]]]:
  """Name in a text model, path and row of a scanned stack, by adapter."""
  depth, period = model.config.num_hidden_layers, model.config.period
  for key in flat_params(model):
    if key[-1] not in ("lora_a", "lora_b"):
      continue
    letter, inner = key[-1][-1].upper(), ".".join(map(str, key[2:-1]))
    scanned = model.execution.scan_layers
    rows = range(depth // period) if scanned else (None,)
    for row in rows:
      number = int(key[1]) if row is None else row * period + int(key[1])
      name = f"model.layers.{number}.{inner}.lora_{letter}.weight"
      yield name, (key, row)
