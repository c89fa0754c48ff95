"""The classifiers in whose features images are compared: AlexNet and VGG16.

Their convolutions alone, in slices that end where features are taken, numbered
as torchvision numbers the layers: the names of weights in published files.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.metrics import image
from posterior_jax.priors.checkpoints import named_tensors
from posterior_jax.priors.checkpoints.named_tensors import Source

Network = Literal["alex", "vgg"]
CHANNELS = 3


def comparable(
  x: jax.Array, truth: jax.Array, metric: str, least: int
) -> tuple[jax.Array, jax.Array]:
  """Two images [..., H, W, 3] as a metric of its features compares them.

  Args:
    x: an image.
    truth: the same shape or one that broadcasts to it.
    metric: its name, for messages.
    least: pixels that a side needs.

  Raises:
    ValueError: if the images do not match, are smaller or not of 3 channels, or
      known to be in another unit, as levels.
    TypeError: if they are not floating point.
  """
  x, truth = image.matching_images(x, truth)
  image.check_colours(x, metric, least)
  image.check_unit(x, truth, (-1.0, 1.0), "give levels as levels / 127.5 - 1")
  return x, truth


class Conv(NamedTuple):
  """A convolution of the classifier: its number in the file, and its form."""

  number: int
  kernel: int
  stride: int
  padding: int


class Form(NamedTuple):
  """A classifier's convolutions by slice, a pooling between pooled slices."""

  slices: tuple[tuple[Conv, ...], ...]
  window: int
  pooled: tuple[bool, ...]
  least: int  # side of an image of which every feature map has a pixel


def _three(*numbers: int) -> tuple[Conv, ...]:
  return tuple(Conv(number, 3, 1, 1) for number in numbers)


FORMS: dict[Network, Form] = {
  "alex": Form(
    (
      (Conv(0, 11, 4, 2),),
      (Conv(3, 5, 1, 2),),
      _three(6),
      _three(8),
      _three(10),
    ),
    window=3,
    pooled=(False, True, True, False, False),
    least=31,
  ),
  "vgg": Form(
    (
      _three(0, 2),
      _three(5, 7),
      _three(10, 12, 14),
      _three(17, 19, 21),
      _three(24, 26, 28),
    ),
    window=2,
    pooled=(False, True, True, True, True),
    least=16,
  ),
}


def convolutions(
  network: Network, tensors: Mapping[str, np.ndarray], prefix: str
) -> tuple[dict[str, Source], list[int]]:
  """Where kernels and biases come from, the numbers of channels the file's.

  Args:
    network: whose convolutions they are.
    tensors: of the file.
    prefix: of a slice's number in its names.

  Returns:
    Sources in order, and the channels that leave every slice.
  """
  found: dict[str, Source] = {}
  entering, channels = CHANNELS, []
  for i, forms in enumerate(FORMS[network].slices):
    for form in forms:
      layer = f"{prefix}{i + 1}.{form.number}"
      leaving = tensors.get(f"{layer}.bias", np.zeros(1)).size
      shape = (form.kernel, form.kernel, entering, leaving)
      found[f"{layer}.kernel"] = named_tensors.source(layer, "kernel", shape)
      found[f"{layer}.bias"] = named_tensors.source(layer, "bias", (leaving,))
      entering = leaving
    channels.append(entering)
  return found, channels


def every(found: Mapping[str, np.ndarray], leaf: str) -> tuple[jax.Array, ...]:
  """All that was collected under names of this end, in order."""
  return tuple(jnp.asarray(v) for k, v in found.items() if k.endswith(leaf))


def rectified(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, form: Conv
) -> jax.Array:
  """max(0, kernel * x + bias): [M, H, W, I], [k, k, I, O] -> [M, h, w, O]."""
  # Zero padding is the classifiers' own; a lower precision moves the distance.
  found = lax.conv_general_dilated(
    x,
    kernel,
    (form.stride,) * 2,
    ((form.padding,) * 2,) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  return jax.nn.relu(found + bias)
