"""What restoration studies share: photographs, prior, noise; verified first."""

import dataclasses
import pathlib

import jax.numpy as jnp

from experiments.data import degradations, photographs
from experiments.data.degradations import CASES, Case
from experiments.harness import prior_files
from experiments.restoration.runs import Setup
from posterior_jax import metrics
from posterior_jax.base import Denoiser
from posterior_jax.operators import frozen
from posterior_jax.priors import GaussianPrior


@dataclasses.dataclass(frozen=True)
class SetupSettings:
  """Settings that studies share.

  Attributes:
    seed: of noise and samplers.
    photographs: names in `photographs.SHA256`.
    folder: more pictures, "" for none.
    size: side of all of them, 64 to 1024 and divisible by 8; 256 is that of
      the frozen masks.
    noise_std: of the measurements, pixels in [-1, 1].
    prior: a file of `prior_files.load`, "" for the shipped photo prior, or
      "gaussian" for the exactly known one of the quickstart.
    dtype: of a network's arithmetic, float32 or bfloat16.
    lpips: a file of `metrics.load_lpips`, "" to do without that distance.
  """

  seed: int
  photographs: tuple[str, ...]
  folder: str
  size: int
  noise_std: float
  prior: str
  dtype: str
  lpips: str

  def __post_init__(self) -> None:
    if set(self.photographs) - set(photographs.SHA256):
      raise ValueError(
        f"photographs must be among {', '.join(photographs.SHA256)}; got "
        f"{', '.join(self.photographs)}"
      )
    if self.folder:
      photographs.files_in(self.folder)
    if not self.photographs and not self.folder:
      raise ValueError("photographs must name one, or folder must be given")
    if not 64 <= self.size <= 1024 or self.size % 8:
      raise ValueError(
        f"size must lie in [64, 1024] and be divisible by 8, got {self.size}"
      )
    if not 0 < self.noise_std < float("inf"):
      raise ValueError(f"noise_std must be positive, got {self.noise_std}")
    if self.lpips and not pathlib.Path(self.lpips).is_file():
      raise ValueError(f"lpips must name a file, {self.lpips!r} is none")


def build(settings: SetupSettings) -> Setup:
  """Loads everything, after the frozen data have passed their hashes.

  Args:
    settings: what to load.

  Returns:
    What programs share.

  Raises:
    ValueError: a photograph or the frozen kernels are not those of the
      reports, a picture is too small, or the prior or the weights of LPIPS
      cannot be read.
  """
  photographs.verify(settings.photographs)
  frozen.random_mask()  # verified on loading, with kernels and corner
  images = {
    name: photographs.load(name, settings.size) for name in settings.photographs
  }
  if settings.folder:
    images |= photographs.from_folder(settings.folder, settings.size)
  known = degradations.build_prior(settings.size)
  return Setup(
    tuple(images),
    jnp.stack([jnp.asarray(image) for image in images.values()]),
    _denoiser(settings, known),
    known.spectrum,
    settings.noise_std,
    settings.seed,
    metrics.load_lpips(settings.lpips) if settings.lpips else None,
  )


def cases_named(names: tuple[str, ...]) -> tuple[Case, ...]:
  """Cases by their names, () for all.

  Raises:
    ValueError: for an unknown name.
  """
  by_name = {str(case): case for case in CASES}
  unknown = [name for name in names if name not in by_name]
  if unknown:
    raise ValueError(
      f"tasks must be among {'; '.join(by_name)}, got {unknown[0]!r}"
    )
  return tuple(by_name[name] for name in names or by_name)


def _denoiser(settings: SetupSettings, known: GaussianPrior) -> Denoiser:
  if settings.prior == prior_files.GAUSSIAN:
    return known.denoise
  return prior_files.load(settings.prior, dtype=settings.dtype).denoise
