"""Photographs that ship inside pip packages: nothing is downloaded.

scikit-image, scikit-learn and matplotlib each bundle a few; the ones restored
(`RESTORED`, `HELD_OUT`), the ones samplers are tuned on (`TUNING`) and the ones
a prior may learn from (`PRIOR`) never overlap. What is reported on is verified
by its hash.
"""

import functools
import hashlib
import importlib.util
import pathlib

import numpy as np

FILES = {
  "astronaut": ("skimage", "data/astronaut.png"),
  "coffee": ("skimage", "data/coffee.png"),
  "chelsea": ("skimage", "data/chelsea.png"),
  "rocket": ("skimage", "data/rocket.jpg"),
  "camera": ("skimage", "data/camera.png"),
  "motorcycle": ("skimage", "data/motorcycle_left.png"),
  "china": ("sklearn", "datasets/images/china.jpg"),
  "flower": ("sklearn", "datasets/images/flower.jpg"),
  "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
  "tissue": ("skimage", "data/ihc.png"),
  "retina": ("skimage", "data/retina.jpg"),
  "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
  "moon": ("skimage", "data/moon.png"),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
RESTORED = ("astronaut", "coffee", "chelsea")
HELD_OUT = ("astronaut", "chelsea", "coffee", "china")
TUNING = ("tissue", "retina", "galaxies", "moon")
PRIOR = ("rocket", "camera", "motorcycle", "flower", "grace_hopper")
_HASHES = """
88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5
596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb
cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7
8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29
f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef
38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6
3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4
78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577
"""
SHA256 = dict(zip((*HELD_OUT, *TUNING), _HASHES.split()))


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
) -> dict[str, np.ndarray]:
  """The pictures of a folder by file name, averaged down like `load`'s.

  ValueError where there is none, or one is unreadable or too small.
  """
  return {file.name: _reduced(file, size) for file in files_in(folder)}


def files_in(folder: str) -> list[pathlib.Path]:
  """The pictures of a folder, by name; ValueError where there is none."""
  root = pathlib.Path(folder)
  files = sorted(root.iterdir()) if root.is_dir() else []
  files = [file for file in files if file.suffix.lower() in SUFFIXES]
  if not files:
    raise ValueError(f"folder {folder!r} must hold pictures, it holds none")
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
  """Pixels [H, W, 3] as float64 from 0 to 255; ValueError for no picture."""
  import PIL.Image  # comes with matplotlib

  try:
    with PIL.Image.open(file) as image:
      return np.asarray(image.convert("RGB"), np.float64)
  except OSError as error:
    raise ValueError(f"{file} cannot be read as a picture") from error


def save(image: np.ndarray, file: pathlib.Path) -> None:
  """Writes an image [H, W, C], C 1 or 3, in [-1, 1] as a picture."""
  import PIL.Image

  pixels = np.clip(image * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  PIL.Image.fromarray(pixels).save(file)


def _reduced(file: pathlib.Path, size: int) -> np.ndarray:
  """The centre square as [size, size, 3] float32 in [-1, 1]."""
  pixels = read(file)  # [H, W, 3]
  side = min(pixels.shape[:2])
  if side < size:
    raise ValueError(f"{file.name} has {side} pixels a side, fewer than {size}")
  top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
  square = pixels[top : top + side, left : left + side]
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
