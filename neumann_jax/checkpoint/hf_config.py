"""The `config.json` of a Hugging Face directory <-> `ModelConfig`."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from neumann_jax.checkpoint import hf_rope
from neumann_jax.foreign_files import folder, json_file, tensor_file
from neumann_jax.foreign_files.messages import as_json, shown
from neumann_jax.model.decoder import check_layer_types
from neumann_jax.model_config import (
  FAMILIES,
  MOST_LAYERS,
  SIZES,
  ModelConfig,
)

T = TypeVar("T")

# Vision-language configs hold the text model's under `text_config`.
_NESTED = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
_CLASSES = dict(
  zip(
    FAMILIES,
    ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen3NextForCausalLM"),
  )
)
_EXPERT_SIZES = (
  "num_experts",
  "num_experts_per_tok",
  "moe_intermediate_size",
  "shared_expert_intermediate_size",
)
# What each family needs; the others of these sizes have no meaning in it.
_FAMILY_SIZES = {
  "qwen3_5_text": (*SIZES, "intermediate_size"),
  "qwen3_5_moe_text": (*SIZES, *_EXPERT_SIZES),
  "qwen3_next": (*SIZES, *_EXPERT_SIZES, "intermediate_size"),
}
# What a file may leave out, and what transformers then takes.
_DEFAULTS: dict[str, Any] = {
  "attention_bias": False,
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 32768,
  "initializer_range": 0.02,
}
# Of models that no published family has: written where it is true alone.
_EXTENSION = "allow_neg_eigval"
_NEXT_DEFAULTS: dict[str, Any] = {
  "norm_topk_prob": True,
  "decoder_sparse_step": 1,
  "mlp_only_layers": [],
}
# Where null stands for the default: without a bias in transformers 4, and no
# layer. transformers 5 refuses null of the others.
_NULL = "attention_bias", "mlp_only_layers"
# Every fourth layer attends in all published models that name no types.
_INTERVAL = 4
# The only values that this package computes.
_FIXED: dict[str, Any] = {
  "hidden_act": "silu",
  "attn_output_gate": True,
  "mamba_ssm_dtype": "float32",
}


def read_config(path: str | pathlib.Path) -> ModelConfig:
  """The architecture that a Hugging Face directory's `config.json` describes.

  Args:
    path: the directory. Model types are `qwen3_5`, `qwen3_5_moe` (whose vision
      part is left out), `qwen3_5_text`, `qwen3_5_moe_text` and `qwen3_next`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not JSON, lacks a size, or asks for anything that this
      package does not compute.
  """
  return _read(path, from_json)


def read_block_size(path: str | pathlib.Path) -> tuple[int, int] | None:
  """`block_size` of a directory; raises as `read_config`."""
  return _read(path, block_size)


def _read(path: str | pathlib.Path, of: Callable[[dict[str, Any]], T]) -> T:
  path = folder.as_path(path, "path")
  file = folder.own_file(path, "config.json")
  if not path.exists():
    raise FileNotFoundError(
      f"path must hold a config.json, got {path}, which is no folder here: "
      "names on a hub are not fetched (`hf download` makes a folder of one)"
    )
  if not file.is_file():
    raise FileNotFoundError(f"path must hold a config.json, got {path}")
  try:
    found = json_file.read(file)
  except ValueError as error:
    raise ValueError(f"{file} is not JSON ({error})") from None
  if not isinstance(found, dict):
    raise ValueError(f"{file} must hold a JSON object")
  try:
    return of(found)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def from_json(found: Mapping[str, Any]) -> ModelConfig:
  """`ModelConfig` of the contents of a `config.json`.

  Raises:
    ValueError: as `read_config`.
  """
  outer = found.get("model_type")
  known = (*_NESTED, *FAMILIES)
  if outer not in known:
    raise ValueError(
      f"model_type must be one of {', '.join(known)}, got {shown(outer)}"
    )
  block_size(found)
  # A vision-language model's text part is a text model of its own.
  family: str = outer
  text: Any = found
  if outer in _NESTED:
    family, text = _NESTED[outer], found.get("text_config")
    if not isinstance(text, dict):
      raise ValueError(f"text_config must be an object for model_type {outer}")
    if text.get("model_type", family) != family:
      raise ValueError(
        f"model_type of text_config must be {family}, got "
        f"{shown(text['model_type'])}"
      )
  _check_fixed(text, family)
  tied = found.get("tie_word_embeddings", text.get("tie_word_embeddings"))
  config = json_file.typed(
    {
      "model_type": family,
      "tie_word_embeddings": tied or False,
      "vision_language": outer in _NESTED and not _is_text_class(found),
      **_sizes(text, family),
      **_options(text, family),
      **hf_rope.read(text),
    },
    ModelConfig,
  )
  check_layer_types(config.layer_types)
  return config


def _is_text_class(found: Mapping[str, Any]) -> bool:
  """Whether `architectures` names a text model's class."""
  classes = found.get("architectures")
  return isinstance(classes, list) and any(
    x in classes for x in _CLASSES.values()
  )


