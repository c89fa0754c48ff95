"""The photo prior's network again in PyTorch, from the same parameters.

Functional, NCHW, with the layers a PyTorch user would take: what JAX's speed
is compared with, and a second implementation that the tests compare with.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from posterior_jax.priors import UNetConfig, learned
from posterior_jax.priors.nets.unet import wave_rates


def denoiser(
  params: Mapping[str, jax.Array | np.ndarray],  # as of `UNetPrior`
  config: UNetConfig,  # shape of the network
  *,
  device: str,  # "cpu" or "cuda"
  dtype: str,  # name of the dtype of the arithmetic
) -> Callable[[Any, Any], Any]:
  """D(x, sigma) on tensors: x [N, C, H, W] float32, sigma [N]."""
  torch = importlib.import_module("torch")
  kind = getattr(torch, dtype)
  weights = {
    name: _laid_out(torch, array).to(device=device, dtype=kind)
    for name, array in _kernels(params).items()
  }
  rates = torch.tensor(wave_rates(config.embedding), dtype=torch.float32)
  rates = rates.to(device)

  def denoise(x: Any, sigma: Any) -> Any:
    furthest = (1 + learned.REACH * sigma)[:, None, None, None]
    x = torch.minimum(torch.maximum(x, -furthest), furthest)
    known = sigma.clamp(max=config.sigma_max)
    x = (known / sigma)[:, None, None, None] * x
    s = known[:, None, None, None]
    total = s**2 + config.sigma_data**2
    angle = (known.clamp(min=config.sigma_min).log() / 4)[:, None] * rates
    waves = torch.cat([angle.sin(), angle.cos()], -1)[..., None, None]
    inner = _network(
      weights, config, (x * total.rsqrt()).to(kind), waves.to(kind)
    )
    out = s * config.sigma_data * total.rsqrt()
    return config.sigma_data**2 / total * x + out * inner.float()

  return denoise


def _network(
  weights: dict[str, Any], config: UNetConfig, x: Any, waves: Any
) -> Any:
  """F: x [N, C, H, W] and the waves of c_noise [N, E, 1, 1]."""
  functional = importlib.import_module("torch.nn.functional")

  def conv(name: str, x: Any, **options: int) -> Any:
    kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
    return functional.conv2d(x, kernel, bias, **options)

  def normed(name: str, h: Any) -> Any:
    mean = h.float().square().mean(1, keepdim=True)
    scale = weights[f"{name}.norm.scale"][:, None, None]
    return (h.float() * (mean + 1e-6).rsqrt()).to(h.dtype) * scale

  def block(name: str, h: Any) -> Any:
    scale, shift = conv(f"{name}.modulation", embedded).chunk(2, 1)
    entering = normed(name, h) if config.normed else functional.silu(h)
    inner = conv(f"{name}.inner", entering, padding=1)
    inner = functional.silu(inner * (1 + scale) + shift)
    return h + conv(f"{name}.outer", inner, padding=1)

  embedded = functional.silu(conv("embed", waves))
  h, skips = conv("enter", x, padding=1), []
  scales = range(len(config.widths) - 1)
  for i in scales:
    for j in range(config.blocks[i]):
      h = block(f"down.{i}.{j}", h)
    skips.append(h)
    h = conv(f"reduce.{i}", h, stride=2)
  for j in range(2 * config.blocks[-1]):
    h = block(f"middle.{j}", h)
  for i in reversed(scales):
    h = skips[i] + functional.pixel_shuffle(conv(f"enlarge.{i}", h), 2)
    for j in range(config.blocks[i]):
      h = block(f"up.{i}.{j}", h)
  return conv("leave", functional.silu(h), padding=1)


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
