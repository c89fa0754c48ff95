"""Picture files as numbers and back: any depth, alpha, turns, profiles.

Pillow decodes (`pillow_modes`). It writes no colour of 16 bits, so that the
writer is here.
"""

import pathlib
import struct
import zlib

import numpy as np

from experiments.data import photographs
from experiments.restore.picture_files.pillow_modes import Stored, stored
from posterior_jax.foreign_files import array_file
from posterior_jax.foreign_files import picture_file as foreign

# Pixels of a picture, numbers of an array: sides of 4096, and three channels.
MOST_SIDE = 4096
MOST_PIXELS = MOST_SIDE**2
# What cameras and phones write and Pillow does not read, or only a preview of.
_RAW = tuple(
  ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf "
  ".raw .rw2 .rwl .sr2 .srw .x3f".split()
)
UNREAD = {
  **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
  **dict.fromkeys(_RAW, "a raw file"),
}
_BEGINNINGS = (
  *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM"),
  *(b"II*\0", b"MM\0*"),  # of TIFF
)
_CUT_SHORT = ("truncated", "broken data stream", "unexpected end")
_COLOUR_TYPE = {1: 0, 3: 2}  # of PNG, by channels


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
  if (kind := UNREAD.get(path.suffix.lower())) is not None:
    raise ValueError(
      f"{name} {file!r} is {kind}, which is not read: convert it to PNG or TIFF"
    )
  try:
    return foreign.read(
      path, stored, most_side=MOST_SIDE, most_pixels=MOST_PIXELS
    )
  except ValueError as error:
    said = str(error).lower()
    if any(words in said for words in _CUT_SHORT):
      what = "truncated: it ends before its picture does"
      if _ends(path):
        what = "damaged: what it holds is no whole picture"
      raise ValueError(f"{name} {file!r} is {what}") from None
    if "decoder object" in said:  # of WebP, which is read whole or not
      raise ValueError(f"{name} {file!r} is truncated or damaged") from None
    if "cannot identify" in said:
      raise ValueError(
        f"{name} {file!r} cannot be read as a picture: PNG, JPEG, WebP, BMP, "
        "TIFF (of floating point 32 bits in grey) and arrays .npy are"
      ) from None
    raise ValueError(
      f"{name} {file!r} cannot be read as a picture ({error})"
    ) from None


def begins(path: pathlib.Path) -> bool:
  """Whether a file begins as a picture does, whatever it is called."""
  with path.open("rb") as file:
    head = file.read(12)
  container = (
    head[8:] == b"WEBP" if head[:4] == b"RIFF" else head[4:8] == b"ftyp"
  )
  return container or head.startswith(_BEGINNINGS)


def _ends(path: pathlib.Path) -> bool:
  """Whether a file has the end of a PNG or JPEG."""
  tail = path.read_bytes()[-64:].rstrip(b"\0")
  return b"IEND" in tail or tail.endswith(b"\xff\xd9")


def _array(name: str, path: pathlib.Path) -> Stored:
  try:
    values = array_file.read(path, most_numbers=3 * MOST_PIXELS)
  except ValueError as error:
    raise ValueError(
      f"{name} {str(path)!r} cannot be read as .npy ({error})"
    ) from None
  kind = values.dtype.kind
  sides = values.shape[2:] in ((), (1,), (3,)) and values.size
  if values.ndim not in (2, 3) or not sides or kind not in "biuf":
    raise ValueError(
      f"{name} {str(path)!r} must hold [H, W], [H, W, 1] or [H, W, 3], it "
      f"holds {values.dtype} {list(values.shape)}"
    )
  if kind in "iu" and 0 <= values.min() <= values.max() <= 1:
    values, kind = values.astype(bool), "b"
  # Counts of any other kind have no white that everyone agrees on.
  if kind not in "bf" and values.dtype not in (np.uint8, np.uint16):
    raise ValueError(
      f"{name} {str(path)!r} must hold uint8, uint16 or floating-point "
      f"numbers, it holds {values.dtype}"
    )
  bits = 32 if kind == "f" else 8 * values.dtype.itemsize
  white = 1 if kind in "bf" else np.iinfo(values.dtype).max
  values = np.asarray(values, np.float64) / white
  return Stored(values.reshape(*values.shape[:2], -1), None, bits, None)


def as_png(
  image: np.ndarray, *, bits: int = 8, profile: bytes | None = None
) -> bytes:
  """An image as the bytes of a PNG file.

  Args:
    image: [H, W, C], C 1 or 3, in [-1, 1].
    bits: 8 or 16 per channel.
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
