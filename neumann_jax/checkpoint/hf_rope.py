"""The rotary options of a `config.json` <-> those of `ModelConfig`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from neumann_jax.foreign_files import json_file
from neumann_jax.foreign_files.messages import as_json
from neumann_jax.model_config import ModelConfig
from neumann_jax.yarn import Yarn

# Of transformers' config classes, for a file that names no value.
_DEFAULTS = {"rope_theta": 1e4, "partial_rotary_factor": 0.25}
# Of YaRN; of null transformers takes its own default.
_YARN = tuple(field.name for field in dataclasses.fields(Yarn))


def read(text: Mapping[str, Any]) -> dict[str, Any]:
  """Rotary options: those of a dictionary before those beside it."""
  # Files of transformers 4 have them beside, newer ones in a dictionary.
  given = text.get("rope_scaling") or text.get("rope_parameters") or {}
  given = json_file.typed(given, dict[str, Any], name="rope_parameters")
  kind = given.get("rope_type", given.get("type", "default"))
  if kind not in ("default", "yarn"):
    raise ValueError(
      f'rope_type must be "default" or "yarn", got {as_json(kind)}'
    )
  options: dict[str, Any] = {
    name: given.get(name, text.get(name, default))
    for name, default in _DEFAULTS.items()
  }
  if kind == "yarn":
    options["rope_scaling"] = _yarn(given, text)
  return options


def _yarn(given: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `Yarn` that are there, with what they leave out."""
  longest = text.get("max_position_embeddings") or 32768
  trained = "original_max_position_embeddings"
  # Files that were extended by hand often leave the trained length out.
  yarn = {trained: longest} | {
    name: given[name] for name in _YARN if given.get(name) is not None
  }
  if "factor" not in yarn:
    own = json_file.typed(yarn[trained], int, name=trained)
    longest = json_file.typed(longest, int, name="max_position_embeddings")
    yarn["factor"] = longest / max(own, 1)
  return yarn


def write(config: ModelConfig) -> dict[str, Any]:
  """The entries from which `read` takes the rotary options of a config."""
  rope: dict[str, Any] = {name: getattr(config, name) for name in _DEFAULTS}
  kind: dict[str, Any] = {"rope_type": "default"}
  if config.rope_scaling is not None:
    fields = dataclasses.asdict(config.rope_scaling)
    kind = {"rope_type": "yarn"}
    kind |= {name: x for name, x in fields.items() if x is not None}
  if config.model_type != "qwen3_next":
    return {"rope_parameters": kind | rope}
  if config.rope_scaling is not None:
    rope["rope_scaling"] = kind
  return rope
