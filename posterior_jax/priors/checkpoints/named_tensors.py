"""Tensors of published files under the names of our parameters.

PyTorch keeps the kernel of a convolution as [O, I, h, w] and of a linear map as
[O, I]; here they are [h, w, I, O] and [I, O]. Letters: I entering, O leaving
channels, h w sides of a kernel.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from posterior_jax.foreign_files import tensor_file
from posterior_jax.priors.checkpoints import torch_file
from posterior_jax.priors.learned import check_arrays
from posterior_jax.priors.nets.ddpm_unet import DDPMConfig
from posterior_jax.priors.nets.unet import UNetConfig

# What training adds to every name: DistributedDataParallel, torch.compile,
# Lightning and EMA copies. No network that is read here has such a part.
_WRAPPERS = (
  *("module.", "_orig_mod.", "state_dict.", "model_state_dict."),
  *("model.", "ema_model.", "ema.", "model_ema.", "net.", "unet."),
)


class Source(NamedTuple):
  """Where a parameter comes from.

  Attributes:
    name: of the tensor in the file.
    shape: of that tensor.
    convert: the tensor to the parameter.
  """

  name: str
  shape: tuple[int, ...]
  convert: Callable[[np.ndarray], np.ndarray]


def source(layer: str, leaf: str, shape: tuple[int, ...]) -> Source:
  """Of a parameter that is stored as PyTorch's layers store theirs.

  Args:
    layer: the layer's name in the file.
    leaf: "kernel", "bias", "scale" or "weight", ours.
    shape: ours.

  Returns:
    The tensor "LAYER.weight" or "LAYER.bias" and how to turn it.
  """
  name = f"{layer}.bias" if leaf == "bias" else f"{layer}.weight"
  # Biases, scales of norms and stored rates have no axes to turn.
  if leaf != "kernel":
    return Source(name, shape, np.asarray)
  if len(shape) == 2:
    return Source(name, shape[::-1], np.transpose)
  height, width, entering, leaving = shape
  return Source(
    name,
    (leaving, entering, height, width),
    lambda tensor: tensor.transpose(2, 3, 1, 0),
  )


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file, as it names them; no code of it is run.

  Args:
    path: NAME.safetensors, or of any other name a file of `torch.save`.

  Returns:
    Arrays by name.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: for a file that is truncated, changed or of another kind.
  """
  if not path.is_file():
    raise FileNotFoundError(f"path must be a file of weights, got {path}")
  if path.suffix != ".safetensors":
    return unwrapped(torch_file.read(path))
  try:
    return unwrapped(tensor_file.read(path))
  except ValueError as error:
    raise ValueError(
      f"{path.name} is truncated or not safetensors: {error}"
    ) from None


def check_held(
  where: str,
  tensors: Mapping[str, np.ndarray],
  network: DDPMConfig | UNetConfig,
) -> None:
  """Refuses a network of more than a file holds, before it is made.

  Args:
    where: the file's name, for messages.
    tensors: of the file.
    network: its shape; whole numbers in it are sizes of axes, or counts of
      blocks, of every scale or of each.

  Raises:
    ValueError: naming the field.
  """
  sizes = {}
  for field in dataclasses.fields(network):
    value = getattr(network, field.name)
    numbers = value if isinstance(value, tuple) else (value,)
    sizes[field.name] = max(
      (n for n in numbers if isinstance(n, int)), default=0
    )
  scales, blocks = len(network.widths), network.blocks
  total = sum(blocks) if isinstance(blocks, tuple) else scales * blocks
  layers = {"blocks": total, "widths": scales}
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  tensor_file.check_held(where, shapes, layers=layers, sizes=sizes)


def unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors by the names that they had before a wrapper added its own.

  Of wrappers one inside another, each is on every name or it is none.
  """
  for prefix in _WRAPPERS:
    if tensors and all(name.startswith(prefix) for name in tensors):
      inner = {name[len(prefix) :]: a for name, a in tensors.items()}
      return unwrapped(inner)
  return tensors


def collect(
  where: str,
  tensors: Mapping[str, np.ndarray],
  sources: Mapping[str, Source],
) -> dict[str, np.ndarray]:
  """Our parameters, every tensor of the file being one or part of one.

  Args:
    where: the file's name, for messages.
    tensors: of the file.
    sources: of every parameter.

  Returns:
    Arrays by our names.

  Raises:
    ValueError: naming the first tensor that is missing, unknown, of another
      shape, not floating point or not finite.
  """
  # Before any conversion, so that the message has the file's name and shape.
  check_arrays(where, tensors, {s.name: s.shape for s in sources.values()})
  for name, value in tensors.items():
    tensor_file.check_finite(where, name, value)
  return {param: s.convert(tensors[s.name]) for param, s in sources.items()}