def to_json(config: ModelConfig, dtype: jnp.dtype) -> dict[str, Any]:
  """Contents of the `config.json` of a text model.

  Args:
    config: the architecture.
    dtype: that most parameters are stored in.
  """
  family = config.model_type
  names = [*_FAMILY_SIZES[family], *_DEFAULTS, "tie_word_embeddings"]
  if family == "qwen3_next":
    names += _NEXT_DEFAULTS
  return {
    "architectures": [_CLASSES[family]],
    "model_type": family,
    "dtype": jnp.dtype(dtype).name,
    "hidden_act": _FIXED["hidden_act"],
    "layer_types": list(config.layer_types),
    **{name: getattr(config, name) for name in names},
    **({_EXTENSION: True} if config.allow_neg_eigval else {}),
    **hf_rope.write(config),
  }


def to_whole_json(config: ModelConfig, dtype: jnp.dtype) -> dict[str, Any]:
  """`to_json`, inside of what `from_json` knows a vision-language model by."""
  text = to_json(config, dtype)
  if not config.vision_language:
    return text
  outer = {inner: outer for outer, inner in _NESTED.items()}[config.model_type]
  tied = config.tie_word_embeddings
  return {"model_type": outer, "text_config": text, "tie_word_embeddings": tied}


def check_held(
  config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
  """Refuses a config of more than its files hold, before a model is made of it.

  Args:
    config: of a file.
    shapes: of the tensors beside it.
    where: they are, for the message.

  Raises:
    ValueError: for more layers than tensors, or a size above all numbers.
  """
  sizes = {
    name: getattr(config, name) for name in _FAMILY_SIZES[config.model_type]
  }
  layers = {"num_hidden_layers": sizes.pop("num_hidden_layers")}
  tensor_file.check_held(where, shapes, layers=layers, sizes=sizes)


def _check_fixed(text: Mapping[str, Any], family: str) -> None:
  fixed = dict(_FIXED)
  if family != "qwen3_next":
    fixed |= _NEXT_DEFAULTS
  for name, value in fixed.items():
    if text.get(name, value) not in (value, None):
      raise ValueError(
        f"{name} must be {as_json(value)} for model_type {family}, got "
        f"{as_json(text[name])}"
      )


def _sizes(text: Mapping[str, Any], family: str) -> dict[str, Any]:
  names = _FAMILY_SIZES[family]
  missing = [name for name in names if text.get(name) is None]
  if missing:
    raise ValueError(f"a {family} model needs {', '.join(missing)}")
  sizes = {name: json_file.typed(text[name], int, name=name) for name in names}
  return {"intermediate_size": 0} | sizes


def _options(text: Mapping[str, Any], family: str) -> dict[str, Any]:
  defaults = dict(_DEFAULTS)
  if family == "qwen3_next":
    defaults |= _NEXT_DEFAULTS
  options = {}
  for name, default in defaults.items():
    value = text.get(name, default)
    left_out = value is None and name in _NULL
    options[name] = default if left_out else value
  types = text.get("layer_types")
  if types is None:
    interval = text.get("full_attention_interval", _INTERVAL)
    interval = json_file.typed(interval, int, name="full_attention_interval")
    if interval < 1:
      raise ValueError(
        f"full_attention_interval must be at least 1, got {interval}"
      )
    types = [
      "linear_attention" if (i + 1) % interval else "full_attention"
      for i in range(min(text["num_hidden_layers"], MOST_LAYERS))
    ]
  options["layer_types"] = types
  options[_EXTENSION] = text.get(_EXTENSION, False)
  return options


def block_size(found: Mapping[str, Any]) -> tuple[int, int] | None:
  """Rows and columns of a matrix that share a scale in an FP8 checkpoint.

  Args:
    found: contents of a `config.json`.

  Returns:
    None where weights are not quantised.

  Raises:
    ValueError: for another quantisation than blocks of e4m3.
  """
  given = found.get("quantization_config")
  if not given:
    return None
  name = "quantization_config"
  given = json_file.typed(given, dict[str, Any], name=name)
  kind = given.get("quant_method"), given.get("fmt", "e4m3")
  if kind != ("fp8", "e4m3") or "weight_block_size" not in given:
    raise ValueError(
      f"{name} must be absent or fp8 in e4m3 with a weight_block_size, got "
      f"{as_json(given)}"
    )
  name = "weight_block_size"
  size = json_file.typed(given[name], tuple[int, int], name=name)
  if min(size) < 1:
    raise ValueError(f"{name} must be at least 1, got {as_json(given[name])}")
  return size
