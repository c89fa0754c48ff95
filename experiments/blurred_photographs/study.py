"""Blurred photographs restored: little noise, a turned kernel, a real border.

  python -m experiments.blurred_photographs --config.folder=PICTURES

Settings: `configs/blurred_photographs.py`. Crops of photographs are blurred
together with what lies around them, as a camera does it, rounded to 8 bits and
restored as `experiments.restore` would. Beside each stands Tikhonov's
estimate with the best of its weights, chosen by the truth.
"""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from experiments.blurred_photographs.restoring import (
  blurred,
  gaussian,
  psnr,
  restored,
  scene,
  tikhonov,
)
from experiments.blurred_photographs.settings import (
  BORDER,
  KERNEL,
  NOISE,
  Settings,
)
from experiments.data import photographs
from experiments.harness import prior_files, record, writing
from experiments.restore.picture_files import kernel_file
from posterior_jax import uncertain

MOTION, GAUSSIAN, NARROW = "motion, medium", "Gaussian, std 1.6", "Gaussian"
OUTER = 16  # pixels that lie at the border
LINE = 15  # pixels of the kernel that is turned
DRAWN = 25.0  # degrees to either side that are drawn from, every 2.5


def prepare(settings: Settings) -> tuple[Settings, list[pathlib.Path]]:
  """The files, once prior and pictures can be read.

  Raises:
    ValueError: one cannot, the folder has no pictures, or not those that are
      named, or one is too small.
  """
  if settings.prior != prior_files.GAUSSIAN:
    prior_files.load(settings.prior)
  if not settings.folder:
    raise ValueError("folder must hold photographs, as --config.folder=FOLDER")
  files = photographs.files_in(settings.folder)
  missing = set(settings.only) - {file.name for file in files}
  if missing:
    raise ValueError(
      f"only must name files of folder, {min(missing)!r} is none"
    )
  files = [f for f in files if not settings.only or f.name in settings.only]
  widest = max(map(len, _kernels(settings).values()))
  for file in files:
    scene(file, settings, widest)
  return settings, files


def inputs(given: tuple[Settings, list[pathlib.Path]]) -> dict[str, str]:
  """SHA-256 of the photographs and of a prior of one's own."""
  settings, files = given
  found = prior_files.digests(settings.prior)
  return found | writing.digests("photograph", files)


def little_noise(
  file: pathlib.Path, settings: Settings, folder: pathlib.Path
) -> Iterator[dict[str, str | float]]:
  """Rows of "noise": every blur and level of one photograph."""
  kernels = _kernels(settings)
  for blur in MOTION, GAUSSIAN:
    kernel = kernels[blur]
    for noise_std in settings.noise:
      one = blurred(file, settings, kernel, noise_std)
      image, _ = restored(one, kernel, settings, folder)
      found = psnr(image, one.truth)
      least = tikhonov(one)
      yield {
        "photograph": file.name,
        "blur": blur,
        "noise": noise_std,
        "restored": found,
        "Tikhonov": least,
        "gain": found - least,
      }


def turned_kernel(
  file: pathlib.Path, settings: Settings, folder: pathlib.Path
) -> Iterator[dict[str, str | float]]:
  """The row of "kernel": the line is believed to lie, and is turned."""
  kernels = _kernels(settings)
  line, true = kernels["line"], kernels["line, turned"]
  one = blurred(file, settings, true, 0.01)
  row: dict[str, str | float] = {"photograph": file.name}
  for name, kernel, degrees in (
    ("believed", line, 0.0),
    ("drawn", line, DRAWN),
    ("known", true, 0.0),
  ):
    image, turn = restored(one, kernel, settings, folder, degrees)
    row[name] = psnr(image, one.truth)
    if degrees:
      row["degrees"] = turn
  yield row | {"back": row["drawn"] - row["believed"]}  # type: ignore[operator]


def real_border(
  file: pathlib.Path, settings: Settings, folder: pathlib.Path
) -> Iterator[dict[str, str | float]]:
  """The row of "border": all of the picture, its interior, its border."""
  kernel = _kernels(settings)[NARROW]
  one = blurred(file, settings, kernel, 6 / 127.5)
  image, _ = restored(one, kernel, settings, folder)
  interior = np.zeros(image.shape[:2], bool)
  interior[OUTER:-OUTER, OUTER:-OUTER] = True
  yield {
    "photograph": file.name,
    "all": psnr(image, one.truth),
    "interior": psnr(image, one.truth, interior),
    "border": psnr(image, one.truth, ~interior),
    "Tikhonov": tikhonov(one),
  }


def study(given: tuple[Settings, list[pathlib.Path]], run: record.Run) -> None:
  """Writes a row for every photograph and prints each part's table."""
  settings, files = given
  parts = {NOISE: little_noise, KERNEL: turned_kernel, BORDER: real_border}
  for part in settings.parts:
    rows: list[Mapping[str, str | float]] = []
    for file in files:
      for row in parts[part](file, settings, run.folder):
        run.write(part, row)
        rows.append(row)
        print(f"{part}: {_words(row)}", flush=True)
    table = pd.DataFrame(rows)
    by = [name for name in ("blur", "noise") if name in table]
    medians = table.groupby(by) if by else table
    print(f"{part}, medians:")
    print(medians.median(numeric_only=True).round(2).to_string())


def _kernels(settings: Settings) -> dict[str, np.ndarray]:
  """All that blur, [k, k] by name."""
  line = np.zeros((LINE, LINE))
  line[LINE // 2] = 1 / LINE
  family = uncertain.turned(line, degrees=settings.turn, steps=3)
  return {
    MOTION: kernel_file.trimmed(kernel_file.read("medium")),
    GAUSSIAN: gaussian(1.6),
    NARROW: gaussian(1.0),
    "line": line,
    "line, turned": np.asarray(family.values[2]),
  }


def _words(row: Mapping[str, str | float]) -> str:
  return ", ".join(
    value if isinstance(value, str) else f"{name} {value:.4g}"
    for name, value in row.items()
  )
