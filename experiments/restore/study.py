"""A picture of one's own restored: the best image, samples, their spread.

  python -m experiments.restore --config.image=photo.jpg \
    --config.task=motion_blur --config.kernel=k.png

Settings: `configs/restore.py`. Pictures of any size and grey ones are taken: a
network's sides are padded by mirroring, or worked on in overlapping tiles.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.harness import prior_files, record, samplers
from experiments.harness.progress import Progress, Tick
from experiments.harness.samplers import CALIBRATED, TUNED
from experiments.restore import input, report, rows
from experiments.restore.input import FACTOR, Given
from experiments.restore.rows import Restored
from posterior_jax.base import Denoiser

TABLE = "restore"
OVERLAP = 64
TOLERANCE = 1e-2  # relative residual of a sample's linear solves
FEWEST = 20  # levels of NFC's one image, whose solves go on over the levels


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is restored, and how.

  Attributes:
    image: file of the picture.
    task: of `restore_input.KINDS`.
    kernel: of motion blur, see `restore_input.read_kernel`.
    mask: of inpainting, see `restore_input.read_mask`.
    std: of Gaussian blur, in pixels, up to 50.
    noise_std: of the measurement, pixels in [-1, 1]; n levels of 255 are
      n / 127.5.
    degrade: whether the picture is clean, and to be degraded first.
    method: of `samplers.METHODS`, in its tuned setting.
    levels: denoiser calls that an image may take, 1 to 10000; with NFC at least
      20, and up to four VJPs on top of each.
    samples: posterior samples, 0 to 64; NFC's by its calibrated setting.
    sample_levels: denoiser calls of each of NFC's samples.
    tie: width of NFC's samples: "spectrum", that of photographs, or "probed",
      that put right by one product a level with the denoiser's Jacobian.
    prior: see `prior_files.load`; or "gaussian".
    dtype: of a network's arithmetic.
    tile: a picture with a longer side is denoised in tiles of so many pixels.
    seed: of the samples, and of the noise of a degradation.
  """

  image: str
  task: str
  kernel: str
  mask: str
  std: float
  noise_std: float
  degrade: bool
  method: str
  levels: int
  samples: int
  sample_levels: int
  tie: str
  prior: str
  dtype: str
  tile: int
  seed: int

  def __post_init__(self) -> None:
    if not self.image:
      raise ValueError("image must name a picture, as --config.image=FILE")
    for name, known in (
      ("task", input.KINDS),
      ("method", tuple(samplers.METHODS)),
      ("tie", ("spectrum", "probed")),
      ("dtype", ("float32", "bfloat16")),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} must be one of {', '.join(known)}; got "
          f"{getattr(self, name)!r}"
        )
    self._check_ranges()
    self._check_files()

  def _check_ranges(self) -> None:
    if not 0 < self.noise_std <= 2:
      raise ValueError(
        f"noise_std must lie in (0, 2], pixels in [-1, 1]; got {self.noise_std}"
      )
    for name, least, most in (
      ("std", 0.1, 50),
      ("levels", FEWEST if self.method == "NFC" else 1, 10_000),
      ("samples", 0 if self.method == "NFC" else 1, 64),
      ("sample_levels", 1, 10_000),
      ("tile", 2 * OVERLAP, input.MOST),
      ("seed", 0, 2**31 - 1),
    ):
      if not least <= getattr(self, name) <= most:
        raise ValueError(
          f"{name} must lie in [{least}, {most}], got {getattr(self, name)}"
        )

  def _check_files(self) -> None:
    for name, tasks in (
      ("kernel", ("motion_blur",)),
      ("mask", input.MASKED),
    ):
      if self.task in tasks and not getattr(self, name):
        raise ValueError(f"{name} must name a file for {self.task}")
      if self.task not in tasks and getattr(self, name):
        raise ValueError(f"{name} must be left out: {self.task} reads none")


class Job(NamedTuple):
  """All that a run needs, read and checked.

  Attributes:
    settings: as given.
    given: the picture.
    denoise: of the prior, on the picture's size.
    best: the sampler of the one image.
    drawn: the sampler of posterior samples.
  """

  settings: Settings
  given: Given
  denoise: Denoiser
  best: posterior_jax.Sampler
  drawn: posterior_jax.Sampler


def prepare(settings: Settings) -> Job:
  """Reads picture, mask, kernel and prior; nothing is compiled.

  Raises:
    ValueError: one of them is missing, unreadable or does not fit, or the
      method cannot take the task.
  """
  picture, said = input.read_picture(settings.image)
  if said:
    print(said)
  given = input.observe(
    picture,
    lambda shape: input.build_operator(
      settings.task,
      shape,
      kernel=settings.kernel,
      mask=settings.mask,
      std=settings.std,
    ),
    enlarge=FACTOR if settings.task == "super_resolution" else 1,
    noise_std=settings.noise_std,
    degrade=settings.degrade,
    seed=settings.seed,
  )
  height, width, _ = given.observation.operator.image_shape
  if settings.degrade and (height, width) != picture.shape[:2]:
    print(f"the picture is cut to {width} x {height}, divisible by {FACTOR}")
  known = degradations.build_prior(height, width)
  best, drawn = (
    samplers.build(
      settings.method,
      samplers.config(settings.method, setting, evaluations=levels, **changes),
      spectrum=known.spectrum,
    )
    for setting, levels, changes in _settings(settings)
  )
  denoise = _denoiser(settings, known.denoise, (height, width))
  for sampler in {id(s): s for s in (best, drawn)}.values():
    jax.eval_shape(
      lambda key, sampler=sampler: posterior_jax.run(
        sampler, denoise, given.coloured(), key
      )[0],
      jax.random.key(0),
    )
  return Job(settings, given, denoise, best, drawn)


