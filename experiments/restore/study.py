"""A picture of one's own restored: the best image, samples, their spread.

  python -m experiments.restore --config.image=photo.jpg \
    --config.task=motion_blur --config.kernel=k.png

Settings: `configs/restore.py`. Pictures of any size and grey ones are taken: a
network's sides are padded by mirroring, or worked on in overlapping tiles.
"""

import dataclasses
import io
import pathlib
import sys
import time
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.harness import prior_files, record, scores, writing
from experiments.harness import report as reports
from experiments.harness.progress import Progress, Tick
from experiments.restore import report
from experiments.restore.input import Given
from experiments.restore.job import Job
from experiments.restore.report import Restored

TABLE, DRAWN = "restore", "drawn"  # the latter a folder of unrounded images
# Of the settings, columns of the table.
ABOUT = (
  *("image", "task", "kernel", "mask", "std", "noise_std", "degrade"),
  *("method", "levels", "samples", "sample_levels", "tie", "prior", "seed"),
)
Score = float | None


def inputs(job: Job) -> dict[str, str]:
  """SHA-256 of the files that the settings name."""
  settings = job.settings
  found = prior_files.digests(settings.prior)
  for name in ("image", "kernel", "mask"):
    file = pathlib.Path(getattr(settings, name))
    if file.is_file():  # a kernel may be one by its name
      found |= writing.digests(name, [file])
  return found


def restore(job: Job, run: record.Run) -> None:
  """Restores the picture; writes images, row and report."""
  restored, spent = _draw_all(job, run.folder / DRAWN)
  # What took the time first, and last what can be made of it.
  for name, picture in _pictures(job, restored).items():
    writing.write(run.folder / name, picture)
  shape = job.given.observation.operator.image_shape
  row = {name: getattr(job.settings, name) for name in ABOUT}
  row |= dict(zip(("height", "width", "channels"), shape))
  row |= evaluate(job.given, restored) | spent
  run.write_once(TABLE, row, ABOUT)
  path = report.write(run, job.given, restored, row)
  for line in report.summary(row):
    print(line)
  print(f"report: {reports.shown(path)}")


def _pictures(job: Job, restored: Restored) -> dict[str, bytes]:
  """Files by name."""
  images = {"restored": restored.best}
  images |= {f"sample_{i}": x for i, x in enumerate(restored.samples, 1)}
  several = len(restored.samples) > 1
  if several and job.settings.method == "NFC":
    images["mean"] = restored.samples.mean(0)
  files = {f"{name}.png": photographs.as_png(x) for name, x in images.items()}
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
      (numbers,) = scores.evaluate(x, given.observation, given.truth)
    for score in ("residual", "psnr", "ssim"):
      found[score + name] = numbers[score]
  spread = restored.samples.std(0, ddof=1) if several else None
  return found | {
    "spread": None if spread is None else float(np.sqrt((spread**2).mean()))
  }


class Drawn(NamedTuple):
  """An image [H, W, C], and what it took."""

  image: np.ndarray  # pixels in [-1, 1]
  calls: int  # of the denoiser
  products: int  # with its Jacobian


def _draw_all(
  job: Job, folder: pathlib.Path
) -> tuple[Restored, dict[str, float]]:
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
  with Progress(total, label="restore") as tick:
    best = draw(job, job.best, "image", tick)
    drawn = draw(job, job.drawn, "samples", tick)
    found = [_kept(folder / "image.npz", best, first)] if nfc else []
    for i, key in enumerate(others, 1):
      found.append(_kept(folder / f"sample_{i}.npz", drawn, key))
  images = np.stack([each.image for each, _ in found])
  samples = images[int(nfc) :]
  return Restored(images[0] if nfc else samples.mean(0), samples), {
    "calls": sum(each.calls for each, _ in found),
    "products": sum(each.products for each, _ in found),
    "seconds": sum(seconds for _, seconds in found),
  }


def _kept(
  file: pathlib.Path, one: Callable[[jax.Array], Drawn], key: jax.Array
) -> tuple[Drawn, float]:
  """What a run before this one has drawn, else drawn now and kept; seconds."""
  if file.exists():
    try:
      with np.load(file) as found:
        calls, products, seconds = (
          found[name].item() for name in ("calls", "products", "seconds")
        )
        return Drawn(found["image"], calls, products), seconds
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
      print(f"{file} is damaged; it is drawn again", file=sys.stderr)
  start = time.monotonic()
  drawn = one(key)
  seconds = time.monotonic() - start
  buffer = io.BytesIO()
  np.savez(buffer, seconds=seconds, **drawn._asdict())
  writing.write(file, buffer.getvalue())
  return drawn, seconds


def draw(
  job: Job, sampler: posterior_jax.Sampler, label: str, tick: Tick
) -> Callable[[jax.Array], Drawn]:
  """From a key to the sample of `posterior_jax.run`; its steps are shown."""
  # One program each: without it every operation of `init` is one of its own.
  init = jax.jit(sampler.init, static_argnums=2)
  step = jax.jit(sampler.step)
  given = job.given.coloured()
  noise_std = jnp.asarray(given.noise_std, jnp.float32)
  observation = dataclasses.replace(given, noise_std=noise_std)

  def one(key: jax.Array) -> Drawn:
    calls = products = 0
    key_init, key_steps = jax.random.split(key)
    state = init(key_init, observation, 1)
    for key in jax.random.split(key_steps, sampler.num_steps):
      tick(label)
      state, info = step(state, job.denoise, observation, key)
      calls += int(info.calls)
      products += int(info.products)
    image = np.asarray(state.x[0, 0])
    if job.given.grey:
      image = image.mean(-1, keepdims=True)
    return Drawn(image, calls, products)

  return one
