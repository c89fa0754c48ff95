"""Weights of diffusers' `UNet2DModel` in a directory, with their config.

Old files name attention's layers query, key, value and proj_attn, new ones
to_q, to_k, to_v and to_out.0; both are read.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from posterior_jax.foreign_files import folder, json_file, tensor_file
from posterior_jax.foreign_files.messages import shown
from posterior_jax.priors.checkpoints import named_tensors
from posterior_jax.priors.checkpoints.diffusers_config import (
  read_network,
  read_schedule,
)
from posterior_jax.priors.checkpoints.named_tensors import Source
from posterior_jax.priors.learned import (
  UNetPrior,
  param_shapes,
  prior_of_file,
)
from posterior_jax.priors.nets.ddpm_unet import DDPMConfig
from posterior_jax.priors.parametrisation import Parametrisation

_WEIGHTS = (
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.bin",
  "diffusion_pytorch_model.fp16.bin",
)
# What says which of several files a tensor is in.
_INDEXES = tuple(
  f"diffusion_pytorch_model.{kind}safetensors.index{end}.json"
  for kind, end in (("", ""), ("fp16.", ""), ("", ".fp16"))
)
# A training's average of the weights is the better network.
_NETWORKS = ("unet_ema", "unet")
# A network beside one of these denoises codes of a picture, not pixels.
_CODERS = ("vqvae", "vae", "movq")
_LONGEST_HEAD = 200  # bytes of refs/main, which names a revision
# Theirs on the right; a new file's to_out is a list of a linear map and
# dropout.
_NEW = {"to_out": "to_out.0"}
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj_attn"}


def load_diffusers(
  path: pathlib.Path | str,
  *,
  parametrisation: Parametrisation | None = None,
  dtype: DTypeLike = jnp.float32,
) -> UNetPrior[DDPMConfig]:
  """The prior of a diffusers `UNet2DModel`.

  Args:
    path: of a model's directory (config.json beside safetensors, in one file
      or several, or .bin, of which no code is run), of a pipeline's with unet/
      or unet_ema/ in it, or of either in the hub's cache (models--NAME).
    parametrisation: what the network was trained to answer; None: what
      scheduler_config.json says, in the directory or in scheduler/ beside it.
    dtype: of the arithmetic: float32, or bfloat16 on accelerators.

  Returns:
    The prior; its `denoise` is what `posterior_jax.run` takes. Sides of images
    are divisible by `prior.config.unit`.

  Raises:
    TypeError: if `path` is no path.
    FileNotFoundError: if a file is missing.
    ValueError: for a config with an option that is not computed here, a
      pipeline of latent diffusion, and for a file of weights that is truncated,
      of another kind, names a class, or holds tensors that are missing,
      unknown, of another shape or not finite; all before anything is compiled.
  """
  path = _model_folder(folder.as_path(path, "path"))
  said = _read(path, [folder.own_file(path, "config.json")])
  if parametrisation is None:
    name = "scheduler_config.json"
    # A pipeline's folder is that of the network and the schedule.
    beside = folder.own_file(path.parent, "scheduler", name)
    places = [folder.own_file(path, name), beside]
    parametrisation = read_schedule(_read(path, places))
  network = read_network(said, parametrisation)
  file, tensors = _tensors(path)
  named_tensors.check_held(file.name, tensors, network)
  # By what the file holds: the version in config.json does not tell.
  old = any(name.endswith(".query.weight") for name in tensors)
  wanted = sources(network, old_names=old)
  params = named_tensors.collect(file.name, tensors, wanted)
  return prior_of_file(network, params, dtype=dtype)


def sources(network: DDPMConfig, *, old_names: bool) -> dict[str, Source]:
  """Where each parameter of a network is in a file.

  Args:
    network: its shape, from config.json.
    old_names: whether attention's layers are query, key, value, proj_attn.

  Returns:
    By our names.
  """
  names = _OLD if old_names else _NEW
  return {
    param: _source(param, shape, names)
    for param, shape in param_shapes(network).items()
  }


def _model_folder(path: pathlib.Path) -> pathlib.Path:
  """Where config.json lies: in the directory, its pipeline or its snapshot."""
  head = path / "refs" / "main"
  if (path / "snapshots").is_dir() and head.is_file():
    head = folder.own_file(path, "refs", "main")
    try:
      name = folder.read(head, most=_LONGEST_HEAD).decode().strip()
    except ValueError as error:
      raise ValueError(f"{head} names no snapshot: {error}") from None
    path = folder.own_file(path, "snapshots", name)
  for name in _CODERS:
    if (path / name).is_dir():
      raise ValueError(
        f"path must be of a network of pixels, {path} is a latent pipeline: "
        f"its unet works on the codes of {name}"
      )
  for name in _NETWORKS:
    # The subfolder itself may be the link that leads out.
    if folder.own_file(path, name, "config.json").is_file():
      return path / name
  return path


def _tensors(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """All tensors of a directory, and the file to name in messages."""
  index = next((path / n for n in _INDEXES if (path / n).is_file()), None)
  if index is None:
    file = _first(path, [folder.own_file(path, name) for name in _WEIGHTS])
    return file, named_tensors.read(file)
  index = folder.own_file(path, index.name)
  try:
    shards = json_file.read_names(index, "weight_map")
  except ValueError as error:
    raise ValueError(f"{index.name} holds no weight_map: {error}") from None
  if not shards:
    raise ValueError(f"{index.name} must hold a weight_map, it does not")
  tensors: dict[str, np.ndarray] = {}
  for name in sorted({str(name) for name in shards.values()}):
    tensors |= named_tensors.read(folder.own_file(path, name))
    if len(tensors) > tensor_file.MOST_TENSORS:
      raise ValueError(
        f"{index.name} names files of more than {tensor_file.MOST_TENSORS} "
        "tensors"
      )
  return index, tensors


def _first(path: pathlib.Path, files: Sequence[pathlib.Path]) -> pathlib.Path:
  for file in files:
    if file.is_file():
      return file
  names = " or ".join(dict.fromkeys(file.name for file in files))
  raise FileNotFoundError(f"path must hold {names}, got {path}")


def _read(path: pathlib.Path, files: Sequence[pathlib.Path]) -> dict[str, Any]:
  """The first of some JSON files."""
  file = _first(path, files)
  try:
    found = json_file.read(file)
  except ValueError as error:
    raise ValueError(f"{file.name} is no JSON: {error}") from None
  if not isinstance(found, dict):
    raise ValueError(f"{file.name} must hold a dict, got {shown(found)}")
  return found


def _source(
  param: str, shape: tuple[int, ...], names: Mapping[str, str]
) -> Source:
  layer, leaf = param.rsplit(".", 1)
  *above, part = layer.split(".")
  return named_tensors.source(
    ".".join([*above, names.get(part, part)]), leaf, shape
  )
