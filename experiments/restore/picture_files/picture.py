"""A picture of one's own as pixels in [-1, 1], and what to say of it."""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.restore.picture_files import picture_file
from posterior_jax.foreign_files import array_file

# Of white, by bits: no photograph that was exposed is darker throughout, and a
# camera's 14 bits reach 1/4 of 16.
DIM = {8: 1 / 8, 16: 0.251}


class Picture(NamedTuple):
  """A picture of one's own.

  Attributes:
    pixels: [H, W, C] float32 in [-1, 1], C 1 or 3.
    said: what to tell of it, "" for nothing.
    hidden: [H, W], 1 where it is transparent, 0 elsewhere; None: nowhere.
    bits: 8 or 16, of an integer; 32 of a floating-point number.
    profile: ICC profile of its colours.
    kept: what to tell where its transparency is not dropped.
    steps: of JPEG's brightness, in levels of 255 and ascending.
  """

  pixels: np.ndarray
  said: str
  hidden: np.ndarray | None = None
  bits: int = 8
  profile: bytes | None = None
  kept: str = ""
  steps: tuple[int, ...] = ()


def read_picture(file: str) -> Picture:
  """A picture of one's own and what to say about it.

  Args:
    file: grey or colour, of 8 or 16 bits or floating point, sides as the camera
      turned it; or an array NAME.npy [H, W] or [H, W, C]. Floating-point pixels
      lie in [-1, 1], or in [0, 1] where nothing is well below 0.

  Returns:
    The picture, with a sentence if something was dropped or assumed.

  Raises:
    ValueError: there is no such file, it is no such picture, or its pixels are
      not finite or out of range.
  """
  stored = picture_file.read("image", file)
  values = 2 * stored.values - 1
  said = [f"{file}: {stored.said}"] if stored.said else []
  brightest = stored.values.max(initial=0.0)
  if brightest < DIM.get(stored.bits, 0):
    said.append(
      f"the brightest pixel of {file} is {100 * brightest:.2g} % of white: "
      "counts of fewer bits must be scaled up first"
    )
  if stored.bits == 32:
    values = stored.values
    if not np.isfinite(values).all():
      raise ValueError(f"image {file!r} must be finite everywhere")
    # Noise takes pixels of either range a little beyond it, a scale of 255
    # takes them far.
    low, high = np.quantile(values, (0.001, 0.999))
    if max(-low, high) > 1.5:
      raise ValueError(
        f"image {file!r} must hold pixels in [-1, 1] or [0, 1] as floating "
        f"point, they reach {max(values.max(), -values.min()):.4g}"
      )
    if low > -0.25:
      values = 2 * values - 1
      said.append(f"the pixels of {file} are taken to lie in [0, 1]")
  hidden = None
  if stored.alpha is not None:
    hidden = (stored.alpha < 1).astype(np.float32)
  kept = "; ".join(said)
  if hidden is not None:
    said.append(f"the transparency of {file} is dropped")
  pixels = values.astype(np.float32)
  return Picture(
    pixels,
    "; ".join(said),
    hidden,
    stored.bits,
    stored.profile,
    kept,
    stored.steps,
  )


def read_measurement(file: str) -> Picture:
  """What an operator of one's own measured: an array as it is, or a picture.

  Raises:
    ValueError: as of `read_picture`, or an array is not [h, w, c] and finite.
  """
  if pathlib.Path(file).suffix != ".npy" or not pathlib.Path(file).is_file():
    return read_picture(file)
  try:
    values = array_file.read(
      pathlib.Path(file), most_numbers=3 * picture_file.MOST_PIXELS
    )
  except ValueError as error:
    raise ValueError(
      f"image {file!r} cannot be read as .npy ({error})"
    ) from None
  real = values.ndim == 3 and values.dtype.kind == "f"
  if not real or not np.isfinite(values).all():
    raise ValueError(
      f"image {file!r} must hold finite floating-point numbers [h, w, c], it "
      f"holds {values.dtype} {list(values.shape)}"
    )
  return Picture(values.astype(np.float32), "", bits=32)
