"""Pillow's pictures as numbers: modes that it reduces without a word.

It keeps the high bytes of colour of 16 bits and of grey with alpha, compares a
transparent colour of 16 bits with the 8 that it keeps, one of 2 or 4 bits with
the 8 that it makes of them, and takes inks for colours whatever their profile
says. What it drops is read in a second pass, what it gets wrong is refused.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from posterior_jax.foreign_files import picture_file as foreign

# As short as messages of foreign files are kept.
_SIGNED = "signed or above 16 bits; give uint8, uint16 or floats in [0, 1]"
# Tags of TIFF.
_REDUCED, _BITS, _COLOURS, _PLANES = 254, 258, 262, 284
_INNER, _KIND, _RAW_VERSION = 330, 339, 50706
# Of grey in 2 and 4 bits, the factor to 8.
_SHALLOW = {"L;2": 85, "L;4": 17}


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
  """Of an opened Pillow image.

  Raises:
    ValueError: Pillow would read other numbers than it holds; a clause.
  """
  _check_tiff(picture)
  held = max(_tags(picture).get(_BITS, (8,)))
  frames = getattr(picture, "n_frames", 1)
  said = [f"of {frames} frames the first is taken"] if frames > 1 else []
  profile = picture.info.get("icc_profile")
  if picture.mode == "CMYK":
    picture, profile = _in_srgb(picture, profile)
    how = "" if profile else ", nearly: there is no profile of them"
    said.append("its printing colours are converted to sRGB" + how)
  steps = sorted(getattr(picture, "quantization", {}).get(0, ()))
  found = _grey(picture) if picture.mode[0] in "IF" else _coloured(picture)
  if found.alpha is not None and found.alpha.min() == 1:
    found = found._replace(alpha=None)  # opaque, as screenshots are
  if found.bits < held:
    said.append(f"of its {held} bits {found.bits} are read")
  kinds = (b"RGB ",) if found.values.shape[-1] == 3 else (b"GRAY", b"RGB ")
  if profile and profile[16:20] not in kinds:
    profile = None
    said.append("its colour profile is of other colours and is left out")
  return found._replace(
    profile=profile, said="; ".join(said), steps=tuple(steps)
  )


def _tags(picture: Any) -> Mapping[int, Any]:
  """Of a TIFF file."""
  return getattr(picture, "tag_v2", {})


def _check_tiff(picture: Any) -> None:
  """Refuses what Pillow decodes to other numbers than the file holds."""
  tags = _tags(picture)
  bits, reduced = tags.get(_BITS, (1,)), tags.get(_REDUCED, 0) & 1
  if _RAW_VERSION in tags or (reduced and _INNER in tags):
    raise ValueError(
      "it holds a preview, as raw files do; develop it to PNG or TIFF"
    )
  # Its 32 bits go on to `_grey`, which looks at the numbers first.
  if 2 in tags.get(_KIND, (1,)) and max(bits) == 8:
    raise ValueError(_SIGNED)
  if tags.get(_PLANES, 1) == 2 and len(bits) > 1 and max(bits) > 8:
    raise ValueError(
      "16 bits per channel in planes; store its channels interleaved"
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
  if picture.mode == "I" and _tags(picture):
    raise ValueError(_SIGNED)
  alpha = None if key is None else (values != key).astype(np.float64)
  # Of TIFF 12 bits are packed; their white is not that of 16.
  white = 4095 if _tags(picture).get(_BITS) == (12,) else 65535
  if _tags(picture).get(_COLOURS) == 0:  # of a scanner: 0 is white
    values = white - values
  return Stored(values[..., None] / white, alpha, 16, None)


def _coloured(picture: Any) -> Stored:
  """Of all else; grey of 8 bits as well."""
  raw = [_raw_mode(tile) for tile in getattr(picture, "tile", ()) if tile.args]
  if "LA;16B" in raw:
    return _deep_grey(picture.filename)
  deep = any(one[:-1] in ("RGB;16", "RGBA;16", "RGBX;16") for one in raw)
  white, bits = (65535, 16) if deep else (255, 8)
  mode, key = picture.mode, None
  if deep:
    file = picture.filename  # of another pass over it
    # Pillow compares a colour of 16 bits with the 8 that it keeps.
    key = picture.info.pop("transparency", None)
  elif raw and raw[0] in _SHALLOW and "transparency" in picture.info:
    picture.info["transparency"] *= _SHALLOW[raw[0]]
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
