"""DISTS: structure and texture of images in the features of VGG16.

Ding et al. 2020, arXiv 2004.07728, with the constants of their code; its
weights are not shipped (`load_dists`).
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.foreign_files.folder import as_path
from posterior_jax.metrics import classifier
from posterior_jax.metrics.classifier import CHANNELS, FORMS
from posterior_jax.priors.checkpoints import named_tensors
from posterior_jax.priors.checkpoints.named_tensors import Source
from posterior_jax.short_repr import short_repr

_VGG = FORMS["vgg"]
# Of the similarities of means and of variances, and below the pooling's root.
_C1, _C2, _ROOT = 1e-6, 1e-6, 1e-12
# A Hanning window of 5 between its zeros: pooling that does not alias.
_TAPS = np.array([0.25, 0.5, 0.25], np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DISTS:
  """The distance, a pytree of its weights.

  Attributes:
    mean: of the classifier's training images by colour, [3], of [0, 1].
    std: their standard deviation, [3].
    kernels: of every convolution, [k, k, I, O].
    biases: of every convolution, [O].
    alpha: weight of every channel's means, the image's own three first, [K].
    beta: weight of every channel's structure, [K].
  """

  mean: jax.Array
  std: jax.Array
  kernels: tuple[jax.Array, ...]
  biases: tuple[jax.Array, ...]
  alpha: jax.Array
  beta: jax.Array

  __repr__ = short_repr

  def __call__(self, x: jax.Array, truth: jax.Array) -> jax.Array:
    """1 - sum of alpha l(x, truth) + beta s(x, truth), 0 if equal.

      l = (2 m_x m_y + C) / (m_x^2 + m_y^2 + C)
      s = (2 cov_xy + C) / (var_x + var_y + C)

    per channel of the image and of the five slices' features, the weights
    together 1. Images are taken as they are; the published script first
    shrinks those whose shorter side exceeds 256 pixels to 256.

    Args:
      x: [..., H, W, 3], clipped to [-1, 1]; H and W at least 16.
      truth: the same shape or one that broadcasts to it.

    Returns:
      [...], one per image, float32.

    Raises:
      ValueError: if the images do not match, are smaller or not of 3 channels,
        or known to be in another unit, as levels.
      TypeError: if they are not floating point.
    """
    x, truth = classifier.comparable(x, truth, "dists", _VGG.least)
    total = jnp.sum(self.alpha) + jnp.sum(self.beta)
    alike, place = jnp.zeros((), jnp.float32), 0
    for a, b in zip(self._features(x), self._features(truth), strict=True):
      channels = slice(place, place + a.shape[-1])
      place = channels.stop
      means, structure = _similarities(a, b)  # [..., O]
      alike += jnp.sum(self.alpha[channels] * means, axis=-1)
      alike += jnp.sum(self.beta[channels] * structure, axis=-1)
    return 1 - alike / total

  def _features(self, x: jax.Array) -> list[jax.Array]:
    """The image in [0, 1] and the output of every slice, [..., h, w, O]."""
    lead = x.shape[:-3]
    x = jnp.clip(x.astype(jnp.float32), -1, 1).reshape(-1, *x.shape[-3:])
    x = (x + 1) / 2
    found = [x]
    x = (x - self.mean) / self.std
    layers = iter(zip(self.kernels, self.biases, strict=True))
    for convolutions, pooled in zip(_VGG.slices, _VGG.pooled, strict=True):
      x = _pool(x) if pooled else x
      for convolution in convolutions:
        x = classifier.rectified(x, *next(layers), convolution)
      found.append(x)
    return [f.reshape(*lead, *f.shape[1:]) for f in found]


def load_dists(path: str | os.PathLike[str]) -> DISTS:
  """DISTS with weights of one's own disk.

  From a clone `python -m experiments.perceptual_weights FOLDER` writes such a
  file without PyTorch; where PyTorch and `dists-pytorch` are installed,
  `torch.save(DISTS_pytorch.DISTS().state_dict(), "dists.pt")` does. No code of
  the file is run.

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
  # The pooling's taps are its definition, which files repeat per channel.
  tensors = {k: v for k, v in tensors.items() if not k.endswith(".filter")}
  sources = {
    name: Source(name, (1, CHANNELS, 1, 1), np.ravel)
    for name in ("mean", "std")
  }
  of_slices, channels = classifier.convolutions("vgg", tensors, "stage")
  sources |= of_slices
  features = CHANNELS + sum(channels)
  for name in ("alpha", "beta"):
    sources[name] = Source(name, (1, features, 1, 1), np.ravel)
  found = named_tensors.collect(path.name, tensors, sources)
  return DISTS(
    mean=jnp.asarray(found["mean"]),
    std=jnp.asarray(found["std"]),
    kernels=classifier.every(found, ".kernel"),
    biases=classifier.every(found, ".bias"),
    alpha=jnp.asarray(found["alpha"]),
    beta=jnp.asarray(found["beta"]),
  )


def _similarities(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of means and of structure per channel: [..., h, w, O] -> [..., O]."""
  mean_a, mean_b = (jnp.mean(f, axis=(-3, -2)) for f in (a, b))
  # Centred before they are squared: E[ab] - E[a]E[b] cancels in float32.
  a, b = a - mean_a[..., None, None, :], b - mean_b[..., None, None, :]
  var_a, var_b, covariance = (
    jnp.mean(product, axis=(-3, -2)) for product in (a * a, b * b, a * b)
  )
  means = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
  return means, (2 * covariance + _C2) / (var_a + var_b + _C2)


def _pool(x: jax.Array) -> jax.Array:
  """sqrt(taps * x^2), every second pixel: [M, H, W, O] -> [M, h, w, O]."""
  channels = x.shape[-1]
  taps = jnp.asarray(np.outer(_TAPS, _TAPS))[:, :, None, None]
  power = lax.conv_general_dilated(
    x**2,
    jnp.tile(taps, (1, 1, 1, channels)),
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
    precision=lax.Precision.HIGHEST,
  )
  return jnp.sqrt(power + _ROOT)
