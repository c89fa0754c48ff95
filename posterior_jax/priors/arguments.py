"""What the denoiser of any prior is called with."""

from collections.abc import Sequence

import jax
import numpy as np


def check_arguments(
  x: jax.Array,
  sigma: jax.Array,
  shape: Sequence[int | None],
  *,
  unit: int | None = None,
) -> None:
  """Raises unless x are images of a prior and sigma has a level for each.

  Otherwise axes of length 1 would broadcast, to an answer of another shape.

  Args:
    x: [M, H, W, C].
    sigma: [M].
    shape: H, W and C of the prior's images, None where any will do.
    unit: what divides H and W, which are then positive; None: nothing.

  Raises:
    TypeError: if one of them is no array.
    ValueError: if the images are others, or sigma does not fit them.
  """
  for name, array in (("x", x), ("sigma", sigma)):
    if not isinstance(array, jax.Array | np.ndarray):
      raise TypeError(f"{name} must be an array, got {type(array).__name__}")
  fits = x.ndim == 4 and all(
    want in (None, found) for want, found in zip(shape, x.shape[1:])
  )
  if unit is not None:
    fits = fits and 0 not in x.shape and not any(n % unit for n in x.shape[1:3])
  if not fits:
    axes = ("M", *(a if n is None else n for a, n in zip("HWC", shape)))
    words = f", H and W positive and divisible by {unit}" if unit else ""
    raise ValueError(
      f"x must have shape [{', '.join(map(str, axes))}]{words}, got {x.shape}"
    )
  if sigma.shape != x.shape[:1]:
    raise ValueError(
      f"sigma must have one entry per image, shape {x.shape[:1]}, got "
      f"{sigma.shape}"
    )
