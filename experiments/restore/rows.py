"""How well a restored picture fits what is known of it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data import degradations
from experiments.restore.input import Given
from posterior_jax import metrics
from posterior_jax.base import normalised_residual


class Restored(NamedTuple):
  """What became of a picture, pixels in [-1, 1].

  Attributes:
    best: the one image, [H, W, C].
    samples: of the posterior, [m, H, W, C].
  """

  best: np.ndarray
  samples: np.ndarray


def judge(given: Given, restored: Restored) -> dict[str, float | None]:
  """How well images fit the measurement, and the truth if there is one.

  Args:
    given: the picture.
    restored: what became of it.

  Returns:
    Columns of the table; None for what cannot be said.
  """
  several = len(restored.samples) > 1
  images = {
    "": restored.best,
    "_sample": restored.samples[0] if len(restored.samples) else None,
    "_mean": restored.samples.mean(0) if several else None,
    "_given": np.asarray(degradations.as_image(given.observation)[0])
    if given.truth is not None
    else None,
  }
  found: dict[str, float | None] = {}
  for name, image in images.items():
    x = None if image is None else jnp.asarray(image)[None]
    if name != "_given":
      found[f"residual{name}"] = (
        None
        if x is None
        else float(normalised_residual(given.observation, x)[0])
      )
    for metric in (metrics.psnr, metrics.ssim):
      value = None
      if x is not None and given.truth is not None:
        value = float(metric(x, given.truth)[0])
      found[f"{metric.__name__}{name}"] = value
  spread = restored.samples.std(0, ddof=1) if several else None
  found["spread"] = (
    None if spread is None else float(np.sqrt((spread**2).mean()))
  )
  return found
