"""`posterior_jax.nfc` for circular blur again in PyTorch, step by step.

Restoration's form: one denoiser call a level, the mean of the level's target
with the width sigma^2, in closed form by FFT, then fresh noise. What the
sampler's speed is compared with, and a second implementation for the tests.
"""

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

Denoise = Callable[[Any, Any], Any]


def step(
  denoise: Denoise,  # (x [N, C, H, W], sigma [N]) -> x0
  x: Any,  # the state at noise sigma, [N, C, H, W]
  y: Any,  # measurements, [N, C, H, W]
  transfer: Any,  # the kernel's half spectrum, [H, W // 2 + 1] complex
  noise_std: float,  # of the measurements
  sigma: Any,  # scalar tensor, the level
  following: Any,  # scalar tensor, the next level
  noise: Any,  # standard normal, [N, C, H, W]
) -> Any:
  """One level: the state at noise `following`."""
  x0 = denoise(x, sigma.expand(len(x)))
  weight = noise_std**-2
  pull = _filter(y - _filter(x0, transfer), transfer.conj()) * weight
  gain = transfer.abs() ** 2 * weight + sigma**-2
  return x0 + _filter(pull, 1 / gain) + following * noise


def loop(
  step: Callable[..., Any],  # `step`, compiled or not
  denoise: Denoise,  # see there
  y: Any,  # measurements, [N, C, H, W]
  transfer: Any,  # see `step`
  noise_std: float,  # of the measurements
  sigmas: Sequence[Any],  # scalar tensors, the levels, decreasing, the last 0
) -> Any:
  """A whole run from pure noise: restored images, [N, C, H, W]."""
  torch = importlib.import_module("torch")
  x = sigmas[0] * torch.randn_like(y)
  for sigma, following in itertools.pairwise(sigmas):
    noise = torch.randn_like(y)
    x = step(denoise, x, y, transfer, noise_std, sigma, following, noise)
  return x


def _filter(x: Any, transfer: Any) -> Any:
  fft = importlib.import_module("torch").fft
  return fft.irfft2(fft.rfft2(x) * transfer, s=x.shape[-2:])
