"""Which pixels of a picture are observed: a mask's file, and transparency."""

import numpy as np

from experiments.restore.picture_files import picture_file
from experiments.restore.picture_files.picture import Picture

# Shares of a picture: fewer observed pixels, or fewer hidden ones, are a slip
# more often than a task.
FEW = 0.02
# Levels of 255: JPEG of quality 50 leaves one colour as even, and that of 75
# mostly thin strokes.
EVEN = 6


def read_mask(file: str, size: tuple[int, int]) -> np.ndarray:
  """Which pixels are observed, [H, W] of 0 and 1; white means observed.

  What is transparent is not observed, whatever its colour.

  Raises:
    ValueError: there is no such file, or it is no picture of that size.
  """
  grey, alpha = _read(file)
  if grey.shape != size:
    raise ValueError(
      f"mask must have the picture's size, {size[1]} x {size[0]}; {file!r} has "
      f"{grey.shape[1]} x {grey.shape[0]}"
    )
  observed = grey > 0.5
  if alpha is not None:
    observed &= alpha > 0.5
  return observed.astype(np.float32)


def soft_share(file: str) -> float:
  """The share of a mask that is neither nearly black nor nearly white.

  Nor nearly transparent or opaque.
  """
  grey, alpha = _read(file)
  shown = grey if alpha is None else np.minimum(grey, alpha)
  return float(((shown > 0.1) & (shown < 0.9)).mean())


def _read(file: str) -> tuple[np.ndarray, np.ndarray | None]:
  stored = picture_file.read("mask", file)
  grey = stored.values.mean(-1)
  if not np.isfinite(grey).all():
    raise ValueError(f"mask {file!r} must be finite everywhere")
  if stored.bits < 32 and 0 < grey.max() * (2**stored.bits - 1) <= 1:
    grey = grey / grey.max()  # of 0 and 1, where a picture has 0 and 255
  return grey, stored.alpha


def mask_of(picture: Picture, file: str) -> np.ndarray:
  """The pixels of a picture that are observed: by its mask and its alpha.

  Args:
    picture: whose transparent pixels are holes.
    file: of the mask, see `read_mask`; "" for none.

  Returns:
    [H, W] of 0 and 1.

  Raises:
    ValueError: for a mask that is not one, or where nothing hides anything.
  """
  size = picture.pixels.shape[0], picture.pixels.shape[1]
  if not file and picture.hidden is None:
    raise ValueError(
      "mask must name a file, or the image have transparent holes"
    )
  mask = read_mask(file, size) if file else np.ones(size, np.float32)
  return mask if picture.hidden is None else mask * (1 - picture.hidden)


def _inside(region: np.ndarray) -> np.ndarray:
  """Pixels [H, W] of a region that are not at its edge, where it has such.

  JPEG rings at the edge of a hole, and a mask may be a pixel off.
  """
  for width in (2, 1):
    padded = np.pad(region, width, mode="edge")
    sides = (2 * width + 1, 2 * width + 1)
    near = np.lib.stride_tricks.sliding_window_view(padded, sides)
    inner = np.asarray(near.all((2, 3)))
    if inner.sum() > 0.1 * region.sum():
      return inner
  return region


def _spread(brightness: np.ndarray, region: np.ndarray) -> float:
  """How far the nearest 60 % of its pixels are from their median, in levels."""
  # Of brightness alone: JPEG halves the resolution of colours.
  values = brightness[_inside(region)]
  off = np.abs(values - np.median(values))
  return 127.5 * float(np.quantile(off, 0.6))


def about_mask(mask: np.ndarray, pixels: np.ndarray | None) -> list[str]:
  """What to say of a mask: the share observed, and whether it looks wrong.

  Args:
    mask: [H, W] of 0 and 1.
    pixels: [H, W, C] of the picture as given; None where it is a clean one.
  """
  share = float(mask.mean())
  lines = [f"observed: {100 * share:.1f} % of the picture"]
  if not FEW <= share <= 1 - FEW:
    much = "nearly all" if share < FEW else "next to nothing"
    lines.append(
      f"the mask hides {much}: white must stand where it is observed"
    )
  elif pixels is not None:
    # A hole is filled with one colour; a photograph is less even by far.
    brightness = pixels.mean(-1)
    seen, hole = (_spread(brightness, mask == one) for one in (1, 0))
    if seen < EVEN and hole > 3 * max(seen, 1):
      lines.append(
        "the mask looks inverted: what it calls observed is one colour, what "
        "it hides is not; white must stand where the picture is observed"
      )
  return lines
