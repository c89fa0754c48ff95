"""Trains the photo prior: EDM's loss on photographs and dead leaves.

  python -m experiments.train_prior --config.photographs=DIR

Settings: `configs/train_prior.py`; photographs: `experiments.prior_sources`.
Writes the weights (`photo_prior.json` and `.safetensors`, the averaged ones),
checkpoints, tables and a report. SIGTERM saves and stops; a run goes on with
`--config.resume=FOLDER`, bit for bit as if it had not been stopped.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import dead_leaves, photo_tiles
from experiments.data.dead_leaves import LeafSettings
from experiments.harness import pace, record
from experiments.harness.checkpoints import Checkpoints, Interrupt, Saved
from experiments.harness.progress import Progress
from experiments.train_prior import report, training
from experiments.train_prior.batches import BatchSettings, Pool
from experiments.train_prior.training import OptimSettings, TrainState
from posterior_jax.priors import UNetConfig, UNetPrior, initial_params, photo


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the training.

  Attributes:
    seed: of everything that is drawn.
    photographs: a folder of pictures, or "" for the few installed ones.
    minutes: until the last step, data and compilation included; the number of
      steps follows from the speed. 0: `steps` decides.
    steps: how many.
    sizes: sides of the crops, one a step, in turn.
    pixels: of a batch.
    dtype: of the network's arithmetic.
    leaf_images: how many dead leaves are drawn.
    save_every: steps between checkpoints.
    report_every: steps between lines of the table.
    resume: folder of a run to go on with, or "".
    samples: draws of each size at the end.
    sample_steps: of their ODE.
    network: shape of the network.
    optim: how the parameters move.
    batch: what is in a batch.
    leaves: the dead leaves' model.
  """

  seed: int
  photographs: str
  minutes: float
  steps: int
  sizes: tuple[int, ...]
  pixels: int
  dtype: str
  leaf_images: int
  save_every: int
  report_every: int
  resume: str
  samples: int
  sample_steps: int
  network: UNetConfig
  optim: OptimSettings
  batch: BatchSettings
  leaves: LeafSettings

  def __post_init__(self):
    """Refuses values out of range."""
    pace.check(self.minutes, self.steps)
    unit, tile = self.network.unit, photo_tiles.TILE
    for size in self.sizes:
      if size % unit or not 0 < size <= tile or self.pixels < size**2:
        raise ValueError(
          f"sizes must be divisible by {unit}, at most {tile} and have at most "
          f"{self.pixels} pixels; got {size}"
        )
    if min(self.leaf_images, self.save_every, self.report_every) < 1:
      raise ValueError(
        "leaf_images, save_every and report_every must be positive; got "
        f"{self.leaf_images}, {self.save_every} and {self.report_every}"
      )

  def count(self, size: int) -> int:
    """Crops of a size in a batch."""
    devices = jax.device_count()
    return max(self.pixels // size**2 // devices, 1) * devices


def train(settings: Settings, run: record.Run) -> None:
  """Trains, saves the weights, draws samples, writes the report."""
  mesh = Mesh(np.array(jax.devices()), ("data",))
  photos = photo_tiles.read(settings.photographs)
  everywhere = NamedSharding(mesh, P())
  pool = jax.device_put(make_pool(photos, settings), everywhere)
  saved = _start(settings)
  saved = saved._replace(state=jax.device_put(saved.state, everywhere))
  checkpoints = Checkpoints(run.folder)

  def keep(saved: Saved) -> None:
    save(saved.state, photos, settings, run)
    checkpoints.save(saved)

  with Interrupt() as interrupt:
    saved = _loop(saved, pool, mesh, settings, run, keep, interrupt)
    keep(saved)
    checkpoints.close()
  if interrupt.asked:
    raise SystemExit(
      f"stopped at step {int(saved.state.step)}; to go on: "
      f"--config.resume={run.folder}"
    )
  report.write(
    UNetPrior(saved.state.average, settings.network),
    pool,
    run,
    count=settings.samples,
    sizes=tuple(dict.fromkeys(settings.sizes)),
    steps=settings.sample_steps,
    seed=settings.seed,
  )


def make_pool(photos: list[photo_tiles.Photograph], settings: Settings) -> Pool:
  """Tiles of the photographs and dead leaves made of them."""
  tiles = jnp.asarray(photo_tiles.tiles(photos))
  key = jax.random.fold_in(jax.random.key(settings.seed), 1)
  leaves = dead_leaves.bank(
    key, tiles, count=settings.leaf_images, settings=settings.leaves
  )
  return Pool(tiles, leaves)


def save(
  state: TrainState,
  photos: list[photo_tiles.Photograph],
  settings: Settings,
  run: record.Run,
) -> None:
  """Writes the averaged weights and their manifest into the run's folder."""
  found = run.environment
  about: Mapping[str, Any] = {
    "command": found["command"],
    "revision": found["revision"],
    "device": found["devices"][0],
    "versions": found["versions"],
    "steps": int(state.step),
    "seconds": round(run.seconds()),
    "settings": dataclasses.asdict(settings),
    "photographs": {photo.name: photo.sha256 for photo in photos},
  }
  photo.save_prior(
    run.folder / "photo_prior.json", state.average, settings.network, about
  )


def _start(settings: Settings) -> Saved:
  key = jax.random.fold_in(jax.random.key(settings.seed), 0)
  state = training.init(initial_params(settings.network, key))
  if settings.resume:
    saved = Checkpoints(pathlib.Path(settings.resume)).restore(state)
    return saved
  return Saved(state, float(settings.steps) if settings.steps else np.inf)


def _loop(
  saved: Saved,
  pool: Pool,
  mesh: Mesh,
  settings: Settings,
  run: record.Run,
  keep: Callable[[Saved], None],
  interrupt: Interrupt,
) -> Saved:
  """Steps until the last one or the signal."""
  state, total = saved
  number = int(state.step)
  key = jax.random.fold_in(jax.random.key(settings.seed), 2)
  watch = None  # step and second since which the speed is measured
  with Progress(0, label="train_prior") as tick:
    while number < total and not interrupt.asked:
      size = settings.sizes[number % len(settings.sizes)]
      state, info = training.step(
        state,
        pool,
        key,
        jnp.float32(total),
        size=size,
        count=settings.count(size),
        config=settings.network,
        dtype=settings.dtype,
        optim=settings.optim,
        batch=settings.batch,
        mesh=mesh,
      )
      number += 1
      if number % settings.report_every == 0 or number == total:
        _report(run, number, total, size, info)
        tick(f"step {number} of {total:.0f}, loss {float(info.loss):.4f}")
        if np.isinf(total):
          watch = watch or (number, time.monotonic())
          total = pace.planned(
            watch, number, minutes=settings.minutes, spent=run.seconds()
          )
      if number % settings.save_every == 0:
        keep(Saved(state, total))
  return Saved(state, total)


def _report(
  run: record.Run,
  number: int,
  total: float,
  size: int,
  info: training.StepInfo,
) -> None:
  row = {name: float(value) for name, value in info._asdict().items()}
  run.write(
    "training",
    {
      "step": number,
      "of": total,
      "seconds": round(run.seconds(), 2),
      "size": size,
      **row,
    },
  )
