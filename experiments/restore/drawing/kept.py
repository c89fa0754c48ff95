"""Images of a picture, drawn one at a time and kept for a run that goes on."""

import io
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.harness import writing
from experiments.harness.progress import Progress, silent
from experiments.restore.drawing.stepwise import Drawn, Pace, draw
from experiments.restore.job import Job
from experiments.restore.report import Restored


def draw_all(
  job: Job, folder: pathlib.Path, progress: Callable[[int], Progress]
) -> tuple[Restored, dict[str, Any]]:
  """The image and the samples, one at a time, and what they took.

  Args:
    job: what to draw.
    folder: keeps each as soon as it is drawn, for a run that goes on.
    progress: of so many steps, those of images that are not kept yet.
  """
  settings, nfc = job.settings, job.settings.method == "NFC"
  folder.mkdir(exist_ok=True)
  # The first key is the image's, whether there is one or not.
  keys = list(
    jax.random.split(jax.random.key(settings.seed), settings.samples + 1)
  )[1 - nfc :]
  names = ["image"] * nfc + [f"sample_{i + 1}" for i in range(settings.samples)]
  files = [folder / f"{name}.npz" for name in names]
  samplers = [job.best] * nfc + [job.drawn] * settings.samples
  before = [kept(file) for file in files]
  left = [each for each, have in zip(samplers, before) if have is None]
  pace = Pace(sum(each.num_steps * job.evaluations(each) for each in left))
  heartbeat = job.common.heartbeat
  with progress(sum(each.num_steps for each in left)) as tick:
    heartbeat.show = tick.note
    try:
      best = draw(job, job.best, "image", tick, pace)
      drawn = draw(job, job.drawn, "samples", tick, pace)
      ways = [best] * nfc + [drawn] * settings.samples
      found = [
        have or keep(file, one, key)
        for have, file, one, key in zip(before, files, ways, keys, strict=True)
      ]
    finally:
      # What follows on this device is not to be shown as this picture's.
      heartbeat.show = silent
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


def kept(file: pathlib.Path) -> tuple[Drawn, float] | None:
  """What a run before this one has drawn, and its seconds."""
  if not file.exists():
    return None
  try:
    with np.load(file) as found:
      calls, products, degrees, seconds = (
        found[name].item()
        for name in ("calls", "products", "degrees", "seconds")
      )
      return Drawn(found["image"], calls, products, degrees), seconds
  except Exception:  # of a flipped bit, zipfile may raise whatever it has
    said = f"{file} is damaged; it is drawn again\n"
    print(said, end="", file=sys.stderr, flush=True)
    return None


def keep(
  file: pathlib.Path, one: Callable[[jax.Array], Drawn], key: jax.Array
) -> tuple[Drawn, float]:
  """Drawn now and kept; seconds."""
  start = time.monotonic()
  drawn = one(key)
  seconds = time.monotonic() - start
  buffer = io.BytesIO()
  np.savez(buffer, seconds=seconds, **drawn._asdict())
  writing.write(file, buffer.getvalue())
  return drawn, seconds
