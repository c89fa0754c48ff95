"""What is measured: every method on every kind of problem."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from experiments.calibration import problems
from experiments.calibration.problems import (
  MIXTURE_SHAPES,
  TASKS,
  Gaussian,
  Mixture,
)
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects import samplers
from experiments.harness.subjects.samplers import CALIBRATED
from posterior_jax import NFCConfig
from posterior_jax.nfc_sampler import Jacobian

GAUSSIAN, MIXTURE = "gaussian", "mixture"
COUNTS = "problems and workers must be at least 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the study."""

  seed: int  # of problems and samplers
  # keys of `samplers.METHODS`, () for all
  methods: tuple[str, ...] = setting(among=samplers.METHODS)
  settings: tuple[str, ...]  # of the methods, () for all they have
  # denoiser calls of tuned and calibrated settings, each a budget of its own;
  # published settings run as they are
  evaluations: tuple[int, ...] = setting(
    at_least=1, some=True, words="evaluations must hold positive numbers"
  )
  samples: int = setting(at_least=20)  # of every posterior
  directions: int  # of the sliced Wasserstein distance
  # of the Gaussian prior's images
  tasks: tuple[str, ...] = setting(among=TASKS)
  size: int = setting(at_least=12, multiple_of=4)  # their side
  # of the spectrum that NFC is given
  factors: tuple[float, ...] = setting(
    above=0, some=True, words="factors must hold positive numbers"
  )
  dimensions: tuple[tuple[int, int], ...]  # (D, m) of the mixtures
  problems: int = setting(at_least=1, words=COUNTS)  # random mixtures of each
  # programs compiled at a time
  workers: int = setting(at_least=1, words=COUNTS)

  def __post_init__(self) -> None:
    super().__post_init__()
    for size, _ in self.dimensions:
      if size not in MIXTURE_SHAPES:
        known = ", ".join(map(str, MIXTURE_SHAPES))
        raise ValueError(f"dimensions must be among {known}; got {size}")


class Who(NamedTuple):
  """Who samples."""

  method: str  # a key of `samplers.METHODS`
  setting: str  # of the method
  factor: float  # of the spectrum that the method is given, 1 where it is right
  budget: int  # denoiser calls asked for; 0: as the setting does


class Trial(NamedTuple):
  """One method on one kind of problem."""

  table: str  # GAUSSIAN or MIXTURE
  problem: dict[str, Any]  # its columns of every row
  who: Who  # the method
  make: Callable[[], Sequence[Gaussian] | Sequence[Mixture]]  # the problems
  changes: tuple[tuple[str, Any], ...] = ()  # of the method's settings

  def __str__(self) -> str:
    return " ".join(map(str, self.about().values()))

  def about(self) -> dict[str, Any]:
    """The first columns of its rows, which tell them from others."""
    return self.problem | self.who._asdict()


def trials(settings: Settings) -> Iterator[Trial]:
  """Everything that is measured, method by method, Gaussian problems first."""

  # Made once for all methods, and only where one needs them.
  @functools.cache
  def gaussian(task: str) -> list[Gaussian]:
    return [problems.gaussian(task, settings.size, settings.seed)]

  @functools.cache
  def mixture(size: int, measured: int) -> list[Mixture]:
    return [
      problems.mixture(size, measured, number, settings.seed)
      for number in range(settings.problems)
    ]

  for who in _everyone(settings, settings.factors):
    for task in settings.tasks:
      make = functools.partial(gaussian, task)
      yield Trial(GAUSSIAN, {"task": task}, who, make)
  for who in _everyone(settings, (1.0,)):
    for size, measured in settings.dimensions:
      about = {"size": size, "measured": measured}
      modes = functools.partial(mixture, size, measured)
      yield Trial(MIXTURE, about, who, modes, _without_spectrum(who))


def _without_spectrum(who: Who) -> tuple[tuple[str, Any], ...]:
  """What makes of `calibrated()` the same by the Jacobian: for mixtures."""
  if (who.method, who.setting) != ("NFC", CALIBRATED):
    return ()
  plain, own = NFCConfig.calibrated(), NFCConfig.calibrated(width=Jacobian())
  changes = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
  return tuple(
    (name, value)
    for name, value in changes.items()
    if value != getattr(plain, name)
  )


def _everyone(settings: Settings, factors: tuple[float, ...]) -> Iterator[Who]:
  """Calibrated settings are given every factor of the spectrum."""
  for method, name, budget in samplers.variants(
    settings.methods, settings.settings, settings.evaluations
  ):
    for factor in factors if name == CALIBRATED else (1.0,):
      yield Who(method, name, factor, budget)
