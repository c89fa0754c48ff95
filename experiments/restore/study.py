"""A picture of one's own restored: the best image, samples, their spread.

  python -m experiments.restore --config.image=photo.jpg \
    --config.task=motion_blur --config.kernel=k.png

Settings: `configs/restore.py`. Pictures of any size and grey ones are taken: a
network's sides are padded by mirroring, or worked on in overlapping tiles.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.harness import record, scores
from experiments.harness import report as reports
from experiments.harness.progress import Progress, Tick
from experiments.restore import report
from experiments.restore.input import Given
from experiments.restore.job import Job
from experiments.restore.report import Restored

TABLE = "restore"
# Of the settings, columns of the table.
ABOUT = (
  *("image", "task", "kernel", "mask", "std", "noise_std", "degrade"),
  *("method", "levels", "samples", "sample_levels", "tie", "prior", "seed"),
)
Score = float | None


def restore(job: Job, run: record.Run) -> None:
  """Restores the picture; writes images, row and report."""
  start = time.monotonic()
  restored, spent = _draw_all(job)
  seconds = time.monotonic() - start
  shape = job.given.observation.operator.image_shape
  row = {name: getattr(job.settings, name) for name in ABOUT}
  row |= dict(zip(("height", "width", "channels"), shape))
  row |= evaluate(job.given, restored) | spent | {"seconds": seconds}
  run.write(TABLE, row)
  photographs.save(restored.best, run.folder / "restored.png")
  for i, sample in enumerate(restored.samples, 1):
    photographs.save(sample, run.folder / f"sample_{i}.png")
  if len(restored.samples) > 1:
    if job.settings.method == "NFC":
      photographs.save(restored.samples.mean(0), run.folder / "mean.png")
    picture = reports.render(report.uncertainty(restored.samples), "png")
    (run.folder / "uncertainty.png").write_bytes(picture)
  path = report.write(run, job.given, restored, row)
  for line in report.summary(row):
    print(line)
  print(f"report: {reports.shown(path)}")


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


def _draw_all(job: Job) -> tuple[Restored, dict[str, int]]:
  """The image and the samples, one at a time, and what they took."""
  settings, nfc = job.settings, job.settings.method == "NFC"
  first, *others = jax.random.split(
    jax.random.key(settings.seed), settings.samples + 1
  )
  total = settings.samples * job.drawn.num_steps + nfc * job.best.num_steps
  with Progress(total, label="restore") as tick:
    found = [draw(job, job.best, "image", tick)(first)] if nfc else []
    found += map(draw(job, job.drawn, "samples", tick), others)
  images = np.stack([each.image for each in found])
  samples = images[int(nfc) :]
  return Restored(images[0] if nfc else samples.mean(0), samples), {
    "calls": sum(each.calls for each in found),
    "products": sum(each.products for each in found),
  }


class Drawn(NamedTuple):
  """An image [H, W, C], and what it took."""

  image: np.ndarray  # pixels in [-1, 1]
  calls: int  # of the denoiser
  products: int  # with its Jacobian


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
