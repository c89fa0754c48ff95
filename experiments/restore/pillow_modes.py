"""Pillow's pictures as numbers: modes that it reduces without a word.

It keeps the high bytes of colour of 16 bits and of grey with alpha, compares a
transparent colour of 16 bits with the 8 that it keeps, and takes inks for
colours whatever their profile says. What it drops is read in a second pass.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from posterior_jax.foreign_files import picture_file as foreign


class Stored(NamedTuple):
  """What a file holds.

  Attributes:
    values: [H, W, C] float64, C 1 or 3, turned as the camera says. Integers are
      shares of their largest value, floating-point numbers are as they are.
    alpha: [H, W] from 0, transparent, to 1; None where the file has none.
    bits: 8 or 16, of an integer; 32 of a floating-point number.
    profile: ICC profile of its colours.
    said: what was left out or converted, "" for nothing.
    steps: of JPEG's brightness, in levels of 255 and ascending.
  """

  values: np.ndarray
  alpha: np.ndarray | None
  bits: int
  profile: bytes | None
  said: str = ""
  steps: tuple[int, ...] = ()


def stored(picture: Any) -> Stored:
  """Of an opened Pillow image."""
  frames = getattr(picture, "n_frames", 1)
  said = [f"of {frames} frames the first is taken"] if frames > 1 else []
  profile = picture.info.get("icc_profile")
  if picture.mode == "CMYK":
    picture, profile = _in_srgb(picture, profile)
    said.append("its printing colours are converted to sRGB")
  steps = sorted(getattr(picture, "quantization", {}).get(0, ()))
  found = _grey(picture) if picture.mode[0] in "IF" else _coloured(picture)
  if found.alpha is not None and found.alpha.min() == 1:
    found = found._replace(alpha=None)  # opaque, as screenshots are
  return found._replace(
    profile=profile, said="; ".join(said), steps=tuple(steps)
  )


def _grey(picture: Any) -> Stored:
  """Of 16 or 32 bits, which Pillow has modes for."""
  import PIL.ImageOps

  key = picture.info.get("transparency")
  values = np.asarray(PIL.ImageOps.exif_transpose(picture), np.float64)
  if picture.mode == "F":
    return Stored(values[..., None], None, 32, None)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError(
      f"holds numbers from {values.min():.0f} to {values.max():.0f}, more than "
      "16 bits"
    )
  alpha = None if key is None else (values != key).astype(np.float64)
  if getattr(picture, "tag_v2", {}).get(262) == 0:  # of a scanner: 0 is white
    values = 65535 - values
  return Stored(values[..., None] / 65535, alpha, 16, None)


def _coloured(picture: Any) -> Stored:
  """Of all else; grey of 8 bits as well."""
  raw = [_raw_mode(tile) for tile in getattr(picture, "tile", ()) if tile.args]
  if "LA;16B" in raw:
    return _deep_grey(picture.filename)
  deep = any(one[:-1] in ("RGB;16", "RGBA;16") for one in raw)
  white, bits = (65535, 16) if deep else (255, 8)
  mode, key = picture.mode, None
  if deep:
    file = picture.filename  # of another pass over it
    # Pillow compares a colour of 16 bits with the 8 that it keeps.
    key = picture.info.pop("transparency", None)
  grey = mode in ("1", "L", "LA", "La")
  clear = mode[-1] in "Aa" or "transparency" in picture.info
  numbers = _turned(picture, grey=grey, clear=clear)
  if deep:
    numbers = 256 * numbers + _low_bytes(file, clear=clear)
  alpha = numbers[..., -1] / white if clear else None
  colour = numbers[..., : 1 if grey else 3]
  if key is not None:
    alpha = (colour != np.asarray(key)).any(-1).astype(np.float64)
  return Stored(colour / white, alpha, bits, None)


def _in_srgb(picture: Any, profile: bytes | None) -> tuple[Any, bytes | None]:
  """Printing colours as sRGB, by their profile where one can be read."""
  import PIL.ImageCms
  import PIL.ImageOps

  turned = PIL.ImageOps.exif_transpose(picture)  # what is converted has no EXIF
  if profile is not None:
    with contextlib.suppress(OSError, PIL.ImageCms.PyCMSError):
      inks = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
      srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
      return (
        PIL.ImageCms.profileToProfile(turned, inks, srgb, outputMode="RGB"),
        srgb.tobytes(),
      )
  return turned.convert("RGB"), None


def _turned(picture: Any, *, grey: bool, clear: bool) -> np.ndarray:
  """[H, W, K] of 0 to 255, as the camera was held."""
  import PIL.ImageOps

  turned = PIL.ImageOps.exif_transpose(picture)
  mode = ("LA" if clear else "L") if grey else ("RGBA" if clear else "RGB")
  numbers = np.asarray(turned.convert(mode), np.float64)
  return numbers.reshape(*numbers.shape[:2], -1)


def _raw_mode(tile: Any) -> str:
  """How the file's bytes are ordered; RGB;16B is big-endian colour."""
  return tile.args if isinstance(tile.args, str) else str(tile.args[0])


def _deep_grey(file: str) -> Stored:
  """Grey of 16 bits with alpha, of which Pillow keeps the high bytes.

  Read as if they were four channels of 8 bits, all bytes are there.
  """
  numbers = _turned_as(file, "RGBA", clear=True)
  value, alpha = (256 * numbers[..., i] + numbers[..., i + 1] for i in (0, 2))
  return Stored(value[..., None] / 65535, alpha / 65535, 16, None)


def _low_bytes(file: str, *, clear: bool) -> np.ndarray:
  """The bytes that Pillow drops of 16-bit colour.

  It keeps the high byte of each number. Told that the numbers are stored the
  other way round, it keeps the low one.
  """
  # B: big-endian; N: as the machine, which is little-endian.
  other = {"B": "L", "L": "B", "N": "B"}
  return _turned_as(file, lambda raw: raw[:-1] + other[raw[-1]], clear=clear)


def _turned_as(
  file: str, mode: Callable[[str], str] | str, *, clear: bool
) -> np.ndarray:
  """`_turned` of a file whose bytes are said to be ordered otherwise."""
  import PIL.Image

  with PIL.Image.open(file, formats=foreign.FORMATS) as picture:
    tiles = []
    for tile in picture.tile:
      raw, args = _raw_mode(tile), tile.args
      said: Any = mode(raw) if callable(mode) else mode
      if isinstance(args, tuple):
        said = (said, *args[1:])
      tiles.append(tile._replace(args=said))
    picture.tile = tiles
    picture.info.pop("transparency", None)
    return _turned(picture, grey=False, clear=clear)
