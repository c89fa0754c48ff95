"""Picture files as numbers and back: any depth, alpha, turns, profiles.

Pillow decodes; what it does not give is read around it. It reduces colour of 16
bits to 8 without a word and writes none, so that the low bytes are read in a
second pass and the writer is here.
"""

import pathlib
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from experiments.data import photographs
from posterior_jax.foreign_files import array_file
from posterior_jax.foreign_files import picture_file as foreign

# Pixels of a picture, numbers of an array: sides of 4096, and three channels.
MOST_SIDE = 4096
MOST_PIXELS = MOST_SIDE**2
# What cameras and phones write and Pillow alone does not read.
_UNREAD = {
  **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
  **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".raf"), "a raw file"),
}
_CUT_SHORT = ("truncated", "broken data stream", "unexpected end")
_COLOUR_TYPE = {1: 0, 3: 2}  # of PNG, by channels


class Stored(NamedTuple):
  """What a file holds.

  Attributes:
    values: [H, W, C] float64, C 1 or 3, turned as the camera says. Integers are
      shares of their largest value, floating-point numbers are as they are.
    alpha: [H, W] from 0, transparent, to 1; None where the file has none.
    bits: 8 or 16, of an integer; 32 of a floating-point number.
    profile: ICC profile of its colours.
  """

  values: np.ndarray
  alpha: np.ndarray | None
  bits: int
  profile: bytes | None


def read(name: str, file: str) -> Stored:
  """A picture, or an array NAME.npy.

  Args:
    name: of the setting, for messages.
    file: a picture, or an array [H, W] or [H, W, C].

  Raises:
    ValueError: there is no such file, it is cut short, or it is no picture.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    verb = "" if " " in name else " must"
    raise ValueError(f"{name}{verb} name a file, {file!r} is none")
  name = name.split()[0]
  if path.suffix == ".npy":
    return _array(name, path)
  if (kind := _UNREAD.get(path.suffix.lower())) is not None:
    raise ValueError(
      f"{name} {file!r} is {kind}, which is not read: convert it to PNG or TIFF"
    )
  try:
    return foreign.read(
      path, _stored, most_side=MOST_SIDE, most_pixels=MOST_PIXELS
    )
  except ValueError as error:
    said = str(error).lower()
    if any(words in said for words in _CUT_SHORT):
      raise ValueError(
        f"{name} {file!r} is truncated: it ends before its picture does"
      ) from None
    raise ValueError(
      f"{name} {file!r} cannot be read as a picture ({error})"
    ) from None


def _array(name: str, path: pathlib.Path) -> Stored:
  try:
    values = array_file.read(path, most_numbers=3 * MOST_PIXELS)
  except ValueError as error:
    raise ValueError(
      f"{name} {str(path)!r} cannot be read as .npy ({error})"
    ) from None
  kind = values.dtype.kind
  if values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,)):
    raise ValueError(
      f"{name} {str(path)!r} must hold [H, W], [H, W, 1] or [H, W, 3], it "
      f"holds {values.dtype} {list(values.shape)}"
    )
  bits = 32 if kind == "f" else min(8 * values.dtype.itemsize, 16)
  white = 1 if kind in "bf" else np.iinfo(values.dtype).max
  values = np.asarray(values, np.float64) / white
  return Stored(values.reshape(*values.shape[:2], -1), None, bits, None)


def _stored(picture: Any) -> Stored:
  """Of an opened Pillow image."""
  import PIL.ImageOps

  mode, profile = picture.mode, picture.info.get("icc_profile")
  if mode[0] in "IF":  # grey of 16 or 32 bits
    values = np.asarray(PIL.ImageOps.exif_transpose(picture), np.float64)
    white = 1 if mode == "F" else 65535
    bits = 32 if mode == "F" else 16
    return Stored(values[..., None] / white, None, bits, profile)
  deep = _is_deep(picture)
  white, bits = (65535, 16) if deep else (255, 8)
  grey = mode in ("1", "L", "LA", "La")
  clear = mode[-1] in "Aa" or "transparency" in picture.info
  file = picture.filename
  numbers = _turned(picture, grey=grey, clear=clear)
  if deep:
    numbers = 256 * numbers + _low_bytes(file, clear=clear)
  alpha = numbers[..., -1] / white if clear else None
  colour = numbers[..., : 1 if grey else 3] / white
  return Stored(colour, alpha, bits, profile)


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


def _is_deep(picture: Any) -> bool:
  tiles = getattr(picture, "tile", ())
  return any(
    _raw_mode(tile)[:-1] in ("RGB;16", "RGBA;16") for tile in tiles if tile.args
  )


def _low_bytes(file: str, *, clear: bool) -> np.ndarray:
  """The bytes that Pillow drops of 16-bit colour.

  It keeps the high byte of each number. Told that the numbers are stored the
  other way round, it keeps the low one.
  """
  import PIL.Image

  other = {"B": "L", "L": "B", "N": "B"}  # N: of the machine, little-endian
  with PIL.Image.open(file, formats=foreign.FORMATS) as picture:
    tiles = []
    for tile in picture.tile:
      raw, args = _raw_mode(tile), tile.args
      swapped: Any = raw[:-1] + other[raw[-1]]
      if isinstance(args, tuple):
        swapped = (swapped, *args[1:])
      tiles.append(tile._replace(args=swapped))
    picture.tile = tiles
    return _turned(picture, grey=False, clear=clear)


def as_png(
  image: np.ndarray, *, bits: int = 8, profile: bytes | None = None
) -> bytes:
  """An image as the bytes of a PNG file.

  Args:
    image: [H, W, C], C 1 or 3, in [-1, 1].
    bits: 8 or 16 a channel.
    profile: ICC profile of its colours.
  """
  if bits == 8:
    return photographs.as_png(image, profile)
  levels = np.clip((image + 1) / 2 * 65535, 0, 65535).round()
  return _deep_png(levels.astype(">u2"), profile)


def _deep_png(levels: np.ndarray, profile: bytes | None) -> bytes:
  """[H, W, C] of big-endian 16 bits, which Pillow does not write in colour."""
  height, width, channels = levels.shape
  size = 2 * channels  # bytes of a pixel
  rows = np.frombuffer(levels.tobytes(), np.uint8).reshape(height, -1)
  # Filter 1, the difference to the pixel at the left: photographs are smooth.
  filtered = rows.copy()
  filtered[:, size:] = rows[:, size:] - rows[:, :-size]
  lines = np.concatenate([np.ones((height, 1), np.uint8), filtered], 1)
  head = struct.pack(
    ">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0
  )
  chunks = [(b"IHDR", head)]
  if profile:
    chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
  chunks += [(b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body))
    + kind
    + body
    + struct.pack(">I", zlib.crc32(kind + body))
    for kind, body in chunks
  )
