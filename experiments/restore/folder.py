"""All pictures of a folder, one on every device, and one report of them.

A file that cannot be restored, since it is cut short or no mask of its size was
given, takes no other with it: the report names it and says why.
"""

import contextlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.data import photographs
from experiments.harness import record, writing
from experiments.harness.command_line import UsageError
from experiments.harness.reporting import pictures
from experiments.harness.reporting import report as reports
from experiments.harness.reporting.report import Report
from experiments.restore import job, side_by_side, study
from experiments.restore import shared_inputs as shared
from experiments.restore.job import Job
from experiments.restore.picture_files import picture_file
from experiments.restore.settings import Settings
from experiments.restore.shared_inputs import SharedInputs
from experiments.restore.study import Written

REFUSED = "refused"  # table of pictures that could not be restored
SUFFIXES = (*photographs.SUFFIXES, ".npy")
# Pictures, too: those that are not read are left out by name and not silently.
OTHER_SUFFIXES = (
  *(".jfif", ".jpe", ".gif", ".avif", ".jxl", ".jp2", ".psd", ".tga"),
  *picture_file.UNREAD,
)
NAMED = 5  # files that are no pictures, at most
THUMBNAIL = 160  # pixels of a side in the report of all, at most


class Batch(NamedTuple):
  """A folder of pictures that were all degraded alike."""

  settings: Settings
  files: tuple[pathlib.Path, ...]
  common: SharedInputs
  passed: tuple[str, ...] = ()  # names of files that are no pictures


def prepare(settings: Settings) -> Job | Batch:
  """One picture as `job.prepare` reads it, or the names in a folder.

  Raises:
    ValueError: as `job.prepare`, or no picture lies in the folder.
  """
  folder = pathlib.Path(settings.image)
  if not folder.is_dir():
    return job.prepare(settings)
  given = [
    file
    for file in sorted(folder.iterdir())
    if not (file.is_dir() or file.name.startswith("."))
  ]
  files = tuple(filter(_is_picture, given))
  if not files:
    raise ValueError(
      f"image {settings.image!r} must be a picture or a folder of some: it "
      f"holds no {', '.join(SUFFIXES)}"
    )
  # First of all: else every picture would be refused for a mistake in it.
  passed = tuple(sorted(file.name for file in {*given} - {*files}))
  return Batch(settings, files, shared.read(settings), passed)


def _is_picture(file: pathlib.Path) -> bool:
  """By its name, or where that says nothing by how it begins."""
  if file.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES):
    return file.is_file() or file.is_symlink()  # which may lead nowhere
  if file.suffix or not file.is_file():
    return False
  try:
    return picture_file.begins(file)
  except OSError:
    return False


def _passed_over(names: Sequence[str]) -> str:
  """What to say of files that are no pictures, "" for none."""
  if not names:
    return ""
  more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
  return f"passed over as no pictures: {', '.join(names[:NAMED])}{more}\n"


def inputs(given: Job | Batch) -> dict[str, str]:
  """SHA-256 of the files that the settings name, those of a folder included.

  A picture that cannot be read has none; `restore` says why.
  """
  if not isinstance(given, Batch):
    return study.inputs(given.settings)
  found = study.inputs(given.settings)
  for file in given.files:
    with contextlib.suppress(OSError):
      found |= writing.digests("image", [file])
  return found


def restore(given: Job | Batch, run: record.Run) -> None:
  """Restores the picture, or every picture of the folder.

  Raises:
    UsageError: not one picture of the folder could be restored.
  """
  if not isinstance(given, Batch):
    study.restore(given, run)
    return
  print(_passed_over(given.passed), end="", file=sys.stderr, flush=True)
  found: dict[str, Written] = {}
  refused: dict[str, str] = {}
  with contextlib.closing(
    side_by_side.computed(given.settings, given.files, given.common, run.folder)
  ) as computed:
    for file, one in computed:
      name = file.name
      if isinstance(one, str):
        refused[name] = one
        why = {"image": str(file), "why": one}
        run.write_once(REFUSED, why, tuple(why))
        said = f"{name} is left out: {one}\n"
        # In one piece, between the lines of pictures under way.
        print(said, end="", file=sys.stderr, flush=True)
      else:
        written = study.write(
          one, run, run.folder / name, say=side_by_side.said_of(name)
        )
        found[name] = _small(written)
  if not found:
    name, last = list(refused.items())[-1]
    raise UsageError(
      f"none of {len(given.files)} pictures could be restored; {name}: {last}"
    )
  path = _report(run, given, found, refused)
  print(f"{len(found)} of {len(given.files)} pictures are restored")
  print(f"report: {reports.shown(path)}")


def _small(written: Written) -> Written:
  """With images no larger than the report shows: many are kept in memory."""

  def reduced(image: np.ndarray) -> np.ndarray:
    # No more than the shorter side of a strip, of which nothing would be left.
    step = min(-(-max(image.shape[:2]) // THUMBNAIL), *image.shape[:2])
    height, width = (n // step * step for n in image.shape[:2])
    squares = image[:height, :width].reshape(
      height // step, step, width // step, step, -1
    )
    return squares.mean((1, 3))

  return written._replace(
    given=reduced(written.given), best=reduced(written.best)
  )


def _report(
  run: record.Run,
  batch: Batch,
  found: Mapping[str, Written],
  refused: Mapping[str, str],
) -> pathlib.Path:
  """Writes the report of all pictures and returns its path."""
  settings = batch.settings
  report = Report(
    f"Pictures restored: {len(found)}",
    f"{run.origin()} Every picture has a folder of its name there, with its "
    "images at full size and a report of its own.",
  )
  report.section("Pictures")
  report.figure(
    pictures.panel(
      {
        name: {"as given": one.given, "restored": one.best}
        for name, one in found.items()
      }
    ),
    f"{settings.task.replace('_', ' ')} by {settings.method}.",
    photographic=True,
  )
  if refused:
    report.section("Left out")
    for name, why in refused.items():
      report.text(f"{name}: {why}.")
  report.section("Numbers")
  lines = pd.DataFrame.from_dict(
    {
      name: {
        "noise": one.row["noise_std"],
        "residual": one.row["residual"],
        "PSNR [dB]": one.row["psnr"],
        "time [s]": one.row["seconds"],
      }
      for name, one in found.items()
    },
    orient="index",
    dtype=float,
  ).rename_axis("picture")
  report.table(
    "Fit, and quality where the clean picture is known",
    lines.dropna(axis="columns", how="all"),
    digits={"noise": 4, "residual": 2, "PSNR [dB]": 2, "time [s]": 0},
    measured_on=f"the pictures of {settings.image}, seed {settings.seed}; "
    "noise on pixels in [-1, 1].",
    name=study.TABLE,
  )
  return report.write(run.folder / "report.html")
