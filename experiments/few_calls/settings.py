"""What is compared, and the pictures and the prior that it names."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments import prior_sources
from experiments.data import degradations, photographs
from experiments.few_calls import variants
from experiments.few_calls.methods import METHODS
from experiments.harness import prior_files, writing
from experiments.harness.settings import Checked, setting
from experiments.restoration import setup
from posterior_jax.base import Denoiser

# Of `prior_debian.json`: what was photographed as the Kodak set was, and is as
# detailed. Every third by name is tuned on.
ACTIVITIES = (
  "explore_farm_animals",
  "explore_monuments",
  "explore_world_animals",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison.

  Attributes:
    seed: of noise and samplers.
    folder: of the pictures.
    pictures: how many, the first by name.
    tuned_on: folder that `prior_sources` filled, whose photographs of animals
      and buildings (`tuning_files`) are tuned on; "" for the smooth ones of
      `photographs.TUNING`, which need no download.
    size: side of the crops.
    noise_std: of the measurements.
    prior: a file of `prior_files.load`, "large", or "" for the small
      shipped one.
    tasks: of `degradations.FROZEN`.
    calls: network evaluations of a run, VJPs counted; a method whose level
      takes more is left out there.
    methods: of METHODS, () for all.
    crops: of every photograph that is tuned on; one of `tuned_on`.
    most: points that a search tries.
    workers: programs compiled at a time.
  """

  seed: int
  folder: str
  pictures: int = setting(at_least=2)
  tuned_on: str
  size: int = setting(at_least=32, multiple_of=8)
  noise_std: float = setting(above=0)
  prior: str
  tasks: tuple[str, ...] = setting(some=True)
  calls: tuple[int, ...] = setting(at_least=2, at_most=variants.MOST, some=True)
  methods: tuple[str, ...] = setting(among=METHODS)
  crops: int = setting(at_least=1)
  most: int = setting(at_least=1)
  workers: int = setting(at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    setup.degradations_named(self.tasks)
    for method in self.methods:
      each = METHODS[method].each
      if each > max(self.calls):
        raise ValueError(
          f"calls must reach {each}, which a level of {method} takes, got "
          f"{self.calls}"
        )


class Task(NamedTuple):
  """The settings and what they name."""

  settings: Settings
  denoise: Denoiser
  spectrum: jax.Array  # [size, size]
  truths: dict[str, np.ndarray]  # by name, [size, size, 3] in [-1, 1]
  tuning: np.ndarray  # [N, size, size, 3]


def files_of(settings: Settings) -> list[pathlib.Path]:
  """The pictures; ValueError where there are none."""
  return photographs.files_in(settings.folder)[: settings.pictures]


def tuning_files(settings: Settings) -> list[pathlib.Path]:
  """What is tuned on: neither the prior learned from it nor is it reported."""
  if not settings.tuned_on:
    return [photographs.path(name) for name in photographs.TUNING]
  names = sorted(
    name
    for name in prior_sources.names()
    if any(f"/{activity}/" in name for activity in ACTIVITIES)
  )
  files = [pathlib.Path(settings.tuned_on, name) for name in names[::3]]
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise ValueError(
      f"tuned_on {settings.tuned_on!r} must be a folder that "
      f"`experiments.prior_sources` filled, it has no {missing[0]}"
    )
  return files


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of all pictures and of a prior of one's own."""
  settings = task.settings
  return (
    prior_files.digests(settings.prior)
    | writing.digests("picture", files_of(settings))
    | writing.digests("tuned on", tuning_files(settings))
  )


def prepare(settings: Settings) -> Task:
  """Reads pictures and prior; ValueError where they are not there."""
  files = files_of(settings)
  crops = 1 if settings.tuned_on else settings.crops
  return Task(
    settings,
    prior_files.load(settings.prior, dtype="float32").denoise,
    degradations.build_prior(settings.size).spectrum,
    {file.name: photographs.crops(file, settings.size, 1)[0] for file in files},
    np.concatenate(
      [
        photographs.crops(file, settings.size, crops)
        for file in tuning_files(settings)
      ]
    ),
  )
