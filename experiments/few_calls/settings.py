"""What is compared, and the pictures and the prior that it names."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import degradations, photographs
from experiments.few_calls import variants
from experiments.few_calls.methods import METHODS
from experiments.harness import prior_files
from experiments.harness.settings import Checked, setting
from experiments.restoration import setup
from posterior_jax.base import Denoiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison.

  Attributes:
    seed: of noise and samplers.
    folder: of the pictures.
    pictures: how many, the first by name.
    size: side of the crops.
    noise_std: of the measurements.
    prior: a file of `prior_files.load`, "" for the shipped one.
    tasks: of `degradations.FROZEN`.
    calls: network evaluations of a run, VJPs counted; a method whose level
      takes more is left out there.
    methods: of METHODS, () for all.
    crops: of every photograph that is tuned on.
    most: points that a search tries.
    workers: programs compiled at a time.
  """

  seed: int
  folder: str
  pictures: int = setting(at_least=2)
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


def prepare(settings: Settings) -> Task:
  """Reads pictures and prior; ValueError where they are not there."""
  files = photographs.files_in(settings.folder)[: settings.pictures]
  return Task(
    settings,
    prior_files.load(settings.prior, dtype="float32").denoise,
    degradations.build_prior(settings.size).spectrum,
    {file.name: photographs.crops(file, settings.size, 1)[0] for file in files},
    np.concatenate(
      [
        photographs.crops(photographs.path(name), settings.size, settings.crops)
        for name in photographs.TUNING
      ]
    ),
  )
