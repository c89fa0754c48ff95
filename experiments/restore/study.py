"""A picture of one's own restored: the best image, samples, their spread.

  python -m experiments.restore --config.image=photo.jpg \
    --config.task=motion_blur --config.kernel=k.png

Settings: `configs/restore.py`. Pictures of any size and grey ones are taken: a
network's sides are padded by mirroring, or worked on in overlapping tiles.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data import degradations
from experiments.harness import prior_files, record, writing
from experiments.harness.command_line import UsageError
from experiments.harness.progress import Progress
from experiments.harness.reporting import report as reports
from experiments.harness.subjects import scores
from experiments.restore import doubt, report
from experiments.restore.drawing.kept import draw_all
from experiments.restore.job import Job, Say
from experiments.restore.measurement.observed import Given
from experiments.restore.picture_files import picture_file
from experiments.restore.report import Restored
from experiments.restore.settings import Settings
from posterior_jax import metrics

TABLE, DRAWN = "restore", "drawn"  # the latter a folder of unrounded images
# Of the settings, columns of the table.
ABOUT = (
  *("image", "task", "kernel", "kernel_flip", "kernel_degrees", "mask"),
  *("std", "factor"),
  *("operator", "boundary", "noise_std", "degrade"),
  *("method", "levels", "samples", "sample_levels", "tie", "prior", "seed"),
)
Score = float | None


def inputs(settings: Settings) -> dict[str, str]:
  """SHA-256 of the files that the settings name."""
  found = prior_files.digests(settings.prior)
  for name in ("image", "kernel", "mask", "operator"):
    file = pathlib.Path(getattr(settings, name))
    if file.is_file():  # a kernel may be one by its name
      found |= writing.digests(name, [file])
  return found


def restore(job: Job, run: record.Run) -> None:
  """Restores the picture; writes images, row and report.

  Raises:
    UsageError: the image is not finite.
  """
  try:
    found = compute(job, run.folder)
  except doubt.NotFinite as error:
    raise UsageError(str(error)) from error
  path = write(found, run, run.folder).report
  print(f"report: {reports.shown(path)}")


class Found(NamedTuple):
  """What was computed of a picture, and is not written yet."""

  job: Job  # with the kernel that was found
  restored: Restored  # of the picture's size
  row: dict[str, Any]
  doubts: list[str]


class Written(NamedTuple):
  """What is left of a picture."""

  given: np.ndarray  # [h, w, C], enlarged where it is smaller
  best: np.ndarray  # [H, W, C]
  row: dict[str, Any]
  report: pathlib.Path


def compute(
  job: Job,
  folder: pathlib.Path,
  *,
  progress: Callable[[int], Progress] | None = None,
  say: Say = print,
) -> Found:
  """Restores one picture, on the device of the thread that asks.

  Args:
    job: what is restored.
    folder: of the picture; it keeps images as they are drawn.
    progress: of so many steps; None: that of a run.
    say: takes a hint before it is begun.

  Raises:
    NotFinite: the image is not.
  """
  if not job.settings.degrade:
    hint = doubt.flip_hint(job.given.observation)
    if hint:
      say(hint)
  progress = progress or functools.partial(Progress, label="restore")
  restored, spent = draw_all(job, folder / DRAWN, progress)
  if job.common.family is not None:
    # What follows is measured by the kernel that was found.
    job = job.turned(spent["degrees"])
  row = {name: getattr(job.settings, name) for name in ABOUT}
  row |= evaluate(job.given, restored) | spent
  doubts = doubt.about(job, restored.best, row)
  # The margin of a scene has served: what is written has the picture's size.
  restored = restored.within(job.given.observation.operator)
  row |= dict(zip(("height", "width", "channels"), restored.best.shape))
  return Found(job, restored, row, doubts)


def write(
  found: Found, run: record.Run, folder: pathlib.Path, *, say: Say = print
) -> Written:
  """Writes images, row and report of a picture, and says what can be said.

  Args:
    found: by `compute`.
    run: whose table takes the row.
    folder: for images and report, one of its own for every picture.
    say: takes a line.
  """
  job, restored, row, doubts = found
  # What took the time first, and last what can be made of it.
  for name, content in _pictures(job, restored).items():
    writing.write(folder / name, content)
  run.write_once(TABLE, row, ABOUT)
  path = report.write(folder, run.origin(), job.given, restored, row)
  for line in (*report.summary(row), *doubts):
    say(line)
  seen = np.asarray(degradations.as_image(job.given.observation)[0])
  return Written(seen, restored.best, row, path)


def _pictures(job: Job, restored: Restored) -> dict[str, bytes]:
  """Files by name, as deep as the picture was and with its colour profile."""
  images = {"restored": restored.best}
  images |= {f"sample_{i}": x for i, x in enumerate(restored.samples, 1)}
  several = len(restored.samples) > 1
  if several and job.settings.method == "NFC":
    images["mean"] = restored.samples.mean(0)
  form: dict[str, Any] = {
    "bits": min(job.picture.bits, 16),
    "profile": job.picture.profile,
  }
  files = {
    f"{name}.png": picture_file.as_png(x, **form) for name, x in images.items()
  }
  if several:
    spread = report.uncertainty(restored.samples)
    files["uncertainty.png"] = reports.render(spread, "png")
  return files


def evaluate(given: Given, restored: Restored) -> dict[str, Score]:
  """How well images fit the measurement, and the truth if there is one.

  Returns:
    Columns of the table: residual, psnr and ssim of the one image, of a sample,
    of the mean of samples and of the picture as given; None for what cannot be
    said.
  """
  several = len(restored.samples) > 1
  images = {"": restored.best}
  if len(restored.samples):
    images["_sample"] = restored.samples[0]
  if several:
    images["_mean"] = restored.samples.mean(0)
  # What is no picture has no quality of one.
  if given.truth is not None and given.observation.operator.pictorial:
    images["_given"] = np.asarray(degradations.as_image(given.observation)[0])
  found: dict[str, Score] = {}
  for name in report.ROWS:
    numbers: dict[str, Score] = dict.fromkeys(scores.NAMES)
    if name in images:
      x = jnp.asarray(images[name])[None, None]  # [1, 1, H, W, C]
      if x.shape[2:] == restored.best.shape:
        (numbers,) = scores.evaluate(x, given.observation, given.truth)
      elif given.truth is not None:
        # A picture without the scene's margin cannot be measured again.
        numbers["psnr"] = float(metrics.psnr(x, given.truth).mean())
        numbers["ssim"] = float(metrics.ssim(x, given.truth).mean())
    for score in ("residual", "psnr", "ssim"):
      found[score + name] = numbers[score]
  # Of the picture alone, as the map of it: a scene's margin is less sure.
  shown = restored.within(given.observation.operator)
  spread = shown.samples.std(0, ddof=1) if several else None
  return found | {
    "spread": None if spread is None else float(np.sqrt((spread**2).mean()))
  }
