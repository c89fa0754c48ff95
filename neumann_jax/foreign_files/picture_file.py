"""Pictures, measured before they are decoded."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from . import folder
from .hushed import hushed
from .messages import clean

if TYPE_CHECKING:
  import PIL.Image

# What is asked for by these alone: pillow would run Ghostscript for others.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# Of a camera; decoded to colour they take three bytes each.
MOST_SIDE, MOST_PIXELS = 1 << 15, 1 << 26

T = TypeVar("T")


def read(
  path: pathlib.Path,
  look: Callable[["PIL.Image.Image"], T],
  *,
  most_side: int = MOST_SIDE,
  most_pixels: int = MOST_PIXELS,
) -> T:
  """What `look` makes of a picture.

  Args:
    path: of a PNG, JPEG, WebP, BMP or TIFF file.
    look: called with the picture, not yet decoded; what it raises counts as
      the picture's fault.
    most_side: width and height of what is decoded at all.
    most_pixels: their product.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: for a file that is truncated, larger or of another kind; a
      clause.
  """
  import PIL.Image  # comes with matplotlib

  folder.size(path)
  # pillow warns of what it then decodes all the same.
  with hushed():
    try:
      with PIL.Image.open(path, formats=FORMATS) as picture:
        width, height = picture.size
        small = max(width, height) <= most_side
        if small and width * height <= most_pixels:
          return look(picture)
    except Exception as error:  # its parsers raise whatever they run into
      raise ValueError(clean(str(error))) from None
  raise ValueError(
    f"has {width} x {height} pixels, more than are read: {most_side} a side, "
    f"{most_pixels} in all"
  )
