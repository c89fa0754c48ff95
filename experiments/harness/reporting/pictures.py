"""Pictures side by side, for reports."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def panel(
  lines: Mapping[str, Mapping[str, np.ndarray]],
  *,
  side: float = 1.75,
  notes: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
  """Images in lines and columns: a matplotlib figure.

  Args:
    lines: by the name that stands at their left, "" for none; images
      [H, W, C], C 1 or 3, in [-1, 1], by title. A title that stands above
      already is not repeated.
    side: width of an image, inches.
    notes: a few characters in the corner of some images, by line and title.
  """
  import matplotlib.pyplot as plt

  columns = max(len(images) for images in lines.values())
  height, width = next(iter(next(iter(lines.values())).values())).shape[:2]
  figure, axes = plt.subplots(
    len(lines),
    columns,
    figsize=(side * columns, (side * height / width + 0.2) * len(lines)),
    squeeze=False,
    layout="constrained",
    gridspec_kw={"wspace": 0.02, "hspace": 0.02},
  )
  above: list[str] = []
  for line, (name, images) in zip(axes, lines.items()):
    for axis in line[len(images) :]:
      axis.set_axis_off()
    for axis, (title, image) in zip(line, images.items()):
      pixels = np.clip(np.asarray(image) / 2 + 0.5, 0, 1)
      axis.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
      axis.set(xticks=[], yticks=[])
      if note := (notes or {}).get(name, {}).get(title):
        _write_in_corner(axis, note)
    if list(images) != above:
      above = list(images)
      for axis, title in zip(line, above):
        axis.set_title(title, fontsize=8)
    line[0].set_ylabel(name, fontsize=8)
  return figure


def _write_in_corner(axis: Any, note: str) -> None:
  # A ground of its own: white on a white sky is not read.
  ground = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
  axis.text(
    *(0.97, 0.04, note),
    transform=axis.transAxes,
    color="white",
    fontsize=7,
    ha="right",
    bbox=ground,
  )


def wrapped(
  images: Mapping[str, np.ndarray], *, columns: int
) -> dict[str, dict[str, np.ndarray]]:
  """Images by title as nameless lines of at most so many for `panel`."""
  titles = list(images)
  starts = range(0, len(titles), columns)
  return {
    " " * i: {title: images[title] for title in titles[start : start + columns]}
    for i, start in enumerate(starts)
  }


def grey(values: np.ndarray, *, white: float) -> np.ndarray:
  """A map [H, W] from 0 to `white` as an image for `panel`, [H, W, 1]."""
  return 2 * np.asarray(values)[..., None] / white - 1
