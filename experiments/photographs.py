"""Photographs that ship inside pip packages: nothing is downloaded.

scikit-image, scikit-learn and matplotlib each bundle a few; the ones restored
(`RESTORED`, `HELD_OUT`) and the ones a prior may learn from (`PRIOR`) never
overlap.
"""

import functools
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
}
RESTORED = ("astronaut", "coffee", "chelsea")
HELD_OUT = ("astronaut", "chelsea", "coffee", "china")
PRIOR = ("rocket", "camera", "motorcycle", "flower", "grace_hopper")


@functools.cache
def load(name: str, size: int) -> np.ndarray:
  """A photograph's centre square, averaged down to `size` by `size` pixels.

  Args:
    name: a key of FILES.
    size: side of the result, at most that of the centre square.

  Returns:
    [size, size, 3] float32 in [-1, 1]; grey photographs repeat their channel.

  Raises:
    ValueError: the name is unknown or the photograph is smaller than `size`.
  """
  if name not in FILES:
    raise ValueError(f"name must be one of {', '.join(FILES)}; got {name!r}")
  pixels = _read(path(name))  # [H, W, 3]
  side = min(pixels.shape[:2])
  if side < size:
    raise ValueError(f"{name} has {side} pixels a side, fewer than {size}")
  top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
  square = pixels[top : top + side, left : left + side]
  weights = _area_weights(side, size)
  square = np.einsum("is,stc,jt->ijc", weights, square, weights, optimize=True)
  return (square / 127.5 - 1.0).astype(np.float32)


def stack(names: tuple[str, ...], size: int) -> np.ndarray:
  """Several photographs, [N, size, size, 3] float32 in [-1, 1]."""
  return np.stack([load(name, size) for name in names])


def path(name: str) -> pathlib.Path:
  """The file of a key of FILES.

  Raises:
    ImportError: its package is not installed.
  """
  package, file = FILES[name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise ImportError(
      f"photographs come from {package}: pip install 'neumann-posterior[plots]'"
    )
  return pathlib.Path(spec.origin).parent / file


def _read(file: pathlib.Path) -> np.ndarray:
  """Pixels [H, W, 3] as float64 from 0 to 255."""
  import PIL.Image  # comes with matplotlib

  with PIL.Image.open(file) as image:
    return np.asarray(image.convert("RGB"), np.float64)


def _area_weights(side: int, size: int) -> np.ndarray:
  """[size, side]: the share of every source pixel in every target pixel."""
  edges = np.arange(size + 1) * side / size
  pixel = np.arange(side)
  overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(
    edges[:-1, None], pixel
  )
  return np.maximum(overlap, 0.0) * size / side
