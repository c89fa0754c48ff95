"""What is to be restored, read and checked before anything is compiled."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

import posterior_jax
from experiments.data import degradations
from experiments.harness import prior_files, samplers
from experiments.harness.samplers import CALIBRATED, TUNED
from experiments.harness.settings import Checked, setting
from experiments.restore import (
  image_settings,
  input,
  kernel_file,
  noise,
  picture_file,
)
from experiments.restore.heartbeat import Heartbeat
from experiments.restore.input import Given, Picture
from posterior_jax import uncertain
from posterior_jax.base import Denoiser
from posterior_jax.nfc_sampler import Probed, Spectrum
from posterior_jax.operators.scene import Correlation

OVERLAP = 64
ASSUMED = 0.05  # noise of a clean picture that is to be degraded
TOLERANCE = 1e-2  # relative residual of a sample's linear solves
FEWEST = 20  # levels of NFC's one image, whose solves go on over the levels
TURN = 2.5  # degrees between the kernels of a family, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is restored, and how.

  Attributes:
    image: file of the picture, or a folder of some that were degraded alike.
    task: how it was degraded.
    kernel: of motion blur, see `kernel_file.read`.
    kernel_flip: whether to turn the kernel by 180 degrees: blurs are
      correlations here, and many kernels are meant to be convolved.
    kernel_degrees: how far the kernel may be turned to either side; above 0 it
      is drawn with the picture (`posterior_jax.uncertain`).
    mask: of inpainting, see `input.mask_of`.
    std: of Gaussian blur, in pixels.
    factor: of super-resolution.
    operator: file of a custom operator, see `input.load_operator`.
    boundary: of blur and super-resolution: "valid", the scene goes on beyond
      the picture, as it does for a camera, or "reflect", it is mirrored.
    noise_std: of the measurement, pixels in [-1, 1]; n levels of 255 are
      n / 127.5. None: estimated from the picture, 0.05 for a clean one; 0: what
      rounding to the file's levels leaves.
    degrade: whether the picture is clean, and to be degraded first.
    method: of `samplers.METHODS`, in its tuned setting.
    levels: denoiser calls that an image may take; with NFC at least 20, and up
      to four VJPs on top of each, more where there is little noise. For a blur
      of little noise NFC takes at most 30, and 40 with kernel_degrees, without
      VJPs (`image_settings`).
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
  kernel_flip: bool
  kernel_degrees: float = setting(at_least=0, at_most=90)
  mask: str
  std: float = setting(at_least=0.1, at_most=50)
  factor: int = setting(at_least=2, at_most=16)
  operator: str
  boundary: str = setting(among=("valid", "reflect"))
  noise_std: float | None
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
    if self.noise_std is not None and not 0 <= self.noise_std <= 2:
      raise ValueError(f"noise_std must lie in [0, 2], got {self.noise_std}")
    if self.method == "NFC" and self.levels < FEWEST:
      raise ValueError(
        f"levels must lie in [{FEWEST}, 10000] with NFC, got {self.levels}"
      )
    if self.method != "NFC" and not self.samples:
      raise ValueError(f"samples must lie in [1, 64] with {self.method}, got 0")
    for name, tasks in (
      ("kernel", input.BLURRED),
      ("operator", (input.CUSTOM,)),
      ("mask", input.MASKED),
    ):
      needed = self.task in tasks and name != "mask"  # its image may have holes
      if needed and not getattr(self, name):
        raise ValueError(f"{name} must name a file for {self.task}")
      if self.task not in tasks and getattr(self, name):
        raise ValueError(f"{name} must be left out: {self.task} reads none")
    if self.kernel_degrees and self.task not in input.BLURRED:
      raise ValueError(f"kernel_degrees must be 0: {self.task} reads no kernel")


class Job(NamedTuple):
  """All that a run needs; `best` and `drawn` may be one and the same."""

  settings: Settings  # as given, noise_std as it was found
  picture: Picture  # as it was read
  given: Given  # what is restored
  denoise: Denoiser  # of the prior, on the picture's size
  best: posterior_jax.Sampler  # the sampler of the one image
  drawn: posterior_jax.Sampler  # the sampler of posterior samples
  heartbeat: Heartbeat  # of the tiles of a large picture
  family: uncertain.Kernels | None = None  # of a kernel that is not quite known

  def evaluations(self, sampler: posterior_jax.Sampler) -> float:
    """Of the network in a step of one of the two, as far as is known before."""
    more = self.family is not None  # a call that weighs the kernels
    if self.settings.method != "NFC":
      return self.settings.levels / sampler.num_steps + more
    if sampler is self.drawn:
      return 1 + (self.settings.tie == "probed") + more
    return image_settings.evaluations(self.given.coloured()) + more

  def turned(self, degrees: float) -> "Job":
    """The same with the kernel of its family that is turned so far."""
    assert self.family is not None  # nothing else is turned
    nearest = int(abs(self.family.degrees - degrees).argmin())
    operator = self.given.observation.operator
    assert isinstance(operator, Correlation)  # as every blur is
    operator = uncertain.with_kernel(operator, self.family.values[nearest])
    observation = dataclasses.replace(self.given.observation, operator=operator)
    return self._replace(given=self.given._replace(observation=observation))


def check(settings: Settings) -> None:
  """Reads what any picture would need: kernel, mask, operator and prior.

  Raises:
    ValueError: as `prepare`, where it is not the picture's fault.
  """
  _kernels(settings)
  if settings.mask:
    picture_file.read("mask", settings.mask)
  if settings.operator:
    input.load_operator(settings.operator)
  _check_noise(settings)
  if settings.prior != prior_files.GAUSSIAN:
    prior_files.load(settings.prior)


def prepare(settings: Settings) -> Job:
  """Reads picture, mask, kernel and prior; nothing is compiled.

  Raises:
    ValueError: one of them is missing, unreadable or does not fit, or the
      method cannot take the task.
  """
  picture = _read_picture(settings)
  settings, given, family = _observed(settings, picture)
  height, width, _ = given.observation.operator.image_shape
  known = degradations.build_prior(height, width)
  heartbeat = Heartbeat()
  denoise = _denoiser(settings, known.denoise, (height, width), heartbeat)

  def sampler(config: Any) -> posterior_jax.Sampler:
    found = samplers.build(settings.method, config, spectrum=known.spectrum)
    if family is not None:
      grid = given.observation.operator.measurement_shape[:2]
      found = uncertain.uncertain(
        found, family, spectrum=degradations.build_prior(*grid).spectrum
      )
    jax.eval_shape(
      lambda key: posterior_jax.run(found, denoise, given.coloured(), key)[0],
      jax.random.key(0),
    )
    return found

  if settings.method == "NFC":
    best = sampler(
      image_settings.config(
        given.coloured(), settings.levels, kernel_known=family is None
      )
    )
    # Solves to 1e-6 would take ten times as long as the network does.
    tie = Probed if settings.tie == "probed" else Spectrum
    changes: dict[str, Any] = {
      "inner.tolerance": TOLERANCE,
      "width": tie(inflation=1.5),
    }
    drawn = sampler(
      samplers.config(
        "NFC", CALIBRATED, evaluations=settings.sample_levels, **changes
      )
    )
  else:
    best = drawn = sampler(
      samplers.config(settings.method, TUNED, evaluations=settings.levels)
    )
  return Job(settings, picture, given, denoise, best, drawn, heartbeat, family)


def _observed(
  settings: Settings, picture: Picture
) -> tuple[Settings, Given, uncertain.Kernels | None]:
  """The settings with the noise that was found, observation and kernels."""
  mask = _mask(settings, picture)
  kernel, family = _kernels(settings)
  how = input.degradation(
    settings.task,
    kernel=kernel,
    family=family,
    mask=mask,
    std=settings.std,
    factor=settings.factor,
    boundary=settings.boundary,
    operator=settings.operator,
  )

  def observe(noise_std: float) -> Given:
    return input.observe(
      picture.pixels,
      how.build,
      enlarge=how.enlarge,
      noise_std=noise_std,
      degrade=settings.degrade,
      seed=settings.seed,
      margin=how.margin,
    )

  # First under any noise: what does not fit is told before it is estimated.
  observe(1.0)
  noise_std = _noise(settings, picture, mask)
  settings = dataclasses.replace(settings, noise_std=noise_std)
  given = observe(noise_std)
  height, width, _ = given.observation.operator.image_shape
  if settings.degrade and (height, width) != picture.pixels.shape[:2]:
    print(
      f"the picture is cut to {width} x {height}, divisible by {how.enlarge}"
    )
  return settings, given, family


def _kernels(
  settings: Settings,
) -> tuple[np.ndarray | None, uncertain.Kernels | None]:
  """The kernel of motion blur, and those that it may be."""
  if settings.task not in input.BLURRED:
    return None, None
  kernel = kernel_file.read(settings.kernel, flip=settings.kernel_flip)
  if not settings.kernel_degrees:
    return kernel, None
  return kernel, uncertain.turned(
    kernel_file.trimmed(kernel),
    degrees=settings.kernel_degrees,
    steps=2 * math.ceil(settings.kernel_degrees / TURN) + 1,
  )


def _mask(settings: Settings, picture: Picture) -> np.ndarray | None:
  """Which pixels inpainting observes, None of other tasks; what to say of it.

  The transparency of a picture, which others drop, is part of it.
  """
  if settings.task not in input.MASKED:
    if picture.said:
      print(picture.said)
    return None
  mask = input.mask_of(picture, settings.mask)
  for line in input.about_mask(
    mask, None if settings.degrade else picture.pixels
  ):
    print(line)
  return mask


def _read_picture(settings: Settings) -> Picture:
  if settings.task != input.CUSTOM:
    return input.read_picture(settings.image)
  if not settings.degrade:
    return input.read_measurement(settings.image)
  picture = input.read_picture(settings.image)
  pixels = np.broadcast_to(picture.pixels, (*picture.pixels.shape[:2], 3))
  return picture._replace(pixels=pixels)


def _check_noise(settings: Settings) -> None:
  known = settings.degrade or settings.noise_std is not None
  if settings.task == input.CUSTOM and not known:
    raise ValueError("noise_std must be given with an operator of one's own")


def _noise(
  settings: Settings, picture: Picture, mask: np.ndarray | None
) -> float:
  """The noise level, with a word on where it comes from."""
  if settings.noise_std:
    return settings.noise_std
  least = noise.rounding(picture.bits)
  if settings.noise_std is not None:
    print(f"noise_std is that of rounding to {picture.bits} bits: {least:.2g}")
    return least
  if settings.degrade:
    return ASSUMED
  _check_noise(settings)
  found = max(noise.estimate(picture.pixels, mask), least)
  print(
    f"noise_std is estimated from the picture: {found:.4f}, "
    f"{noise.UNIT * found:.1f} levels of 255"
  )
  return found


def _denoiser(
  settings: Settings,
  known: Denoiser,
  size: tuple[int, int],
  heartbeat: Heartbeat,
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
  # As `tiled` lays them: as few as overlap enough.
  tiles = math.prod(
    1 + max(0, -(-(side - settings.tile) // (settings.tile - OVERLAP)))
    for side in size
  )
  watched = heartbeat.watched(prior.denoise, 1 / tiles)
  return posterior_jax.tiled(watched, tile=settings.tile, overlap=OVERLAP)
