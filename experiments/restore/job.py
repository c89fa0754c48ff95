"""What is to be restored, read and checked before anything is compiled."""

import dataclasses
from typing import Any, NamedTuple

import jax

import posterior_jax
from experiments.data import degradations
from experiments.harness import prior_files, samplers
from experiments.harness.samplers import CALIBRATED, TUNED
from experiments.harness.settings import Checked, setting
from experiments.restore import input
from experiments.restore.input import FACTOR, Given
from posterior_jax.base import Denoiser
from posterior_jax.nfc_sampler import Probed, Spectrum

OVERLAP = 64
TOLERANCE = 1e-2  # relative residual of a sample's linear solves
FEWEST = 20  # levels of NFC's one image, whose solves go on over the levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is restored, and how.

  Attributes:
    image: file of the picture.
    task: how it was degraded.
    kernel: of motion blur, see `input.read_kernel`.
    mask: of inpainting, see `input.read_mask`.
    std: of Gaussian blur, in pixels.
    noise_std: of the measurement, pixels in [-1, 1]; n levels of 255 are
      n / 127.5.
    degrade: whether the picture is clean, and to be degraded first.
    method: of `samplers.METHODS`, in its tuned setting.
    levels: denoiser calls that an image may take; with NFC at least 20, and up
      to four VJPs on top of each.
    samples: posterior samples, with NFC maybe none; its by its calibrated
      setting.
    sample_levels: denoiser calls of each of NFC's samples.
    tie: width of NFC's samples: "spectrum", that of photographs, or "probed",
      that put right by one product a level with the denoiser's Jacobian.
    prior: see `prior_files.load`; or "gaussian".
    dtype: of a network's arithmetic.
    tile: a picture with a longer side is denoised in tiles of so many pixels.
    seed: of the samples, and of the noise of a degradation.
  """

  image: str
  task: str = setting(among=input.KINDS)
  kernel: str
  mask: str
  std: float = setting(at_least=0.1, at_most=50)
  noise_std: float = setting(above=0, at_most=2)
  degrade: bool
  method: str = setting(among=samplers.METHODS)
  levels: int = setting(at_least=1, at_most=10_000)
  samples: int = setting(at_least=0, at_most=64)
  sample_levels: int = setting(at_least=1, at_most=10_000)
  tie: str = setting(among=("spectrum", "probed"))
  prior: str
  dtype: str = setting(among=("float32", "bfloat16"))
  tile: int = setting(at_least=2 * OVERLAP, at_most=input.MOST)
  seed: int = setting(at_least=0, at_most=2**31 - 1)

  def __post_init__(self) -> None:
    if not self.image:
      raise ValueError("image must name a picture, as --config.image=FILE")
    super().__post_init__()
    if self.method == "NFC" and self.levels < FEWEST:
      raise ValueError(
        f"levels must lie in [{FEWEST}, 10000] with NFC, got {self.levels}"
      )
    if self.method != "NFC" and not self.samples:
      raise ValueError(f"samples must lie in [1, 64] with {self.method}, got 0")
    for name, tasks in (("kernel", input.BLURRED), ("mask", input.MASKED)):
      if self.task in tasks and not getattr(self, name):
        raise ValueError(f"{name} must name a file for {self.task}")
      if self.task not in tasks and getattr(self, name):
        raise ValueError(f"{name} must be left out: {self.task} reads none")


class Job(NamedTuple):
  """All that a run needs."""

  settings: Settings  # as given
  given: Given  # the picture
  denoise: Denoiser  # of the prior, on the picture's size
  best: posterior_jax.Sampler  # the sampler of the one image
  drawn: posterior_jax.Sampler  # the sampler of posterior samples


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
  denoise = _denoiser(settings, known.denoise, (height, width))

  def sampler(name: str, levels: int, **changes: Any) -> posterior_jax.Sampler:
    config = samplers.config(
      settings.method, name, evaluations=levels, **changes
    )
    found = samplers.build(settings.method, config, spectrum=known.spectrum)
    jax.eval_shape(
      lambda key: posterior_jax.run(found, denoise, given.coloured(), key)[0],
      jax.random.key(0),
    )
    return found

  best = drawn = sampler(TUNED, settings.levels)
  if settings.method == "NFC":
    # Solves to 1e-6 would take ten times as long as the network does.
    tie = Probed if settings.tie == "probed" else Spectrum
    changes = {"inner.tolerance": TOLERANCE, "width": tie(inflation=1.5)}
    drawn = sampler(CALIBRATED, settings.sample_levels, **changes)
  return Job(settings, given, denoise, best, drawn)


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
