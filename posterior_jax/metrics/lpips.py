"""LPIPS: distance of images in the features of a classifier.

Zhang et al. 2018, arXiv 1801.03924, version 0.1 of their code, which this
follows to the last epsilon; its weights are not shipped (`load_lpips`).
"""

import dataclasses
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.foreign_files.folder import as_path
from posterior_jax.metrics import classifier
from posterior_jax.metrics.classifier import CHANNELS, FORMS, Network
from posterior_jax.priors.checkpoints import named_tensors
from posterior_jax.priors.checkpoints.named_tensors import Source
from posterior_jax.short_repr import short_repr

# Added to the length of a feature vector, outside of the root, as they do.
_EPSILON = 1e-10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LPIPS:
  """The distance, a pytree of its weights.

  Attributes:
    shift: of colours, [3].
    scale: of colours, [3].
    kernels: of every convolution, [k, k, I, O].
    biases: of every convolution, [O].
    weights: of every slice's channels, [O], >= 0.
    network: "alex" or "vgg".
  """

  shift: jax.Array
  scale: jax.Array
  kernels: tuple[jax.Array, ...]
  biases: tuple[jax.Array, ...]
  weights: tuple[jax.Array, ...]
  network: Network = dataclasses.field(metadata={"static": True})

  __repr__ = short_repr

  def __call__(self, x: jax.Array, truth: jax.Array) -> jax.Array:
    """Distance of every image, 0 if equal.

    Args:
      x: [..., H, W, 3], clipped to [-1, 1]; H and W at least 31 ("alex") or 16.
      truth: the same shape or one that broadcasts to it.

    Returns:
      [...], one per image, float32.

    Raises:
      ValueError: if the images do not match, are smaller or not of 3 channels,
        or known to be in another unit, as levels.
      TypeError: if they are not floating point.
    """
    x, truth = classifier.comparable(
      x, truth, "lpips", FORMS[self.network].least
    )
    lead = jnp.broadcast_shapes(x.shape[:-3], truth.shape[:-3])
    total = jnp.zeros(lead, jnp.float32)
    features = [self._features(x), self._features(truth)]
    for weight, *pair in zip(self.weights, *features, strict=True):
      a, b = (f / (_length(f) + _EPSILON) for f in pair)
      total += jnp.mean(jnp.sum(weight * (a - b) ** 2, axis=-1), axis=(-2, -1))
    return total

  def _features(self, x: jax.Array) -> list[jax.Array]:
    """Rectified output of every slice, [..., h, w, O]."""
    form = FORMS[self.network]
    lead = x.shape[:-3]
    x = jnp.clip(x.astype(jnp.float32), -1, 1).reshape(-1, *x.shape[-3:])
    # To the statistics of the classifier's training images, per colour.
    x = (x - self.shift) / self.scale
    layers = iter(zip(self.kernels, self.biases, strict=True))
    found = []
    for convolutions, pooled in zip(form.slices, form.pooled, strict=True):
      x = _pool(x, form.window) if pooled else x
      for convolution in convolutions:
        kernel, bias = next(layers)
        x = classifier.rectified(x, kernel, bias, convolution)
      found.append(x.reshape(*lead, *x.shape[1:]))
    return found


def load_lpips(path: str | os.PathLike[str]) -> LPIPS:
  """LPIPS with weights of one's own disk.

  From a clone `python -m experiments.perceptual_weights FOLDER` writes such
  files, of "alex" and "vgg", without PyTorch; where PyTorch and `lpips` are
  installed, `torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips_alex.pt")`
  does. No code of the file is run.

  Args:
    path: of the state dict, by torch.save or NAME.safetensors.

  Returns:
    The distance.

  Raises:
    TypeError: if `path` is no path.
    FileNotFoundError: if there is no file.
    ValueError: for a damaged file, one of another network, or a tensor that is
      missing, unknown or of another shape, by name.
  """
  path = as_path(path, "path")
  tensors = named_tensors.read(path)
  # The file names the weights of the slices twice.
  tensors = {k: v for k, v in tensors.items() if not k.startswith("lins.")}
  network = _network(path.name, tensors)
  sources = _sources(network, tensors)
  found = named_tensors.collect(path.name, tensors, sources)
  return LPIPS(
    jnp.asarray(found["shift"]),
    jnp.asarray(found["scale"]),
    classifier.every(found, ".kernel"),
    classifier.every(found, ".bias"),
    classifier.every(found, ".weight"),
    network,
  )


def _network(where: str, tensors: Mapping[str, np.ndarray]) -> Network:
  if "net.slice1.2.weight" in tensors:
    return "vgg"
  if "net.slice5.10.weight" in tensors:
    return "alex"
  raise ValueError(
    f'{where} must be a state dict of lpips.LPIPS with net "alex" or "vgg"; it '
    "has neither's tensors"
  )


def _sources(
  network: Network, tensors: Mapping[str, np.ndarray]
) -> dict[str, Source]:
  """Of every array, in order, the numbers of channels being the file's."""
  found = {
    name: Source(f"scaling_layer.{name}", (1, CHANNELS, 1, 1), np.ravel)
    for name in ("shift", "scale")
  }
  sources, channels = classifier.convolutions(network, tensors, "net.slice")
  heads = {
    f"lin{i}.weight": Source(f"lin{i}.model.1.weight", (1, n, 1, 1), np.ravel)
    for i, n in enumerate(channels)
  }
  return found | sources | heads


def _pool(x: jax.Array, window: int) -> jax.Array:
  """Largest of every window, two pixels on."""
  sides, strides = (1, window, window, 1), (1, 2, 2, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, sides, strides, "VALID")


def _length(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
