"""Training photographs as square tiles, at several scales.

A tile is what training crops come from. Photographs are reduced by area
averaging, as the restored ones are, which also takes most of a JPEG file's
traces away.
"""

import bz2
import concurrent.futures
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import PIL.Image

from experiments.data import photographs
from posterior_jax.foreign_files import picture_file
from posterior_jax.foreign_files.messages import clean

A = TypeVar("A")
B = TypeVar("B")

TILE = 144
# Reductions, three an octave; sides of what is left are at least a tile.
SCALES = tuple(0.9 * 2 ** (-k / 3) for k in range(10))
LONGEST = 2048  # of a photograph's sides, before the reductions
SUFFIXES = (*photographs.SUFFIXES, ".dat")
# Two photographs whose thumbnails correlate more are taken for the same.
SAME = 0.95


class Photograph(NamedTuple):
  """One training photograph."""

  name: str  # its path below the folder, or its name in `photographs.FILES`
  sha256: str  # of the file
  pixels: np.ndarray  # [h, w, 3] uint8


def read(folder: str) -> list[Photograph]:
  """Training photographs by name, none of which is a held-out one.

  Those below `folder` at any depth; for "" the few that ship with scikit-image,
  scikit-learn and matplotlib. ValueError if there is none, or one cannot be
  read, is smaller than a tile, or is a held-out photograph.
  """
  if folder:
    root = pathlib.Path(folder)
    found = sorted(
      (path.relative_to(root).as_posix(), path)
      for path in root.rglob("*")
      # A pipe of that name would never end.
      if path.suffix.lower() in SUFFIXES and path.is_file()
    )
  else:
    found = [(name, photographs.path(name)) for name in photographs.PRIOR]
  if not found:
    raise ValueError(f"photographs {folder!r} must be a folder with pictures")
  held_out = {
    name: _thumbnail(_pixels(name, photographs.path(name)))
    for name in photographs.HELD_OUT
  }

  def one(named: tuple[str, pathlib.Path]) -> Photograph:
    name, path = named
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = _pixels(name, path)
    if min(pixels.shape[:2]) < TILE:
      raise ValueError(
        f"{clean(name)} must have at least {TILE} pixels a side, got "
        f"{pixels.shape[1]} x {pixels.shape[0]}"
      )
    for other, thumbnail in held_out.items():
      if float(np.mean(thumbnail * _thumbnail(pixels))) > SAME:
        raise ValueError(
          f"{clean(name)} looks like {other}, which is held out from training"
        )
    return Photograph(name, sha256, pixels)

  return _each(one, found)


def tiles(photos: Sequence[Photograph]) -> np.ndarray:
  """Overlapping tiles of photographs at every scale, [K, T, T, 3] uint8."""
  return np.concatenate(_each(_tiles, [photo.pixels for photo in photos]))


def _each(function: Callable[[A], B], values: Sequence[A]) -> list[B]:
  """Of every value, in order; decoding and reducing leave Python's lock."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(function, values))


def _tiles(pixels: np.ndarray) -> np.ndarray:
  return np.concatenate([_cut(reduced) for reduced in _reduced(pixels)])


def _reduced(pixels: np.ndarray) -> list[np.ndarray]:
  image = PIL.Image.fromarray(pixels)
  limit = min(1.0, LONGEST / max(image.size))
  smallest = TILE / min(image.size)
  scales = [s * limit for s in SCALES if s * limit >= smallest]
  width, height = image.size
  return [
    np.asarray(
      image.resize(
        (round(width * scale), round(height * scale)), PIL.Image.Resampling.BOX
      )
    )
    for scale in scales or [smallest]
  ]


def _cut(pixels: np.ndarray) -> np.ndarray:
  """[h, w, 3] -> [K, T, T, 3], neighbours half a tile apart or less."""
  starts = [
    np.linspace(0, side - TILE, 1 + -(-(side - TILE) // (TILE // 2))).round()
    for side in pixels.shape[:2]
  ]
  corners = itertools.product(*(s.astype(int) for s in starts))
  return np.stack([pixels[r : r + TILE, c : c + TILE] for r, c in corners])


def _pixels(name: str, path: pathlib.Path) -> np.ndarray:
  """[h, w, 3] uint8; by its name the picture is told from those it is among."""
  try:
    if path.suffix == ".dat":  # how scipy packed its raccoon
      return _raccoon(path.read_bytes())
    return picture_file.read(path, _on_white)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{clean(name)} cannot be read as a picture ({error})"
    ) from None


def _raccoon(data: bytes) -> np.ndarray:
  # No further than the picture goes: a kilobyte unpacks to any size.
  size = 768 * 1024 * 3
  packed = bz2.BZ2Decompressor()
  raw = packed.decompress(data, size + 1)
  if len(raw) != size or not packed.eof:
    raise ValueError(f"it is not the {size} bytes of scipy's raccoon")
  return np.frombuffer(raw, np.uint8).reshape(768, 1024, 3)


def _on_white(image: PIL.Image.Image) -> np.ndarray:
  if image.mode not in ("RGBA", "LA", "P"):
    return np.asarray(image.convert("RGB"))
  clear = image.convert("RGBA")
  white = PIL.Image.new("RGBA", clear.size, "white")
  return np.asarray(PIL.Image.alpha_composite(white, clear).convert("RGB"))


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
  """[16, 16, 3], zero mean and unit variance: means of products correlate."""
  small = PIL.Image.fromarray(pixels).resize((16, 16), PIL.Image.Resampling.BOX)
  x = np.asarray(small, np.float64)
  return (x - x.mean()) / max(x.std(), 1e-6)
