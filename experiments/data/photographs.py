"""Photographs that ship inside pip packages: nothing is downloaded.

scikit-image, scikit-learn and matplotlib each bundle a few; the ones restored
(`RESTORED`, `HELD_OUT`), the ones samplers are tuned on (`TUNING`) and the ones
a prior may learn from (`PRIOR`) never overlap. What is reported on is verified
by its hash.
"""

import functools
import hashlib
import importlib.util
import io
import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from posterior_jax.foreign_files import picture_file
from posterior_jax.foreign_files.messages import clean

if TYPE_CHECKING:
  import PIL.Image

# Package and file of every photograph, with the hash of what is reported on.
_KNOWN = json.loads(
  pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)
FILES = {name: (at["package"], at["file"]) for name, at in _KNOWN.items()}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
RESTORED = ("astronaut", "coffee", "chelsea")
HELD_OUT = ("astronaut", "chelsea", "coffee", "china")
TUNING = ("tissue", "retina", "galaxies", "moon")
PRIOR = ("rocket", "camera", "motorcycle", "flower", "grace_hopper")
SHA256 = {name: _KNOWN[name]["sha256"] for name in (*HELD_OUT, *TUNING)}


@functools.cache
def load(name: str, size: int) -> np.ndarray:
  """A photograph's centre square, averaged down to [size, size, 3].

  Float32 in [-1, 1]; grey photographs repeat their channel. ValueError where
  the name is unknown or the photograph smaller than `size`.
  """
  if name not in FILES:
    raise ValueError(f"name must be one of {', '.join(FILES)}; got {name!r}")
  return _reduced(path(name), size)


def verify(names: tuple[str, ...]) -> None:
  """Refuses, by ValueError, photographs that are not those of the reports."""
  for name in names:
    found = hashlib.sha256(path(name).read_bytes()).hexdigest()
    if found != SHA256[name]:
      raise ValueError(
        f"{name} is not the photograph of the reports: its SHA-256 is "
        f"{found[:12]}..., expected {SHA256[name][:12]}...; install another "
        f"version of {FILES[name][0]}"
      )


def from_folder(
  folder: str,  # its own files are read, not those of folders in it
  size: int,  # side of the result
  *,
  named: str = "folder",  # the argument, in a refusal
) -> dict[str, np.ndarray]:
  """The pictures of a folder by file name, averaged down like `load`'s.

  ValueError where there is none, or one is unreadable or too small.
  """
  files = files_in(folder, named=named)
  return {file.name: _reduced(file, size) for file in files}


def files_in(folder: str, *, named: str = "folder") -> list[pathlib.Path]:
  """The pictures of a folder, by name; ValueError where there is none.

  It calls the folder by the name of its argument. "" is no folder.
  """
  root = pathlib.Path(folder)
  # Path("") would be the working directory.
  files = sorted(root.iterdir()) if folder and root.is_dir() else []
  # A pipe of that name would never end.
  files = [f for f in files if f.suffix.lower() in SUFFIXES and f.is_file()]
  if not files:
    raise ValueError(f"{named} {folder!r} must hold pictures, it holds none")
  return files


def stack(names: tuple[str, ...], size: int) -> np.ndarray:
  """Several photographs, [N, size, size, 3] float32 in [-1, 1]."""
  return np.stack([load(name, size) for name in names])


def path(name: str) -> pathlib.Path:
  """The file of a key of FILES; ImportError without its package."""
  package, file = FILES[name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise ImportError(
      f"photographs come from {package}: pip install 'neumann-posterior[plots]'"
    )
  return pathlib.Path(spec.origin).parent / file


def read(file: pathlib.Path) -> np.ndarray:
  """Pixels [H, W, 3] as uint8; ValueError for no picture, or a huge one."""
  try:
    return picture_file.read(file, in_colour)
  except ValueError as error:
    raise ValueError(
      f"{clean(file.name)} cannot be read as a picture ({error})"
    ) from None


def in_colour(image: "PIL.Image.Image") -> np.ndarray:
  """Pixels [H, W, 3] as uint8."""
  return np.asarray(image.convert("RGB"))


def crops(file: pathlib.Path, size: int, count: int) -> np.ndarray:
  """Squares evenly along a picture's diagonal, one from its middle.

  Pixels as they are, [count, size, size, 3] float32 in [-1, 1].
  """
  pixels = read(file)
  if min(pixels.shape[:2]) < size:
    raise ValueError(
      f"{clean(file.name)} has {min(pixels.shape[:2])} pixels a side, fewer "
      f"than {size}"
    )
  found = []
  for number in range(1, count + 1):
    top, left = (
      (extent - size) * number // (count + 1) for extent in pixels.shape[:2]
    )
    found.append(pixels[top : top + size, left : left + size])
  return (np.stack(found) / 127.5 - 1).astype(np.float32)


def as_png(image: np.ndarray, profile: bytes | None = None) -> bytes:
  """An image [H, W, C], C 1 or 3, in [-1, 1] as the bytes of a picture.

  Args:
    image: pixels.
    profile: ICC profile of its colours.
  """
  import PIL.Image

  pixels = np.clip(image * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, format="PNG", icc_profile=profile)
  return buffer.getvalue()


def _reduced(file: pathlib.Path, size: int) -> np.ndarray:
  """The centre square as [size, size, 3] float32 in [-1, 1]."""
  pixels = read(file)  # [H, W, 3]
  side = min(pixels.shape[:2])
  if side < size:
    raise ValueError(
      f"{clean(file.name)} has {side} pixels a side, fewer than {size}"
    )
  top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
  square = pixels[top : top + side, left : left + side].astype(np.float64)
  weights = _area_weights(side, size)
  square = np.einsum("is,stc,jt->ijc", weights, square, weights, optimize=True)
  return (square / 127.5 - 1.0).astype(np.float32)


def _area_weights(side: int, size: int) -> np.ndarray:
  """[size, side]: the share of every source pixel in every target pixel."""
  edges = np.arange(size + 1) * side / size
  pixel = np.arange(side)
  overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(
    edges[:-1, None], pixel
  )
  return np.maximum(overlap, 0.0) * size / side
