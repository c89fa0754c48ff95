"""What PEFT's `adapter_config.json` says, read and written."""

import pathlib
from collections.abc import Iterable
from typing import Any

from neumann_jax.foreign_files import json_file
from neumann_jax.foreign_files.folder import own_file
from neumann_jax.foreign_files.messages import clean, shown
from neumann_jax.tuning.lora import LoraSpec

CONFIG = "adapter_config.json"
# PEFT takes these names among the target modules of Qwen3-Next for its routed
# experts', of which transformers 5 makes two parameters, and leaves the shared
# expert as it was. Named as parameters the linear maps are taken at their word.
_TAKEN_FOR_EXPERTS = {"qwen3_next": ("gate_proj", "up_proj", "down_proj")}
# Keys of PEFT's file that change nothing of what tensors, r and alpha compute,
# and what they may say; None: anything. PEFT grows by switches that do change
# it, so that what is not here is refused unless it is absent or off.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
  "peft_type": None,  # checked by itself
  "r": None,
  "lora_alpha": None,
  "use_rslora": None,
  "task_type": None,
  "auto_mapping": None,
  "base_model_name_or_path": None,
  "revision": None,
  "peft_version": None,
  "inference_mode": None,
  # The tensors say which maps are adapted.
  "target_modules": None,
  "target_parameters": None,
  "exclude_modules": None,
  "layers_to_transform": None,
  "layers_pattern": None,
  # Of training alone.
  "lora_dropout": None,
  "eva_config": None,
  # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take something off the base, so that
  # their adapters belong to another one.
  "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
  # Values that PEFT writes where what they are options of is off.
  "bias": ("none",),
  "megatron_core": ("megatron.core",),
  "qalora_group_size": None,
}
_OFF: tuple[Any, ...] = (None, False, [], {})


def spec_of(
  path: pathlib.Path, config: dict[str, Any], targets: tuple[str, ...]
) -> LoraSpec:
  """Rank and scale that a config says, for maps of these names.

  Args:
    path: the folder, for messages.
    config: of `read_config`.
    targets: names of linear maps.

  Raises:
    ValueError: for a value of another type, or out of range.
  """
  try:
    return LoraSpec(
      json_file.typed(config.get("r"), int, name="r"),
      json_file.typed(config.get("lora_alpha"), float, name="lora_alpha"),
      targets,
      json_file.typed(config.get("use_rslora", False), bool, name="use_rslora"),
    )
  except ValueError as error:
    raise ValueError(f"{path / CONFIG}: {error}") from None


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The config of a folder, of whatever settings.

  Args:
    path: the folder.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is not JSON, or not of LoRA.
  """
  file = own_file(path, CONFIG)
  try:
    config = json_file.typed(json_file.read(file), dict[str, Any])
  except ValueError as error:
    raise ValueError(f"{file} is no readable JSON ({error})") from None
  if config.get("peft_type") != "LORA":
    raise ValueError(
      f"{file} must have peft_type LORA, got {shown(config.get('peft_type'))}"
    )
  return config


def check_settings(path: pathlib.Path, config: dict[str, Any]) -> None:
  """Raises ValueError for a setting that changes what is computed."""
  for name, value in config.items():
    harmless = _HARMLESS.get(name, ())
    if harmless is not None and value not in (*_OFF, *harmless):
      raise ValueError(
        f"{path / CONFIG} has {clean(name)} {shown(value)}, which is not "
        "computed here"
      )


def targets_of(
  names: Iterable[str], model_type: str
) -> tuple[list[str], list[str]]:
  """What PEFT is told to adapt: linear maps, or weights by themselves."""
  misread = _TAKEN_FOR_EXPERTS.get(model_type, ())
  modules: set[str] = set()
  parameters: set[str] = set()
  for name in names:
    *_, owner, target, _, _ = name.split(".")
    if target in misread:
      # With the owner, or it would name those of single experts as well.
      parameters.add(f"{owner}.{target}.weight")
    else:
      modules.add(target)
  return sorted(modules), sorted(parameters)