# Setting, denoiser calls, changes of the setting.
Chosen = tuple[str, int, dict[str, Any]]


def _settings(settings: Settings) -> tuple[Chosen, Chosen]:
  """How the one image is made, and how samples are drawn."""
  tuned: Chosen = (TUNED, settings.levels, {})
  if settings.method == "NFC":
    # Solves to 1e-6 would take ten times as long as the network does.
    changes = {"tolerance": TOLERANCE, "tie": settings.tie}
    return tuned, (CALIBRATED, settings.sample_levels, changes)
  return tuned, tuned


def _denoiser(
  settings: Settings, known: Denoiser, size: tuple[int, int]
) -> Denoiser:
  """The prior's denoiser for pictures of a size."""
  if settings.prior == prior_files.GAUSSIAN:
    return known
  prior = prior_files.load(settings.prior, dtype=settings.dtype)
  unit = prior.config.unit
  if max(size) <= settings.tile:
    return posterior_jax.padded(prior.denoise, multiple=unit)
  if settings.tile % unit:
    raise ValueError(
      f"tile must be divisible by {unit}, the network's unit; got "
      f"{settings.tile}"
    )
  return posterior_jax.tiled(prior.denoise, tile=settings.tile, overlap=OVERLAP)


def restore(job: Job, run: record.Run) -> None:
  """Restores the picture; writes images, row and report."""
  start = time.monotonic()
  restored, steps = _draw_all(job)
  seconds = time.monotonic() - start
  numbers = rows.judge(job.given, restored) | steps
  row = _about(job) | numbers | {"seconds": seconds}
  run.write(TABLE, row)
  photographs.save(restored.best, run.folder / "restored.png")
  for i, sample in enumerate(restored.samples, 1):
    photographs.save(sample, run.folder / f"sample_{i}.png")
  if len(restored.samples) > 1:
    if job.settings.method == "NFC":
      photographs.save(restored.samples.mean(0), run.folder / "mean.png")
    picture = report.uncertainty(restored.samples)
    path = run.folder / "uncertainty.png"
    path.write_bytes(report.reports.render(picture, "png"))
  path = report.write(run, job.given, restored, row)
  for line in report.summary(row):
    print(line)
  print(f"report: {report.reports.shown(path)}")


def _draw_all(job: Job) -> tuple[Restored, dict[str, int]]:
  """The image and the samples, one at a time, and what they took."""
  settings, nfc = job.settings, job.settings.method == "NFC"
  first, *others = jax.random.split(
    jax.random.key(settings.seed), settings.samples + 1
  )
  total = settings.samples * job.drawn.num_steps + nfc * job.best.num_steps
  with Progress(total, label="restore") as tick:
    best = [_draw(job, job.best, "image", tick)(first)] if nfc else []
    draw = _draw(job, job.drawn, "samples", tick)
    drawn = [draw(key) for key in others]
  images = np.stack([image for image, _ in best + drawn])
  samples = images[len(best) :]
  return Restored(images[0] if nfc else samples.mean(0), samples), {
    name: sum(spent[name] for _, spent in best + drawn)
    for name in ("calls", "products")
  }


# key -> image [H, W, C], evaluations of its run
Draw = Callable[[jax.Array], tuple[np.ndarray, dict[str, int]]]


def _draw(
  job: Job, sampler: posterior_jax.Sampler, label: str, tick: Tick
) -> Draw:
  """One run of a sampler, the samples of `run`; its steps are shown."""
  step = jax.jit(sampler.step)
  given = job.given.coloured()
  noise_std = jnp.asarray(given.noise_std, jnp.float32)
  observation = dataclasses.replace(given, noise_std=noise_std)

  def draw(key: jax.Array) -> tuple[np.ndarray, dict[str, int]]:
    spent = {"calls": 0, "products": 0}
    key_init, key_steps = jax.random.split(key)
    state = sampler.init(key_init, observation, 1)
    for key in jax.random.split(key_steps, sampler.num_steps):
      tick(label)
      state, info = step(state, job.denoise, observation, key)
      spent["calls"] += int(info.calls)
      spent["products"] += int(info.products)
    image = np.asarray(state.x[0, 0])
    if job.given.grey:
      image = image.mean(-1, keepdims=True)
    return image, spent

  return draw


def _about(job: Job) -> dict[str, Any]:
  height, width, channels = job.given.observation.operator.image_shape
  names = (
    *("image", "task", "kernel", "mask", "std", "noise_std", "degrade"),
    *("method", "levels", "samples", "sample_levels", "tie", "prior", "seed"),
  )
  return {name: getattr(job.settings, name) for name in names} | {
    "height": height,
    "width": width,
    "channels": channels,
  }
