"""Trains the photo prior: EDM's loss on photographs and dead leaves.

  python -m experiments.train_prior --config.photographs=DIR

Settings: `configs/train_prior.py`; photographs: `experiments.prior_sources`.
Writes the weights (`photo_prior.json` and `.safetensors`, the averaged ones),
checkpoints, tables and a report. SIGTERM saves and stops. However a run ended,
the same command with `--resume` goes on from its last checkpoint as if it had
not been stopped: on CPUs bit for bit, on GPUs to rounding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import photo_tiles
from experiments.data.dead_leaves import images
from experiments.data.dead_leaves.settings import LeafSettings
from experiments.data.photo_tiles import Photograph
from experiments.harness import prior_files, record, writing
from experiments.harness.settings import DTYPES, setting
from experiments.harness.training import loop, optimiser
from experiments.harness.training.loop import Loop, LoopSettings
from experiments.harness.training.optimiser import StepInfo, TrainState
from experiments.train_prior import report, training
from experiments.train_prior.batches import BatchSettings, Pool
from experiments.train_prior.optim import PriorOptim
from posterior_jax import priors
from posterior_jax.priors import UNetConfig, UNetPrior

NAME = "photo_prior"  # of the weights and their manifest
RANDOM = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(LoopSettings):
  """Settings of the training, besides those of its loop."""

  seed: int  # of everything that is drawn
  photographs: str  # a folder of pictures, or "" for the few installed ones
  # whose weights are the first, as of `prior_files.load`: "large", or a
  # manifest NAME.json with the settings' network; "random" draws them
  start: str
  sizes: tuple[int, ...]  # sides of the crops, one a step, in turn
  pixels: int  # of a batch
  # of the network's arithmetic
  dtype: str = setting(among=DTYPES)
  bits: int = setting(16, among=(8, 16))  # of a stored weight
  leaf_images: int = setting(at_least=1)  # how many dead leaves are drawn
  samples: int = setting(at_least=1)  # draws of each size at the end
  sample_steps: int = setting(at_least=1)  # of their ODE
  network: UNetConfig  # shape of the network
  optim: PriorOptim  # how the parameters move
  batch: BatchSettings  # what is in a batch
  leaves: LeafSettings  # the dead leaves' model

  def __post_init__(self) -> None:
    super().__post_init__()
    unit, tile = self.network.unit, photo_tiles.TILE
    for size in self.sizes:
      if size % unit or not 0 < size <= tile or self.pixels < size**2:
        raise ValueError(
          f"sizes must be divisible by {unit}, at most {tile} and have at most "
          f"{self.pixels} pixels; got {size}"
        )

  def size(self, number: int) -> int:
    """Side of the crops after so many steps."""
    return self.sizes[number % len(self.sizes)]

  def count(self, size: int) -> int:
    """Crops of a size in a batch."""
    devices = jax.device_count()
    return max(self.pixels // size**2 // devices, 1) * devices


class Task(NamedTuple):
  """The settings and what they name."""

  settings: Settings
  photographs: list[Photograph]
  started: UNetPrior[Any] | None  # of `start`, None of random weights


def prepare(settings: Settings) -> Task:
  """Reads the photographs, and the prior to start from.

  Raises:
    ValueError: if there is no photograph, one cannot be read, or the prior
      cannot or has another network.
  """
  started = None
  if settings.start != RANDOM:
    started = prior_files.load(settings.start, name="start")
    if started.config != settings.network:
      raise ValueError(
        f"network must be that of start, {started.config}; got "
        f"{settings.network}"
      )
  return Task(settings, photo_tiles.read(settings.photographs), started)


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the photographs, and of the files of the prior to start from."""
  found = {f"photograph {p.name}": p.sha256 for p in task.photographs}
  return _start_files(task.settings) | found


def _start_record(task: Task) -> dict[str, Any] | None:
  """What is known of the prior that a run started from."""
  if task.started is None:
    return None
  known = prior_files.about(task.settings.start, task.started)
  return {"files": _start_files(task.settings)} | known._asdict()


def _start_files(settings: Settings) -> dict[str, str]:
  start = settings.start
  return {} if start == RANDOM else prior_files.digests(start, name="start")


def train(task: Task, run: record.Run) -> None:
  """Trains, saves the weights, draws samples, writes the report."""
  settings, photos, _ = task
  mesh = Mesh(np.array(jax.devices()), ("data",))
  pool = jax.device_put(make_pool(photos, settings), NamedSharding(mesh, P()))
  # One key for the parameters, one for the dead leaves, one for the steps.
  keys = [jax.random.fold_in(jax.random.key(settings.seed), i) for i in (0, 2)]
  params = first_params(task, keys[0])

  def step(
    state: TrainState, number: int, total: jax.Array
  ) -> tuple[TrainState, StepInfo]:
    size = settings.size(number)
    return training.step(
      state,
      pool,
      keys[1],
      total,
      size=size,
      count=settings.count(size),
      config=settings.network,
      dtype=settings.dtype,
      optim=settings.optim,
      batch=settings.batch,
      mesh=mesh,
    )

  def row(number: int, info: StepInfo) -> dict[str, float]:
    found = {name: float(value) for name, value in info._asdict().items()}
    return {"size": settings.size(number - 1), **found}

  state = loop.train(
    loop.start(
      optimiser.init(params, settings.optim),
      settings,
      mesh,
      run.folder,
    ),
    step,
    Loop(
      "train_prior",
      settings,
      row,
      save=lambda state: save(state, task, run),
    ),
    run,
  )
  report.write(
    UNetPrior(state.average, settings.network),
    pool,
    run,
    count=settings.samples,
    sizes=tuple(dict.fromkeys(settings.sizes)),
    steps=settings.sample_steps,
    seed=settings.seed,
  )


def first_params(task: Task, key: jax.Array) -> dict[str, jax.Array]:
  """Those of the prior to start from, else random ones."""
  if task.started is None:
    return priors.initial_params(task.settings.network, key)
  return jax.tree.map(jnp.copy, task.started.params)  # the steps donate them


def make_pool(photos: list[Photograph], settings: Settings) -> Pool:
  """Tiles of the photographs and dead leaves made of them."""
  tiles = jnp.asarray(photo_tiles.tiles(photos))
  key = jax.random.fold_in(jax.random.key(settings.seed), 1)
  leaves = images.bank(
    key, tiles, count=settings.leaf_images, settings=settings.leaves
  )
  return Pool(tiles, leaves)


def save(state: TrainState, task: Task, run: record.Run) -> None:
  """Writes the averaged weights and their manifest into the run's folder."""
  settings, found = task.settings, run.environment
  about: Mapping[str, Any] = {
    "command": found["command"],
    "revision": found["revision"],
    "device": found["devices"][0],
    "devices": len(found["devices"]),
    "versions": found["versions"],
    "steps": int(state.step),
    "seconds": round(run.seconds()),
    "settings": dataclasses.asdict(settings),
    "start": _start_record(task),
    "photographs": {photo.name: photo.sha256 for photo in task.photographs},
  }
  with writing.beside(run.folder, f"{NAME}.safetensors", f"{NAME}.json") as to:
    priors.save_prior(
      to / f"{NAME}.json",
      state.average,
      settings.network,
      about,
      bits=settings.bits,
    )
