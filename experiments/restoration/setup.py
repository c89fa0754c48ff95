"""What restoration studies share: photographs, prior, noise; verified first."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.data import degradations, photographs
from experiments.data.degradations import Degradation
from experiments.harness import prior_files, writing
from experiments.harness.settings import DTYPES, Checked, setting
from posterior_jax import metrics
from posterior_jax.base import Denoiser
from posterior_jax.operators import frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetupSettings(Checked):
  """Settings that studies share."""

  seed: int  # of noise and samplers
  # names in `photographs.SHA256`
  photographs: tuple[str, ...] = setting(among=photographs.SHA256)
  folder: str  # more pictures, "" for none
  # side of all of them; 256 is that of the frozen masks
  size: int = setting(at_least=64, at_most=1024, multiple_of=8)
  # of the measurements, pixels in [-1, 1]
  noise_std: float = setting(above=0)
  # a file of `prior_files.load`, "" for the small photo prior, or "gaussian"
  # for one with the spectrum of other photographs
  prior: str
  # of a network's arithmetic
  dtype: str = setting(among=DTYPES)
  lpips: str  # a file of `metrics.load_lpips`, "" to do without that distance

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.folder:
      photographs.files_in(self.folder)
    if not self.photographs and not self.folder:
      raise ValueError("photographs must name one, or folder must be given")
    if self.lpips and not pathlib.Path(self.lpips).is_file():
      raise ValueError(f"lpips must name a file, {self.lpips!r} is none")


class Setup(NamedTuple):
  """What all programs of a study share."""

  names: tuple[str, ...]  # of the photographs
  truth: jax.Array  # they, [N, H, W, 3]
  denoise: Denoiser  # of the prior
  spectrum: jax.Array  # the prior's, [H, W]
  noise_std: float  # of the measurements
  seed: int  # of noise and samplers
  # the distance with weights of one's own, if given
  lpips: metrics.LPIPS | None = None

  def on(self, device: jax.Device) -> "Setup":
    """The same with its arrays on a device."""
    names = ("truth", "denoise", "spectrum", "lpips")
    arrays = {name: getattr(self, name) for name in names}
    return self._replace(**jax.device_put(arrays, device))


def build(settings: SetupSettings) -> Setup:
  """Loads everything, after the frozen data have passed their hashes.

  Raises:
    ValueError: a photograph or the frozen kernels are not those of the
      reports, a picture is too small, or the prior or the weights of LPIPS
      cannot be read.
  """
  photographs.verify(settings.photographs)
  frozen.random_mask()  # verified on loading, with kernels and corner
  size = settings.size
  images = {name: photographs.load(name, size) for name in settings.photographs}
  if settings.folder:
    images |= photographs.from_folder(settings.folder, size)
  known = degradations.build_prior(size)
  denoise: Denoiser = known.denoise
  if settings.prior != prior_files.GAUSSIAN:
    denoise = prior_files.load(settings.prior, dtype=settings.dtype).denoise
  return Setup(
    tuple(images),
    jnp.stack([jnp.asarray(image) for image in images.values()]),
    denoise,
    known.spectrum,
    settings.noise_std,
    settings.seed,
    metrics.load_lpips(settings.lpips) if settings.lpips else None,
  )


class Task(NamedTuple):
  """What a study is called with: its settings and what they name."""

  settings: Any  # its own, with a `setup`
  shared: Setup


def prepare(settings: Any) -> Task:
  """Reads photographs and prior of a study; raises what `build` does."""
  return Task(settings, build(settings.setup))


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of every file that `build` reads, but those it verifies itself."""
  settings = task.settings.setup
  folder = photographs.files_in(settings.folder) if settings.folder else ()
  lpips = [settings.lpips] if settings.lpips else ()
  found = prior_files.digests(settings.prior)
  for name, files in (("picture", folder), ("lpips", lpips)):
    found |= writing.digests(name, files)
  return found


def degradations_named(names: tuple[str, ...]) -> tuple[Degradation, ...]:
  """Degradations by their names, () for all.

  Raises:
    ValueError: for an unknown name.
  """
  by_name = {
    str(degradation): degradation for degradation in degradations.FROZEN
  }
  unknown = [name for name in names if name not in by_name]
  if unknown:
    raise ValueError(
      f"tasks must be among {'; '.join(by_name)}, got {unknown[0]!r}"
    )
  return tuple(by_name[name] for name in names or by_name)
