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
from experiments.harness.progress import Progress
from experiments.restore.drawing import Drawn, Pace, draw
from experiments.restore.job import Job
from experiments.restore.report import Restored


def draw_all(
  job: Job, folder: pathlib.Path, progress: Callable[[int], Progress]
) -> tuple[Restored, dict[str, Any]]:
  """The image and the samples, one at a time, and what they took.

  Args:
    job: what to draw.
    folder: keeps each as soon as it is drawn, for a run that goes on.
    progress: of so many steps.
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
  with progress(total) as tick:
    job.common.heartbeat.show = tick.note
    best = draw(job, job.best, "image", tick, pace)
    drawn = draw(job, job.drawn, "samples", tick, pace)
    found = [kept(folder / "image.npz", best, first)] if nfc else []
    for i, key in enumerate(others, 1):
      found.append(kept(folder / f"sample_{i}.npz", drawn, key))
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


def kept(
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
