"""Weights of OpenAI's guided-diffusion (Dhariwal and Nichol 2021) and its kin.

`ffhq_10m.pt` and `256x256_diffusion_uncond.pt` are such files. Their names say
nearly all of the network's shape; what they do not say is in `ADMConfig`.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from posterior_jax.foreign_files.folder import as_path
from posterior_jax.foreign_files.messages import clean
from posterior_jax.priors.checkpoints import named_tensors
from posterior_jax.priors.checkpoints.named_tensors import Source
from posterior_jax.priors.learned import (
  UNetPrior,
  param_shapes,
  prior_of_file,
)
from posterior_jax.priors.nets.ddpm_unet import DDPMConfig
from posterior_jax.priors.parametrisation import VP, Parametrisation

# Ours on the left.
_BLOCK = {
  "norm1": "in_layers.0",
  "conv1": "in_layers.2",
  "time_emb_proj": "emb_layers.1",
  "norm2": "out_layers.0",
  "conv2": "out_layers.3",
  "conv_shortcut": "skip_connection",
  "group_norm": "norm",
  "to_q": "qkv",
  "to_k": "qkv",
  "to_v": "qkv",
  "to_out": "proj_out",
}
_ENDS = {
  "conv_in": "input_blocks.0.0",
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "conv_norm_out": "out.0",
  "conv_out": "out.2",
}
_MIDDLE = {
  ("resnets", "0"): "middle_block.0",
  ("attentions", "0"): "middle_block.1",
  ("resnets", "1"): "middle_block.2",
}
_SUB = {"resnets": 0, "attentions": 1}
_QKV = ("to_q", "to_k", "to_v")


@dataclasses.dataclass(frozen=True)
class ADMConfig:
  """What the tensors of a file do not tell.

  The defaults are those of OpenAI's unconditional ImageNet weights and of
  `ffhq_10m.pt`.

  Attributes:
    head_width: channels of a head (`num_head_channels`); None: see `heads`.
    heads: of every attention, where head_width is None (`num_heads`).
    new_head_order: whether queries, keys and values of all heads follow each
      other (`use_new_attention_order`), rather than those of each head.
    parametrisation: what the network was trained to answer.
  """

  head_width: int | None = 64
  heads: int = 1
  new_head_order: bool = False
  parametrisation: Parametrisation = VP()  # noqa: RUF009  (frozen)


def load_adm(
  path: pathlib.Path | str,
  *,
  config: ADMConfig = ADMConfig(),
  dtype: DTypeLike = jnp.float32,
) -> UNetPrior[DDPMConfig]:
  """The prior of an unconditional guided-diffusion network.

  Args:
    path: of the state dict: a file of `torch.save` (of which no code is run),
      or NAME.safetensors with the same names.
    config: what the tensors do not tell.
    dtype: of the arithmetic: float32, or bfloat16 on accelerators.

  Returns:
    The prior; its `denoise` is what `posterior_jax.run` takes. Sides of images
    are divisible by `prior.config.unit`.

  Raises:
    TypeError: if `path` is no path.
    FileNotFoundError: if there is no file.
    ValueError: for a file that is truncated, changed, of another kind, or that
      names a class; for a tensor that is missing, unknown, of another shape or
      not finite; all before anything is compiled.
  """
  path = as_path(path, "path")
  tensors = named_tensors.read(path)
  if "label_emb.weight" in tensors:
    raise ValueError(
      f"{path.name} holds 'label_emb.weight': the network wants a class, and "
      "only unconditional ones are read"
    )
  network = infer(path.name, tensors, config)
  params = named_tensors.collect(path.name, tensors, sources(network, config))
  return prior_of_file(network, params, dtype=dtype)


def infer(
  where: str, tensors: Mapping[str, np.ndarray], config: ADMConfig
) -> DDPMConfig:
  """The network's shape out of the names and shapes of its tensors.

  Args:
    where: the file's name, for messages.
    tensors: by name.
    config: what they do not tell.

  Returns:
    The shape, not yet compared with all tensors.

  Raises:
    ValueError: if a tensor is missing that every such network has, or if the
      shapes make no network.
  """
  shape = functools.partial(_shape, where, tensors)
  count = next(
    j
    for j in itertools.count()
    if f"output_blocks.{j}.0.in_layers.0.weight" not in tensors
  )
  kinds = [_change(tensors, j) for j in range(count)]
  ups = [kind for kind in kinds if kind]
  blocks = next((j for j, kind in enumerate(kinds) if kind), count - 1)
  scales = range(len(ups) + 1)
  # Of each scale, the finest first: its first blocks on both ways.
  ins = [1 + level * (blocks + 1) for level in scales]
  outs = [(blocks + 1) * level for level in reversed(scales)]
  widths = [
    shape(f"output_blocks.{j}.0.out_layers.3.weight", 4)[0] for j in outs
  ]
  told = shape("middle_block.0.emb_layers.1.weight", 2)[0]
  embedding, features = shape("time_embed.0.weight", 2)
  return DDPMConfig(
    widths=tuple(widths),
    blocks=blocks,
    attention=tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in ins),
    attention_up=tuple(
      f"output_blocks.{j}.1.qkv.weight" in tensors for j in outs
    ),
    down=tuple(
      "conv" if f"input_blocks.{i - 1}.0.op.weight" in tensors else "residual"
      for i in ins[1:]
    ),
    up=tuple(reversed(ups)),
    features=features,
    embedding=embedding,
    heads=config.heads,
    head_width=config.head_width,
    channels=shape("input_blocks.0.0.weight", 4)[1],
    outputs=shape("out.2.weight", 4)[0],
    scale_shift=told == 2 * widths[-1],
    parametrisation=config.parametrisation,
  )


def _change(tensors: Mapping[str, np.ndarray], j: int) -> str | None:
  """How the block doubles the sides after all else it does, if it does."""
  sub = 2 if f"output_blocks.{j}.1.qkv.weight" in tensors else 1
  if f"output_blocks.{j}.{sub}.conv.weight" in tensors:
    return "conv"
  if f"output_blocks.{j}.{sub}.in_layers.0.weight" in tensors:
    return "residual"
  return None


def _shape(
  where: str, tensors: Mapping[str, np.ndarray], name: str, rank: int
) -> tuple[int, ...]:
  if name not in tensors:
    raise ValueError(
      f"{where} must hold {name!r} as guided-diffusion's networks do; it is "
      "missing"
    )
  found = tuple(tensors[name].shape)
  if len(found) != rank:
    raise ValueError(
      f"{name!r} of {where} must have {rank} axes, got {clean(str(found))}"
    )
  # An axis of any length costs nothing beside one of 0.
  if 0 in found:
    raise ValueError(f"{name!r} of {where} must hold numbers, got {found}")
  return found


def sources(network: DDPMConfig, config: ADMConfig) -> dict[str, Source]:
  """Where each parameter of a network is in a file.

  Args:
    network: its shape, from `infer`.
    config: what tensors do not tell.

  Returns:
    By our names; three parameters each come out of the tensors named qkv.
  """
  return {
    param: _source(param, shape, network, config)
    for param, shape in param_shapes(network).items()
  }


def _source(
  param: str, shape: tuple[int, ...], network: DDPMConfig, config: ADMConfig
) -> Source:
  """The tensor of a parameter; attention's are kernels of one axis."""
  layer, leaf = param.rsplit(".", 1)
  part = layer.rsplit(".", 1)[-1]
  stored = named_tensors.source(_renamed(layer, network), leaf, shape)
  if part == "to_out" and leaf == "kernel":
    return Source(stored.name, (*stored.shape, 1), lambda t: t[..., 0].T)
  if part not in _QKV:
    return stored
  width = shape[-1]
  convert = functools.partial(
    _part,
    index=_QKV.index(part),
    heads=1 if config.new_head_order else network.heads_of(width),
  )
  return Source(
    stored.name, (3 * width, width, 1)[: 3 if leaf == "kernel" else 1], convert
  )


