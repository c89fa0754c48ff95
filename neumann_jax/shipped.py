"""The language model that ships with the package, and files like it.

A model is two files: NAME.safetensors holds its parameters in bfloat16 (A_log
and dt_bias in float32), named by their paths; NAME.json says what they are: the
architecture, what it was trained on, the command, and the hash of the weights,
which is verified on loading. No code is read.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from neumann_jax.checkpoint.hf_config import check_held
from neumann_jax.checkpoint.hf_layout import Path, param_shapes
from neumann_jax.checkpoint.params import (
  Sources,
  Targets,
  abstract_model,
)
from neumann_jax.execution import Execution
from neumann_jax.foreign_files.folder import as_path
from neumann_jax.foreign_files.manifest import read as read_manifest
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.model_config import ModelConfig

__all__ = ("language_model", "load_model", "save_model")

SHIPPED = pathlib.Path(__file__).parent / "assets" / "language_model.json"


def language_model(
  *,
  execution: Execution = Execution(),  # noqa: B008  (frozen)
) -> LanguageModel:
  """The shipped hybrid model of bytes: sources of Python's standard library.

  Tokens 0 to 255 are bytes, the others marks of documents and tasks; the
  manifest beside the weights says what it was trained on.

  Args:
    execution: how it is computed; parameters are cast to its `param_dtype`,
      A_log and dt_bias to float32.

  Raises:
    ValueError: if its files were changed.

  Example:
    >>> from neumann_jax import shipped
    >>> model = shipped.language_model()
    >>> model.config.model_type, model.config.num_hidden_layers
    ('qwen3_5_text', 8)
  """
  return load_model(SHIPPED, execution)


def load_model(
  manifest: pathlib.Path | str,
  execution: Execution = Execution(),  # noqa: B008  (frozen)
) -> LanguageModel:
  """A model that `save_model` wrote.

  Args:
    manifest: NAME.json; the weights lie beside it.
    execution: as for `language_model`.

  Raises:
    TypeError: if `manifest` is no path.
    FileNotFoundError: if there is no such manifest.
    ValueError: if the manifest says no model, or the weights are missing,
      changed, not finite, elsewhere, or those of another architecture.
  """
  manifest = as_path(manifest, "manifest")
  config, path, params = read_manifest(manifest, "config", ModelConfig)
  # All shapes before any array goes to a device.
  held = {name: value.shape for name, value in params.items()}
  check_held(config, held, path.name)
  shapes = param_shapes(config)
  if held != {_name(path): shape for path, shape in shapes.items()}:
    raise ValueError(
      f"{path.name} holds other parameters than the config of {manifest.name}"
    )
  targets = Targets(abstract_model(config, execution), None)
  for target in shapes:
    targets.put(target, params[_name(target)])
  return targets.model()


def save_model(
  manifest: pathlib.Path | str,
  model: LanguageModel,
  about: Mapping[str, Any],
) -> None:
  """Writes a model's two files, the manifest last.

  Args:
    manifest: NAME.json.
    model: of separate or of scanned layers; its parameters are finite.
    about: what else the manifest says: data, command, seconds.

  Raises:
    TypeError: if `manifest` is no path.
    ValueError: if a parameter is not finite in bfloat16, or lies on devices of
      other processes.
  """
  manifest = as_path(manifest, "manifest")
  sources, small = Sources(model), {}
  for path in param_shapes(model.config):
    # A_log and dt_bias are exponents of a decay over thousands of tokens.
    kept = np.float32 if path[-1] in ("A_log", "dt_bias") else jnp.bfloat16
    value = sources.get(path).astype(kept)
    if not np.isfinite(value.astype(np.float32)).all():
      raise ValueError(f"{_name(path)} must be finite in {value.dtype}")
    small[_name(path)] = value
  # In memory first: the hash is of the bytes, and the manifest, which promises
  # it, is written last.
  weights = safetensors.numpy.save(small)
  file = manifest.with_suffix(".safetensors")
  file.write_bytes(weights)
  said = {
    "file": file.name,
    "sha256": hashlib.sha256(weights).hexdigest(),
    "config": dataclasses.asdict(model.config),
    **about,
  }
  manifest.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _name(path: Path) -> str:
  return ".".join(map(str, path))
