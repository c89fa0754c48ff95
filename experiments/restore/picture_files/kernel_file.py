"""Blur kernels as people have them: pictures of any depth, alpha, arrays."""

import pathlib

import numpy as np

from experiments.restore.picture_files import picture_file
from posterior_jax.foreign_files import array_file
from posterior_jax.operators import frozen

# Of a kernel's shape; a picture of the largest size is blurred by less.
MOST_KERNEL = 2047**2


def read(kernel: str, *, flip: bool = False) -> np.ndarray:
  """A blur kernel [k, k], k odd, of sum 1; correlated as it is.

  Args:
    kernel: "medium" or another name of `frozen.ALL_PATHS`; a picture, black or
      transparent where the kernel is 0; or an array [k, l] as NAME.npy. k and l
      are odd; the shorter side is padded with zeros.
    flip: turn it by 180 degrees, for a kernel that is to be convolved.

  Raises:
    ValueError: there is no such file, or it holds no such kernel.
  """
  if kernel in frozen.ALL_PATHS:
    values = np.asarray(frozen.motion_kernel(kernel), np.float64)
  else:
    values = _values(kernel)
  if values.ndim != 2 or not all(n % 2 for n in values.shape):
    raise ValueError(
      f"kernel must have two odd sides, {kernel!r} has shape {values.shape}"
    )
  real = values.dtype.kind in "biuf"
  if not real or not (np.isfinite(values).all() and values.min() >= 0):
    raise ValueError(
      f"kernel must be finite and non-negative, {kernel!r} is not"
    )
  values = values.astype(np.float64)
  if not values.sum() > 0:
    raise ValueError(f"kernel must not be 0 everywhere, {kernel!r} is")
  if flip:
    values = values[::-1, ::-1]
  side = max(values.shape)
  border = [((side - n) // 2,) * 2 for n in values.shape]
  return np.pad(values / values.sum(), border)


def trimmed(kernel: np.ndarray) -> np.ndarray:
  """The kernel [k, k] without the rings of zeros around it, k odd.

  A scene is larger than its picture by the kernel's radius: zeros would cost
  memory and time.
  """
  centre = kernel.shape[0] // 2
  radius = int(np.abs(np.argwhere(kernel > 0) - centre).max())
  inside = slice(centre - radius, centre + radius + 1)
  return kernel[inside, inside]


def _values(kernel: str) -> np.ndarray:
  if pathlib.Path(kernel).suffix == ".npy" and pathlib.Path(kernel).is_file():
    # As they are: a kernel may have any scale, and more kinds are refused.
    try:
      return array_file.read(pathlib.Path(kernel), most_numbers=MOST_KERNEL)
    except ValueError as error:
      raise ValueError(
        f"kernel {kernel!r} cannot be read as .npy ({error})"
      ) from None
  name = f"kernel must be one of {', '.join(frozen.ALL_PATHS)}, or"
  stored = picture_file.read(name, kernel)
  grey = stored.values.mean(-1)
  if stored.alpha is None:
    return grey
  drawn = grey[stored.alpha > 0]
  # Drawn in one colour, the shape is in the alpha channel alone, and black
  # strokes would be 0; in several, transparency darkens them.
  one_colour = drawn.size == 0 or np.ptp(drawn) < 1e-6
  return stored.alpha if one_colour else grey * stored.alpha
