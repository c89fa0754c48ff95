"""Pictures and masks of one's own, and how they were degraded."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.restore import kernel_file, picture_file
from posterior_jax import Observation, Operator, operators, uncertain
from posterior_jax.baselines import TASKS
from posterior_jax.foreign_files import array_file
from posterior_jax.operators import resize

DENOISING, CUSTOM = "denoising", "custom"
KINDS = (*TASKS, DENOISING, CUSTOM)
BLURRED = ("motion_blur",)  # by a kernel of one's own
MASKED = ("box_inpainting", "random_inpainting")
LEAST, MOST = 32, 4096
# Shares of a picture: fewer observed pixels, or fewer hidden ones, are a slip
# more often than a task.
FEW = 0.02

Shape = tuple[int, int, int]


class Picture(NamedTuple):
  """A picture of one's own.

  Attributes:
    pixels: [H, W, C] float32 in [-1, 1], C 1 or 3.
    said: what to tell of it, "" for nothing.
    hidden: [H, W], 1 where it is transparent, 0 elsewhere; None: nowhere.
    bits: 8 or 16, of an integer; 32 of a floating-point number.
    profile: ICC profile of its colours.
  """

  pixels: np.ndarray
  said: str
  hidden: np.ndarray | None = None
  bits: int = 8
  profile: bytes | None = None


class Given(NamedTuple):
  """A picture to restore."""

  # the clean picture [1, H, W, C], None where there is none
  truth: jax.Array | None
  observation: Observation  # of the picture as it is, C 1 (grey) or 3

  @property
  def grey(self) -> bool:
    """Whether the picture has no colour."""
    return self.observation.operator.image_shape[2] == 1

  def coloured(self) -> Observation:
    """The observation for a prior of colour images.

    A grey one is repeated in three channels under sqrt(3) times the noise: the
    mean of the three then has the likelihood of the grey picture.
    """
    if not self.grey:
      return self.observation
    shape = (*self.observation.operator.image_shape[:2], 3)
    return Observation(
      jnp.repeat(self.observation.y, 3, axis=-1),
      _of_shape(self.observation.operator, shape),
      3**0.5 * self.observation.noise_std,
    )


class Degradation(NamedTuple):
  """How a picture came about.

  Attributes:
    build: the operator on images of a shape, which is that of the scene.
    margin: of the scene, pixels beyond every side of the restored picture.
    enlarge: how many times larger the restored picture is.
  """

  build: Callable[[Shape], Operator]
  margin: int = 0
  enlarge: int = 1


def read_picture(file: str) -> Picture:
  """A picture of one's own and what to say about it.

  Args:
    file: grey or colour, of 8 or 16 bits or floating point, sides as the camera
      turned it; or an array NAME.npy [H, W] or [H, W, C]. Floating-point pixels
      lie in [-1, 1], or in [0, 1] where nothing is well below 0.

  Returns:
    The picture, with a sentence if something was dropped or assumed.

  Raises:
    ValueError: there is no such file, it is no such picture, or its pixels are
      not finite or out of range.
  """
  stored = picture_file.read("image", file)
  values, said = 2 * stored.values - 1, []
  if stored.bits == 32:
    values = stored.values
    if not np.isfinite(values).all():
      raise ValueError(f"image {file!r} must be finite everywhere")
    # Noise takes pixels of either range a little beyond it, a scale of 255
    # takes them far.
    low, high = np.quantile(values, (0.001, 0.999))
    if max(-low, high) > 1.5:
      raise ValueError(
        f"image {file!r} must hold pixels in [-1, 1] or [0, 1] as floating "
        f"point, they reach {max(values.max(), -values.min()):.4g}"
      )
    if low > -0.25:
      values = 2 * values - 1
      said.append(f"the pixels of {file} are taken to lie in [0, 1]")
  hidden = None
  if stored.alpha is not None:
    said.append(f"the transparency of {file} is dropped")
    hidden = (stored.alpha < 1).astype(np.float32)
  pixels = values.astype(np.float32)
  return Picture(pixels, "; ".join(said), hidden, stored.bits, stored.profile)


def read_measurement(file: str) -> Picture:
  """What an operator of one's own measured: an array as it is, or a picture.

  Raises:
    ValueError: as of `read_picture`, or an array is not [h, w, c] and finite.
  """
  if pathlib.Path(file).suffix != ".npy" or not pathlib.Path(file).is_file():
    return read_picture(file)
  try:
    values = array_file.read(
      pathlib.Path(file), most_numbers=3 * picture_file.MOST_PIXELS
    )
  except ValueError as error:
    raise ValueError(
      f"image {file!r} cannot be read as .npy ({error})"
    ) from None
  real = values.ndim == 3 and values.dtype.kind == "f"
  if not real or not np.isfinite(values).all():
    raise ValueError(
      f"image {file!r} must hold finite floating-point numbers [h, w, c], it "
      f"holds {values.dtype} {list(values.shape)}"
    )
  return Picture(values.astype(np.float32), "", bits=32)


def read_mask(file: str, size: tuple[int, int]) -> np.ndarray:
  """Which pixels are observed, [H, W] of 0 and 1; white means observed.

  What is transparent is not observed, whatever its colour.

  Raises:
    ValueError: there is no such file, or it is no picture of that size.
  """
  stored = picture_file.read("mask", file)
  grey = stored.values.mean(-1)
  if grey.shape != size:
    raise ValueError(
      f"mask must have the picture's size, {size[1]} x {size[0]}; {file!r} has "
      f"{grey.shape[1]} x {grey.shape[0]}"
    )
  observed = grey > 0.5
  if stored.alpha is not None:
    observed &= stored.alpha > 0.5
  return observed.astype(np.float32)


def mask_of(picture: Picture, file: str) -> np.ndarray:
  """The pixels of a picture that are observed: by its mask and its alpha.

  Args:
    picture: whose transparent pixels are holes.
    file: of the mask, see `read_mask`; "" for none.

  Returns:
    [H, W] of 0 and 1.

  Raises:
    ValueError: for a mask that is not one, or where nothing hides anything.
  """
  size = picture.pixels.shape[0], picture.pixels.shape[1]
  if not file and picture.hidden is None:
    raise ValueError(
      "mask must name a file, or the image have transparent holes"
    )
  mask = read_mask(file, size) if file else np.ones(size, np.float32)
  return mask if picture.hidden is None else mask * (1 - picture.hidden)


def about_mask(mask: np.ndarray, pixels: np.ndarray | None) -> list[str]:
  """What to say of a mask: the share observed, and whether it looks wrong.

  Args:
    mask: [H, W] of 0 and 1.
    pixels: [H, W, C] of the picture as given; None where it is a clean one.
  """
  share = float(mask.mean())
  lines = [f"observed: {100 * share:.1f} % of the picture"]
  if not FEW <= share <= 1 - FEW:
    much = "nearly all" if share < FEW else "next to nothing"
    lines.append(
      f"the mask hides {much}: white must stand where it is observed"
    )
  elif pixels is not None:
    # A hole is filled with one colour; a photograph never is.
    seen, hole = pixels[mask > 0], pixels[mask == 0]
    if seen.std(0).max() < 1e-3 < hole.std(0).max():
      lines.append(
        "the mask looks inverted: what it calls observed is one colour, what "
        "it hides is not; white must stand where the picture is observed"
      )
  return lines


def degradation(
  task: str,
  *,
  kernel: np.ndarray | None = None,
  family: uncertain.Kernels | None = None,
  mask: np.ndarray | None = None,
  std: float = 3.0,
  factor: int = 4,
  boundary: str = "valid",
  operator: str = "",
) -> Degradation:
  """How a picture was degraded.

  Args:
    task: of KINDS.
    kernel: of motion blur, see `kernel_file.read`.
    family: of kernels that it may be; the middle one is taken.
    mask: of inpainting, see `mask_of`.
    std: of Gaussian blur, in pixels.
    factor: of super-resolution.
    boundary: of blur and super-resolution: "valid", the scene goes on beyond
      the picture, or "reflect".
    operator: file of a custom operator, see `load_operator`.

  Raises:
    ValueError: for an operator's file that is not one.
  """
  valid = boundary == "valid"
  if task == "motion_blur":
    assert kernel is not None
    taps = kernel_file.trimmed(kernel)
    if family is not None:
      taps = np.asarray(family.values[len(family.values) // 2])
    return Degradation(
      lambda shape: operators.blur(shape, taps, boundary=boundary),  # type: ignore[arg-type]
      taps.shape[0] // 2 if valid else 0,
    )
  if task == "gaussian_blur":
    wide = 2 * round(4 * std) + 1  # what SciPy's 4 std need
    return Degradation(
      lambda shape: _gaussian(shape, wide, std, boundary),
      wide // 2 if valid else 0,
    )
  if task == "super_resolution":
    return Degradation(
      lambda shape: operators.super_resolution(
        shape,
        factor=factor,
        boundary=boundary,  # type: ignore[arg-type]
      ),
      resize.cubic_margin(factor) if valid else 0,
      factor,
    )
  if task == CUSTOM:
    return Degradation(load_operator(operator))
  if task == DENOISING:
    return Degradation(
      lambda shape: operators.inpainting(shape, np.ones(shape[:2], np.float32))
    )
  assert mask is not None
  return Degradation(lambda shape: operators.inpainting(shape, mask))


def _gaussian(shape: Shape, wide: int, std: float, boundary: str) -> Operator:
  if boundary == "valid":
    return operators.gaussian_blur(shape, size=wide, std=std, boundary="valid")
  # The benchmark's 61 pixels or more, in what can mirror.
  wide = min(max(61, wide), 2 * min(shape[:2]) - 1)
  return operators.gaussian_blur(shape, size=wide, std=std)


def load_operator(file: str) -> Callable[[Shape], Operator]:
  """The function `operator` of a Python file of one's own, which is run.

  Args:
    file: defines operator(shape), from the shape of the image file to an
      `Operator`: the restored picture's (H, W, C) where that is clean and to be
      degraded, else the measurement's (h, w, c).

  Raises:
    ValueError: there is no such file, or it does not define one.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"operator must name a file, {file!r} is none")
  spec = importlib.util.spec_from_file_location("operator_of_ones_own", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"operator {file!r} must be a Python file, NAME.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  build = getattr(module, "operator", None)
  if not callable(build):
    raise ValueError(f"operator {file!r} must define operator(shape)")

  def checked(shape: Shape) -> Operator:
    found = build(shape)
    if not isinstance(found, Operator) or found.image_shape[2] != 3:
      raise ValueError(
        f"operator(shape) of {file!r} must return an Operator of colour images "
        f"(H, W, 3), got {found!r:.80}"
      )
    return found

  return checked


def observe(
  picture: np.ndarray,
  build: Callable[[Shape], Operator],
  *,
  enlarge: int,
  noise_std: float,
  degrade: bool,
  seed: int,
  margin: int = 0,
) -> Given:
  """The picture as an observation.

  Args:
    picture: [H, W, C] in [-1, 1].
    build: the operator on images of a shape.
    enlarge: how many times larger the restored picture is.
    noise_std: of the measurement, pixels in [-1, 1].
    degrade: whether the picture is clean, and to be degraded first.
    seed: of the noise then.
    margin: of the scene around the restored picture.

  Returns:
    The observation; with the truth where the picture is clean, which is then
    the scene: cut at its right and lower border until `enlarge` divides its
    sides, and less the margin.

  Raises:
    ValueError: a side of the restored picture is out of range.
  """
  height, width, channels = picture.shape
  if degrade:
    height, width = (
      (n - 2 * margin) // enlarge * enlarge for n in (height, width)
    )
  else:
    height, width = height * enlarge, width * enlarge
  operator = build((height + 2 * margin, width + 2 * margin, channels))
  height, width = (n - 2 * margin for n in operator.image_shape[:2])
  if not (LEAST <= min(height, width) and max(height, width) <= MOST):
    raise ValueError(
      f"image must be {LEAST} to {MOST} pixels a side once restored, this is "
      f"{width} x {height}"
    )
  if not degrade:
    y = jnp.asarray(picture[None], jnp.float32)
    return Given(None, Observation(y, operator, noise_std))
  height, width, _ = operator.image_shape
  scene = jnp.asarray(picture[None, :height, :width], jnp.float32)
  clean = operator.forward(scene)
  noise = jax.random.normal(jax.random.key(seed), clean.shape)
  observation = Observation(clean + noise_std * noise, operator, noise_std)
  return Given(operator.interior(scene), observation)


def _of_shape(operator: Operator, shape: Shape) -> Operator:
  """The same operator on images of another number of channels."""
  assert dataclasses.is_dataclass(operator)
  return dataclasses.replace(operator, image_shape=shape)
