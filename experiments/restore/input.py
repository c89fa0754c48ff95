"""Pictures, masks and kernels of one's own, as observations."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import photographs
from foreign_files import array_file, picture_file
from posterior_jax import Observation, Operator, operators
from posterior_jax.baselines import TASKS
from posterior_jax.operators import frozen

DENOISING = "denoising"
KINDS = (*TASKS, DENOISING)
BLURRED = ("motion_blur",)  # by a kernel of one's own
MASKED = ("box_inpainting", "random_inpainting")
FACTOR = 4
LEAST, MOST = 32, 4096
# Of a kernel's shape; a picture of the largest size is blurred by less.
MOST_KERNEL = 2047**2


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


def read_picture(file: str) -> tuple[np.ndarray, str]:
  """A picture of one's own and what to say about it.

  Args:
    file: of 8 bits a channel, grey or colour, sides as the camera turned it.

  Returns:
    [H, W, C] float32 in [-1, 1], C 1 or 3, and a sentence if transparency was
    dropped, else "".

  Raises:
    ValueError: there is no such file, or it is no such picture.
  """
  import PIL.Image  # comes with matplotlib
  import PIL.ImageOps

  def look(opened: PIL.Image.Image) -> tuple[str, bool, bool, np.ndarray]:
    found = PIL.ImageOps.exif_transpose(opened)
    grey = found.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(found.convert("L" if grey else "RGB"))
    return found.mode, "transparency" in found.info, grey, pixels

  _check_file("image", file)
  try:
    mode, clear, grey, pixels = picture_file.read(
      pathlib.Path(file), look, most_side=MOST
    )
  except ValueError as error:
    raise ValueError(
      f"image {file!r} cannot be read as a picture ({error})"
    ) from None
  if mode[0] in "IF":
    raise ValueError(
      f"image {file!r} must have 8 bits a channel, its mode is {mode}"
    )
  clear = clear or mode[-1] in "Aa"
  said = f"the transparency of {file} is dropped" if clear else ""
  found = (pixels[..., None] if grey else pixels).astype(np.float32)
  # In place: a picture of the largest size is 200 MB now.
  found /= 127.5
  found -= 1
  return found, said


def read_mask(file: str, size: tuple[int, int]) -> np.ndarray:
  """Which pixels are observed, [H, W] of 0 and 1; white means observed.

  Raises:
    ValueError: there is no such file, or it is no picture of that size.
  """
  _check_file("mask", file)
  grey = _read_grey("mask", file)
  if grey.shape != size:
    raise ValueError(
      f"mask must have the picture's size, {size[1]} x {size[0]}; {file!r} has "
      f"{grey.shape[1]} x {grey.shape[0]}"
    )
  return (grey > 127.5).astype(np.float32)


def read_kernel(kernel: str) -> np.ndarray:
  """A blur kernel [k, k], k odd, of sum 1; correlated as it is, not flipped.

  Args:
    kernel: "short", "medium" or "long" for a frozen one; a picture, black where
      the kernel is 0; or an array [k, l] as NAME.npy. k and l are odd; the
      shorter side is padded with zeros.

  Raises:
    ValueError: there is no such file, or it holds no such kernel.
  """
  if kernel in frozen.PATHS:
    return frozen.motion_kernel(kernel)
  _check_file(f"kernel must be one of {', '.join(frozen.PATHS)}, or", kernel)
  path = pathlib.Path(kernel)
  if path.suffix == ".npy":
    try:
      values = array_file.read(path, most_numbers=MOST_KERNEL)
    except ValueError as error:
      raise ValueError(
        f"kernel {kernel!r} cannot be read as .npy ({error})"
      ) from None
  else:
    values = _read_grey("kernel", kernel)
  if values.ndim != 2 or not all(n % 2 for n in values.shape):
    raise ValueError(
      f"kernel must have two odd sides, {kernel!r} has shape {values.shape}"
    )
  real = values.dtype.kind in "biuf"
  if not real or not (np.isfinite(values).all() and values.min() >= 0):
    raise ValueError(
      f"kernel must be finite and non-negative, {kernel!r} is not"
    )
  values = values.astype(np.float64)
  if not values.sum() > 0:
    raise ValueError(f"kernel must not be 0 everywhere, {kernel!r} is")
  side = max(values.shape)
  border = [((side - n) // 2,) * 2 for n in values.shape]
  return np.pad(values / values.sum(), border)


def build_operator(
  task: str,
  image_shape: tuple[int, int, int],
  *,
  kernel: str = "",
  mask: str = "",
  std: float = 3.0,
) -> Operator:
  """How a picture was degraded.

  Args:
    task: of KINDS.
    image_shape: (H, W, C) of the restored picture.
    kernel: of motion blur, see `read_kernel`.
    mask: of inpainting, see `read_mask`.
    std: of Gaussian blur, in pixels.

  Raises:
    ValueError: for a kernel, mask or std that is not one, or does not fit.
  """
  if task in MASKED:
    return operators.inpainting(image_shape, read_mask(mask, image_shape[:2]))
  whole = np.ones(image_shape[:2], np.float32)
  # The benchmark's 61 pixels or what SciPy's 4 std need, in what can mirror.
  wide = min(max(61, 2 * round(4 * std) + 1), 2 * min(image_shape[:2]) - 1)
  build: dict[str, Callable[[], Operator]] = {
    "super_resolution": lambda: operators.super_resolution(image_shape),
    "gaussian_blur": lambda: operators.gaussian_blur(
      image_shape, size=wide, std=std
    ),
    "motion_blur": lambda: operators.motion_blur(
      image_shape, read_kernel(kernel)
    ),
    DENOISING: lambda: operators.inpainting(image_shape, whole),
  }
  return build[task]()


def observe(
  picture: np.ndarray,
  build: Callable[[tuple[int, int, int]], Operator],
  *,
  enlarge: int,
  noise_std: float,
  degrade: bool,
  seed: int,
) -> Given:
  """The picture as an observation.

  Args:
    picture: [H, W, C] in [-1, 1].
    build: the operator on images of a shape.
    enlarge: how many times larger the restored picture is.
    noise_std: of the measurement, pixels in [-1, 1].
    degrade: whether the picture is clean, and to be degraded first.
    seed: of the noise then.

  Returns:
    The observation; with the truth where the picture is clean, cut at its right
    and lower border until `enlarge` divides its sides.

  Raises:
    ValueError: a side of the restored picture is out of range.
  """
  height, width, channels = picture.shape
  if degrade:
    height, width = (n // enlarge * enlarge for n in (height, width))
    shape = height, width, channels
  else:
    shape = height * enlarge, width * enlarge, channels
  if not (LEAST <= min(shape[:2]) and max(shape[:2]) <= MOST):
    raise ValueError(
      f"image must be {LEAST} to {MOST} pixels a side once restored, this is "
      f"{shape[1]} x {shape[0]}"
    )
  operator = build(shape)
  y = jnp.asarray(picture[None, :height, :width], jnp.float32)
  if not degrade:
    return Given(None, Observation(y, operator, noise_std))
  clean = operator.forward(y)
  noise = jax.random.normal(jax.random.key(seed), clean.shape)
  return Given(y, Observation(clean + noise_std * noise, operator, noise_std))


def _of_shape(operator: Operator, shape: tuple[int, int, int]) -> Operator:
  """The same operator on images of another number of channels."""
  assert dataclasses.is_dataclass(operator)
  return dataclasses.replace(operator, image_shape=shape)


def _read_grey(name: str, file: str) -> np.ndarray:
  """[H, W] of 0 to 255."""
  try:
    pixels = picture_file.read(
      pathlib.Path(file), photographs.in_colour, most_side=MOST
    )
  except ValueError as error:
    raise ValueError(
      f"{name} {file!r} cannot be read as a picture ({error})"
    ) from None
  return pixels.mean(-1, dtype=np.float64)


def _check_file(name: str, file: str) -> None:
  if not pathlib.Path(file).is_file():
    verb = "" if " " in name else " must"
    raise ValueError(f"{name}{verb} name a file, {file!r} is none")
