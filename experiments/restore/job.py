"""What is to be restored, read and checked before anything is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import posterior_jax
from experiments.data import degradations
from experiments.harness import prior_files
from experiments.harness.subjects import samplers
from experiments.harness.subjects.samplers import CALIBRATED, TUNED
from experiments.restore import image_settings
from experiments.restore import shared_inputs as shared
from experiments.restore.measurement import degradation, noise, observed
from experiments.restore.measurement.observed import Given
from experiments.restore.picture_files.mask import (
  about_mask,
  mask_of,
  soft_share,
)
from experiments.restore.picture_files.picture import (
  Picture,
  read_measurement,
  read_picture,
)
from experiments.restore.settings import Settings
from experiments.restore.shared_inputs import SharedInputs
from posterior_jax import uncertain
from posterior_jax.base import Denoiser
from posterior_jax.foreign_files.hushed import hushed
from posterior_jax.nfc_sampler import Probed, Spectrum
from posterior_jax.operators.scene import Correlation

ASSUMED = 0.05  # noise of a clean picture that is to be degraded
FAR = 4.0  # times less noise than was said is asked about
TOLERANCE = 1e-2  # relative residual of a sample's linear solves

Say = Callable[[str], None]


class Job(NamedTuple):
  """All that a run needs; `best` and `drawn` may be one and the same."""

  settings: Settings  # as given, noise_std as it was found
  picture: Picture  # as it was read
  given: Given  # what is restored
  denoise: Denoiser  # of the prior, on the picture's size
  best: posterior_jax.Sampler  # the sampler of the one image
  drawn: posterior_jax.Sampler  # the sampler of posterior samples
  common: SharedInputs  # with other pictures

  def evaluations(self, sampler: posterior_jax.Sampler) -> float:
    """Of the network in a step of one of the two, as far as is known before."""
    # Of a kernel that is drawn: a call that weighs the kernels.
    more = self.common.family is not None
    if self.settings.method != "NFC":
      return self.settings.levels / sampler.num_steps + more
    if sampler is self.drawn:
      return 1 + (self.settings.tie == "probed") + more
    levels = self.settings.levels
    return image_settings.evaluations(self.given.coloured(), levels) + more

  def turned(self, degrees: float) -> "Job":
    """The same with the kernel of its family that is turned so far."""
    family = self.common.family
    assert family is not None  # nothing else is turned
    nearest = int(abs(family.degrees - degrees).argmin())
    operator = self.given.observation.operator
    assert isinstance(operator, Correlation)  # as every blur is
    operator = uncertain.with_kernel(operator, family.values[nearest])
    observation = dataclasses.replace(self.given.observation, operator=operator)
    return self._replace(given=self.given._replace(observation=observation))


def prepare(
  settings: Settings, common: SharedInputs | None = None, *, say: Say = print
) -> Job:
  """Reads picture, mask, kernel and prior; nothing is compiled.

  Args:
    settings: what is restored, and how.
    common: what was read for other pictures; None: it is read.
    say: takes a line about what was assumed.

  Raises:
    ValueError: one of them is missing, unreadable or does not fit, or the
      method cannot take the task.
  """
  picture = _read_picture(settings)
  common = common or shared.read(settings)
  settings, given = _observed(settings, picture, common, say)
  height, width, _ = given.observation.operator.image_shape
  known = degradations.build_prior(height, width)
  denoise = shared.denoiser(common, settings, known.denoise, (height, width))

  def sampler(config: Any) -> posterior_jax.Sampler:
    found = samplers.build(settings.method, config, spectrum=known.spectrum)
    if common.family is not None:
      grid = given.observation.operator.measurement_shape[:2]
      found = uncertain.uncertain(
        found, common.family, spectrum=degradations.build_prior(*grid).spectrum
      )
    # The range of a file's pixels is known: bright ones are no mistake.
    with hushed("y looks as if its pixels were"):
      jax.eval_shape(
        lambda key: posterior_jax.run(found, denoise, given.coloured(), key)[0],
        jax.random.key(0),
      )
    return found

  best, drawn = _configs(settings, given, kernel_known=common.family is None)
  image = sampler(best)
  sample = image if drawn is best else sampler(drawn)
  return Job(settings, picture, given, denoise, image, sample, common)


def _configs(
  settings: Settings, given: Given, *, kernel_known: bool
) -> tuple[Any, Any]:
  """Of the sampler of the one image, and of that of samples."""
  if settings.method != "NFC":
    tuned = samplers.config(settings.method, TUNED, evaluations=settings.levels)
    return tuned, tuned
  best = image_settings.config(
    given.coloured(),
    settings.levels,
    kernel_known=kernel_known,
    any_way_up=prior_files.any_way_up(settings.prior),
  )
  best = samplers.changed(best, samplers.assigned(settings.nfc))
  # Solves to 1e-6 would take ten times as long as the network does.
  tie = Probed if settings.tie == "probed" else Spectrum
  changes: dict[str, Any] = {
    "inner.tolerance": TOLERANCE,
    "width": tie(inflation=1.5),
  }
  return best, samplers.config(
    "NFC", CALIBRATED, evaluations=settings.sample_levels, **changes
  )


def _observed(
  settings: Settings, picture: Picture, common: SharedInputs, say: Say
) -> tuple[Settings, Given]:
  """The settings with the noise that was found, and the observation."""
  mask = _mask(settings, picture, say)
  how = degradation.degradation(
    settings.task,
    kernel=common.kernel,
    family=common.family,
    mask=mask,
    std=settings.std,
    factor=settings.factor,
    boundary=settings.boundary,
    build=common.build,
  )

  def observe(noise_std: float) -> Given:
    return observed.observe(
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
  noise_std = _noise(settings, picture, mask, say)
  settings = dataclasses.replace(settings, noise_std=noise_std)
  given = observe(noise_std)
  height, width, _ = given.observation.operator.image_shape
  if settings.degrade and (height, width) != picture.pixels.shape[:2]:
    say(f"the picture is cut to {width} x {height}, divisible by {how.enlarge}")
  return settings, given.on_fast_sides()


def _mask(settings: Settings, picture: Picture, say: Say) -> np.ndarray | None:
  """Which pixels inpainting observes, None of other tasks; what to say of it.

  The transparency of a picture, which others drop, is part of it.
  """
  holes = settings.task in degradation.MASKED
  if line := picture.kept if holes else picture.said:
    say(line)
  if not holes:
    return None
  mask = mask_of(picture, settings.mask)
  if settings.mask and (share := soft_share(settings.mask)) > 0.001:
    say(
      f"{100 * share:.1f} % of the mask is grey: from half of white on it "
      "counts as observed"
    )
  for line in about_mask(mask, None if settings.degrade else picture.pixels):
    say(line)
  return mask


def _read_picture(settings: Settings) -> Picture:
  if settings.task != degradation.CUSTOM:
    return read_picture(settings.image)
  read = read_picture if settings.degrade else read_measurement
  picture = read(settings.image)
  if picture.pixels.shape[-1] == 1:
    # What is restored is colour, which a profile of grey does not describe.
    picture = picture._replace(profile=None)
  if not settings.degrade:
    return picture
  pixels = np.broadcast_to(picture.pixels, (*picture.pixels.shape[:2], 3))
  return picture._replace(pixels=pixels)


def _noise(
  settings: Settings, picture: Picture, mask: np.ndarray | None, say: Say
) -> float:
  """The noise level, with a word on where it comes from."""
  if settings.noise_std:
    if line := _too_much(settings, picture, mask):
      say(line)
    return settings.noise_std
  least = noise.rounding(picture.bits)
  if settings.noise_std is not None:
    say(f"noise_std is that of rounding to {picture.bits} bits: {least:.2g}")
    return least
  if settings.degrade:
    return ASSUMED
  lost = noise.rounding_of_jpeg(picture.steps)
  found = max(noise.estimate(picture.pixels, mask), least, lost)
  if picture.steps:
    say(
      "JPEG takes noise away and leaves errors of its own, "
      f"{noise.UNIT * lost:.1f} levels of 255 at least: give noise_std if the "
      "picture was noisier"
    )
  say(
    f"noise_std is estimated from the picture: {found:.4f}, "
    f"{noise.UNIT * found:.1f} levels of 255"
  )
  return found


def _too_much(
  settings: Settings, picture: Picture, mask: np.ndarray | None
) -> str:
  """A question where a picture looks far less noisy than is said, else ""."""
  assert settings.noise_std is not None
  if settings.degrade or settings.task == degradation.CUSTOM:
    return ""
  try:
    found = noise.estimate(picture.pixels, mask)
  except ValueError:  # too few patches to tell
    return ""
  if picture.steps or FAR * max(found, noise.rounding(8)) > settings.noise_std:
    return ""
  return (
    f"the picture looks less noisy than noise_std says: {found:.4f} against "
    f"{settings.noise_std:.4f}"
  )
