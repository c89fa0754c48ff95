"""What is tuned alike, and the pictures and the prior that it names."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import degradations, photographs
from experiments.equal_tuning.known import Known, present
from experiments.equal_tuning.methods import METHODS
from experiments.harness import prior_files, writing
from experiments.harness.settings import Checked, setting
from posterior_jax import metrics
from posterior_jax.base import Denoiser
from posterior_jax.baselines import TASKS
from posterior_jax.operators import frozen

# The pictures that the committed rows were tuned on, of gcompris-qt-data as
# `python -m experiments.prior_sources` fetches it. The small shipped prior has
# seen none of them, the large one all: a search under that one is on pictures
# it has learned.
TUNED_ON = (
  "explore_world_animals/resource/animals/bison.webp",
  "explore_farm_animals/resource/animals/cat.webp",
  "explore_farm_animals/resource/animals/chicken.webp",
  "explore_monuments/resource/wonders/greatWallofChina.webp",
  "explore_world_animals/resource/animals/jaguar.webp",
  "explore_monuments/resource/india/mysorePalace.webp",
  "explore_monuments/resource/france/pontduGard.webp",
  "explore_monuments/resource/france/reimsCathedral.webp",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison.

  Attributes:
    seed: of noise and samplers.
    folder: of the pictures that are reported on, which are cropped as they are.
    photographs: a folder of those that are tuned on; of the committed rows
      TUNED_ON.
    side: that their middle squares are averaged down to before they are
      cropped.
    pictures: how many are reported on at most, the first by name.
    size: side of the crops.
    noise_std: of the measurements.
    prior: a file of `prior_files.load`, "large", or "" for the small
      shipped one.
    dtype: of the network's arithmetic.
    lpips: a file of `metrics.load_lpips`.
    tasks: of `baselines.TASKS`.
    kernels: of motion blur, which is tuned on the medium one, those that are
      reported on.
    methods: of METHODS, () for all.
    evaluations: of the network, each a budget of its own; from the second one
      on a search begins where that of the budget before it ended.
    rounds: of every budget's search, those of `known` among them.
    tuned_on: pictures of every budget's search, the first by name.
    draws: samples of every picture that is reported on, whose scores are
      averaged, a number for each of the first budgets, 1 for the others.
    chains: whose mean is reported, by the winner for either score, a number for
      each of the first budgets: at chains times its evaluations, which may be a
      budget too; 1 for no mean.
    slots: images that a program restores at once; a round has a point for every
      `tuned_on` of them.
    known: folders of `rows.csv` and `trials.csv`, as those beside the code,
      whose searches are gone on with and whose rows stand where the winner is
      the same; () begins anew.
    again: whether the winners of `known` restore the pictures anew, under the
      prior they were found under or another one, and nothing is tried; what
      `known` has of another one is not done again.
    cells: a folder for what was begun and for winners, which processes that
      share their work name alike; "" for the run's own.
    workers: programs compiled at a time.
  """

  seed: int
  folder: str
  photographs: str
  side: int = setting(at_least=32)
  pictures: int = setting(at_least=2)
  size: int = setting(at_least=32, multiple_of=8)
  noise_std: float = setting(above=0)
  prior: str
  dtype: str
  lpips: str
  tasks: tuple[str, ...] = setting(among=TASKS, distinct=True)
  kernels: tuple[str, ...] = setting(
    among=frozen.ALL_PATHS, some=True, distinct=True
  )
  methods: tuple[str, ...] = setting(among=METHODS, distinct=True)
  evaluations: tuple[int, ...] = setting(at_least=10, some=True, distinct=True)
  rounds: tuple[int, ...] = setting(at_least=0)
  tuned_on: tuple[int, ...] = setting(at_least=1)
  draws: tuple[int, ...] = setting(at_least=1)
  chains: tuple[int, ...] = setting(at_least=1)
  slots: int = setting(at_least=1)
  known: tuple[str, ...]
  again: bool
  cells: str
  workers: int = setting(at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.side < self.size:
      raise ValueError(
        f"side must be at least size {self.size}, got {self.side}"
      )
    count = len(self.evaluations)
    for name in ("rounds", "tuned_on"):
      own = getattr(self, name)
      if len(own) != count:
        raise ValueError(
          f"{name} must have a number for each of evaluations, got {own} for "
          f"{self.evaluations}"
        )
    if self.again and not self.known:
      raise ValueError("again must be False without known, got True")
    if self.again and any(self.rounds):
      raise ValueError(
        f"rounds must be 0 with again, which tries nothing, got {self.rounds}"
      )
    if not self.known and not all(self.rounds):
      raise ValueError(
        f"rounds must be at least 1 without known, got {self.rounds}"
      )
    self._check_draws_and_chains()

  def _check_draws_and_chains(self) -> None:
    for name in ("draws", "chains"):
      own = getattr(self, name)
      if len(own) > len(self.evaluations):
        raise ValueError(
          f"{name} must have at most a number for each of evaluations, got "
          f"{own} for {self.evaluations}"
        )
    pairs = zip(self.evaluations, self.chains, strict=False)
    whole = [calls * chains for calls, chains in pairs if chains > 1]
    if len({*whole}) < len(whole):
      # Their means would be rows of one budget.
      raise ValueError(
        "chains times evaluations must differ from each other, got "
        f"{', '.join(map(str, whole))}"
      )


class Given(NamedTuple):
  """The settings and what they name."""

  settings: Settings
  denoise: Denoiser
  spectrum: jax.Array  # [size, size]
  lpips: metrics.LPIPS | None
  names: tuple[str, ...]  # of the pictures that are reported on
  truth: np.ndarray  # they, [N, size, size, 3] in [-1, 1]
  tuning: np.ndarray  # [M, size, size, 3]
  prior: prior_files.About  # whose rows these are
  known: Known = Known()


def prepare(settings: Settings) -> Given:
  """Reads pictures, prior and LPIPS.

  Raises:
    ValueError: they are not there, are fewer than `tuned_on`, or `known` is of
      another prior.
  """
  size = settings.size
  files = photographs.files_in(settings.folder)[: settings.pictures]
  whole = photographs.from_folder(
    settings.photographs, settings.side, named="photographs"
  )
  if max(settings.tuned_on) > len(whole):
    raise ValueError(
      f"tuned_on must be at most {len(whole)}, the pictures in photographs, "
      f"got {settings.tuned_on}"
    )
  gaussian = degradations.build_prior(size)
  denoise: Denoiser = gaussian.denoise
  network = None
  if settings.prior != prior_files.GAUSSIAN:
    network = prior_files.load(settings.prior, dtype=settings.dtype)
    denoise = network.denoise
  about = prior_files.about(settings.prior, network)
  known = Known(settings.known)
  if not settings.again:
    known.check_prior(about)
  lpips = metrics.load_lpips(settings.lpips) if settings.lpips else None
  return Given(
    settings,
    denoise,
    gaussian.spectrum,
    lpips,
    tuple(file.stem for file in files),
    np.stack([photographs.crops(file, size, 1)[0] for file in files]),
    np.stack([middle(image, size) for image in whole.values()]),
    about,
    known,
  )


def inputs(given: Given) -> dict[str, str]:
  """SHA-256 of all pictures, of a prior of one's own and of LPIPS' weights."""
  settings = given.settings
  pictures = photographs.files_in(settings.folder)[: settings.pictures]
  tuned_on = photographs.files_in(settings.photographs)
  return (
    prior_files.digests(settings.prior)
    | writing.digests("picture", pictures)
    | writing.digests("tuned on", tuned_on)
    | writing.digests("lpips", [settings.lpips] if settings.lpips else [])
    | writing.digests("known", [p for f in settings.known for p in present(f)])
  )


def middle(image: np.ndarray, size: int) -> np.ndarray:
  """The middle square of an image."""
  top, left = ((extent - size) // 2 for extent in image.shape[:2])
  return image[top : top + size, left : left + size]
