"""The photo prior's network again in PyTorch, from the same parameters.

Functional, NCHW, with the layers a PyTorch user would take: what JAX's speed
is compared with, and a second implementation that the tests compare with.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from posterior_jax.priors import UNetConfig
from posterior_jax.priors.unet import wave_rates


def denoiser(
  params: Mapping[str, jax.Array | np.ndarray],
  config: UNetConfig,
  *,
  device: str,
  dtype: str,
) -> Callable[[Any, Any], Any]:
  """D(x, sigma) on tensors: x [N, C, H, W] float32, sigma [N].

  Args:
    params: as of `UNetPrior`.
    config: shape of the network.
    device: "cpu" or "cuda".
    dtype: name of the dtype of the arithmetic.

  Returns:
    The function, for `torch.compile` to take or leave.
  """
  torch = importlib.import_module("torch")
  functional = importlib.import_module("torch.nn.functional")
  kind = getattr(torch, dtype)
  weights = {
    name: _laid_out(torch, array).to(device=device, dtype=kind)
    for name, array in _kernels(params).items()
  }
  rates = torch.tensor(wave_rates(config.embedding), dtype=torch.float32)
  rates = rates.to(device)

  def conv(name: str, x: Any, padding: int = 1) -> Any:
    kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
    return functional.conv2d(x, kernel, bias, padding=padding)

  def block(name: str, h: Any, embedded: Any) -> Any:
    change = conv(f"{name}.modulation", embedded, 0)
    scale, shift = change.chunk(2, 1)
    inner = conv(f"{name}.inner", functional.silu(h)) * (1 + scale) + shift
    return h + conv(f"{name}.outer", functional.silu(inner))

  def network(x: Any, noise: Any) -> Any:
    angle = noise[:, None] * rates
    waves = torch.cat([angle.sin(), angle.cos()], -1)[..., None, None]
    embedded = functional.silu(conv("embed", waves.to(kind), 0))
    h, skips = conv("enter", x.to(kind)), []
    scales = len(config.widths) - 1
    for i in range(scales):
      for j in range(config.blocks[i]):
        h = block(f"down.{i}.{j}", h, embedded)
      skips.append(h)
      kernel, bias = weights[f"reduce.{i}.kernel"], weights[f"reduce.{i}.bias"]
      h = functional.conv2d(h, kernel, bias, stride=2)
    for j in range(2 * config.blocks[-1]):
      h = block(f"middle.{j}", h, embedded)
    for i in reversed(range(scales)):
      h = skips[i] + functional.pixel_shuffle(conv(f"enlarge.{i}", h, 0), 2)
      for j in range(config.blocks[i]):
        h = block(f"up.{i}.{j}", h, embedded)
    return conv("leave", functional.silu(h)).float()

  def denoise(x: Any, sigma: Any) -> Any:
    s = sigma[:, None, None, None]
    total = s**2 + config.sigma_data**2
    inner = network(x * total.rsqrt(), sigma.log() / 4)
    skip = config.sigma_data**2 / total
    return skip * x + s * config.sigma_data * total.rsqrt() * inner

  return denoise


def _laid_out(torch: Any, array: np.ndarray) -> Any:
  tensor = torch.tensor(array)
  if array.ndim == 4:
    return tensor.contiguous(memory_format=torch.channels_last)
  return tensor


def _kernels(params: Mapping[str, jax.Array | np.ndarray]) -> dict:
  """Every parameter as a kernel [out, in, h, w] or a bias [out]."""
  found = {}
  for name, parameter in params.items():
    array = np.asarray(parameter)
    part, kind = name.split(".")[0], name.split(".")[-1]
    if part == "enlarge":  # (row, column, D) of JAX -> (D, row, column)
      array = array.reshape(*array.shape[:-1], 2, 2, -1)
      array = np.moveaxis(array, -1, -3)
      array = array.reshape(*array.shape[:-3], -1)
    if kind == "kernel" and part == "reduce":
      array = array.reshape(2, 2, -1, array.shape[-1])
    if kind == "kernel" and array.ndim == 2:
      array = array[None, None]
    found[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
  return found