def _part(tensor: np.ndarray, *, index: int, heads: int) -> np.ndarray:
  """Queries, keys or values out of qkv, [3 D] or [3 D, D, 1]."""
  width = len(tensor) // 3
  # The old order keeps q, k and v of each head together; in the new one, which
  # is that of a single head of full width, each of them is one block.
  rows = tensor.reshape(heads, 3, width // heads, -1)[:, index]
  return rows.reshape(width, *tensor.shape[1:2]).T


def _renamed(layer: str, network: DDPMConfig) -> str:
  """A layer's name in the file."""
  if layer in _ENDS:
    return _ENDS[layer]
  group, *rest = layer.split(".")
  if group == "mid_block":
    kind, i, inner = rest
    return f"{_MIDDLE[kind, i]}.{_BLOCK[inner]}"
  scale, kind, i, inner = rest
  first = int(scale) * (network.blocks + 1)
  if group == "down_blocks":
    if kind == "downsamplers":
      place = f"input_blocks.{first + network.blocks + 1}.0"
      return f"{place}.{_BLOCK.get(inner, 'op')}"
    place = f"input_blocks.{first + 1 + int(i)}"
  elif kind == "upsamplers":
    sub = 2 if network.attention_up[-1 - int(scale)] else 1
    place = f"output_blocks.{first + network.blocks}.{sub}"
    return f"{place}.{_BLOCK.get(inner, inner)}"
  else:
    place = f"output_blocks.{first + int(i)}"
  return f"{place}.{_SUB[kind]}.{_BLOCK[inner]}"
