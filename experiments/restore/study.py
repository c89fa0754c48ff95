"""A picture of one's own restored: the best image, samples, their spread.

  python -m experiments.restore --config.image=photo.jpg \
    --config.task=motion_blur --config.kernel=k.png

Settings: `configs/restore.py`. Pictures of any size and grey ones are taken: a
network's sides are padded by mirroring, or worked on in overlapping tiles.
"""

import io
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import degradations
from experiments.harness import prior_files, record, scores, writing
from experiments.harness.progress import Progress
from experiments.harness.reporting import report as reports
from experiments.restore import doubt, picture_file, report
from experiments.restore.drawing import Drawn, Pace, draw
from experiments.restore.input import Given
from experiments.restore.job import Job, Settings
from experiments.restore.report import Restored
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
  """Restores the picture; writes images, row and report."""
  path = picture(job, run, run.folder).report
  print(f"report: {reports.shown(path)}")


class Written(NamedTuple):
  """What is left of a picture."""

  given: np.ndarray  # [h, w, C], enlarged where it is smaller
  best: np.ndarray  # [H, W, C]
  row: dict[str, Any]
  report: pathlib.Path


def picture(job: Job, run: record.Run, folder: pathlib.Path) -> Written:
  """Restores one picture into a folder of the run.

  Args:
    job: what is restored.
    run: whose table takes the row.
    folder: for images and report, one of its own for every picture.
  """
  if not job.settings.degrade:
    hint = doubt.flip_hint(job.given.observation)
    if hint:
      print(hint)
  restored, spent = _draw_all(job, folder / DRAWN)
  if job.family is not None:
    # What follows is measured by the kernel that was found.
    job = job.turned(spent["degrees"])
  row = {name: getattr(job.settings, name) for name in ABOUT}
  row |= evaluate(job.given, restored) | spent
  doubts = doubt.about(job, restored.best, row)
  # The margin of a scene has served: what is written has the picture's size.
  restored = restored.within(job.given.observation.operator)
  row |= dict(zip(("height", "width", "channels"), restored.best.shape))
  # What took the time first, and last what can be made of it.
  for name, content in _pictures(job, restored).items():
    writing.write(folder / name, content)
  run.write_once(TABLE, row, ABOUT)
  path = report.write(folder, run.origin(), job.given, restored, row)
  for line in (*report.summary(row), *doubts):
    print(line)
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
  if given.truth is not None:
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
  spread = restored.samples.std(0, ddof=1) if several else None
  return found | {
    "spread": None if spread is None else float(np.sqrt((spread**2).mean()))
  }


def _draw_all(
  job: Job, folder: pathlib.Path
) -> tuple[Restored, dict[str, Any]]:
  """The image and the samples, one at a time, and what they took.

  Args:
    job: what to draw.
    folder: keeps each as soon as it is drawn, for a run that goes on.
  """
  settings, nfc = job.settings, job.settings.method == "NFC"
  folder.mkdir(exist_ok=True)
  first, *others = jax.random.split(
    jax.random.key(settings.seed), settings.samples + 1
  )
  total = settings.samples * job.drawn.num_steps + nfc * job.best.num_steps
  pace = Pace(
    settings.samples * job.drawn.num_steps * job.evaluations(job.drawn)
    + nfc * job.best.num_steps * job.evaluations(job.best)
  )
  with Progress(total, label="restore") as tick:
    job.heartbeat.show = tick.note
    best = draw(job, job.best, "image", tick, pace)
    drawn = draw(job, job.drawn, "samples", tick, pace)
    found = [_kept(folder / "image.npz", best, first)] if nfc else []
    for i, key in enumerate(others, 1):
      found.append(_kept(folder / f"sample_{i}.npz", drawn, key))
  images = np.stack([each.image for each, _ in found])
  samples = images[int(nfc) :]
  return Restored(images[0] if nfc else samples.mean(0), samples), {
    "calls": sum(each.calls for each, _ in found),
    "products": sum(each.products for each, _ in found),
    "seconds": sum(seconds for _, seconds in found),
  } | _turn([each.degrees for each, _ in found])


def _turn(degrees: list[float]) -> dict[str, float | None]:
  """Mean and spread of the kernel's turn, None where it is known."""
  known = np.isnan(degrees).any()
  several = len(degrees) > 1 and not known
  return {
    "degrees": None if known else float(np.mean(degrees)),
    "degrees_std": float(np.std(degrees, ddof=1)) if several else None,
  }


def _kept(
  file: pathlib.Path, one: Callable[[jax.Array], Drawn], key: jax.Array
) -> tuple[Drawn, float]:
  """What a run before this one has drawn, else drawn now and kept; seconds."""
  if file.exists():
    try:
      with np.load(file) as found:
        calls, products, degrees, seconds = (
          found[name].item()
          for name in ("calls", "products", "degrees", "seconds")
        )
        return Drawn(found["image"], calls, products, degrees), seconds
    except Exception:  # of a flipped bit, zipfile may raise whatever it has
      print(f"{file} is damaged; it is drawn again", file=sys.stderr)
  start = time.monotonic()
  drawn = one(key)
  seconds = time.monotonic() - start
  buffer = io.BytesIO()
  np.savez(buffer, seconds=seconds, **drawn._asdict())
  writing.write(file, buffer.getvalue())
  return drawn, seconds
