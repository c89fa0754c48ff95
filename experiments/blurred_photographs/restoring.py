"""A crop of a photograph: blurred, restored, and estimated by Tikhonov."""

import io
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import restore as restore_config
from experiments.blurred_photographs.settings import Settings
from experiments.data import photographs
from experiments.harness import command_line, writing
from experiments.restore import job
from experiments.restore.drawing import stepwise as drawing
from posterior_jax import Operator, metrics, operators

ROUNDED = 0.003  # noise below it is that of rounding to 8 bits
WEIGHTS = 10.0 ** np.arange(-5.5, -0.9, 0.25)  # of Tikhonov's penalty


class Blurred(NamedTuple):
  """A photograph that was blurred."""

  name: str  # of the photograph
  y: np.ndarray  # [h, w, 3], of 8 bits
  truth: np.ndarray  # [h, w, 3]
  operator: Operator  # on the scene
  noise_std: float


def blurred(
  file: pathlib.Path, settings: Settings, kernel: np.ndarray, noise_std: float
) -> Blurred:
  """The middle of a photograph, seen through a kernel [k, k]."""
  seen = jnp.asarray(scene(file, settings, len(kernel)))
  height, width, _ = seen.shape
  operator = operators.blur((height, width, 3), kernel, boundary="valid")
  y = np.asarray(operator.forward(seen))
  if noise_std >= ROUNDED:
    rng = np.random.default_rng(settings.seed)
    y = y + noise_std * rng.standard_normal(y.shape)
  levels = np.clip(np.round((y + 1) * 127.5), 0, 255)
  truth = np.asarray(operator.interior(seen))
  return Blurred(
    file.name,
    (levels / 127.5 - 1).astype(np.float32),
    truth,
    operator,
    noise_std,
  )


def scene(file: pathlib.Path, settings: Settings, size: int) -> np.ndarray:
  """What a kernel of `size` pixels sees of a photograph, [H, W, 3].

  Raises:
    ValueError: the photograph is smaller, or is none.
  """
  margin = size // 2
  picture = photographs.read(file).astype(np.float32) / 127.5 - 1
  sides = settings.height + 2 * margin, settings.width + 2 * margin
  if any(have < side for have, side in zip(picture.shape, sides)):
    raise ValueError(
      f"{file.name} must have {sides[1]} x {sides[0]} pixels at least, it has "
      f"{picture.shape[1]} x {picture.shape[0]}"
    )
  top, left = ((n - side) // 2 for n, side in zip(picture.shape, sides))
  return picture[top : top + sides[0], left : left + sides[1]]


def restored(
  one: Blurred,
  kernel: np.ndarray,
  settings: Settings,
  folder: pathlib.Path,
  degrees: float = 0.0,
) -> tuple[np.ndarray, float]:
  """Restored as the command does it.

  Args:
    one: the photograph.
    kernel: that is believed, [k, k].
    settings: with levels and prior.
    folder: takes the files that the command reads.
    degrees: how far the kernel may be turned.

  Returns:
    The image [h, w, 3], and how far its kernel is turned, NaN where it is not
    drawn.
  """
  writing.write(folder / "y.png", photographs.as_png(one.y))
  buffer = io.BytesIO()
  np.save(buffer, kernel)
  writing.write(folder / "kernel.npy", buffer.getvalue())
  config = restore_config.get_config()
  config.update(
    image=str(folder / "y.png"),
    task="motion_blur",
    kernel=str(folder / "kernel.npy"),
    kernel_degrees=degrees,
    noise_std=0.0 if one.noise_std < ROUNDED else one.noise_std,
    levels=settings.levels,
    samples=0,
    prior=settings.prior,
  )
  given = job.prepare(
    command_line.to_settings(job.Settings, config), say=lambda line: None
  )
  draw = drawing.draw(given, given.best, "image", lambda words: None)
  drawn = draw(jax.random.key(0))
  operator = given.given.observation.operator
  return np.asarray(operator.interior(jnp.asarray(drawn.image))), drawn.degrees


def tikhonov(one: Blurred) -> float:
  """The best PSNR of |y - A x|^2 + w |L x|^2 over w and L = 1 or gradient."""
  height, width, _ = one.operator.image_shape
  lines = (4 * np.sin(np.pi * np.fft.fftfreq(n)) ** 2 for n in (height, width))
  gradient = np.add.outer(*lines) + 1e-6  # [H, W]
  penalties = np.stack([np.ones_like(gradient), gradient])
  y = jnp.asarray(one.y)
  found = [
    psnr(np.asarray(_solved(one.operator, y, weight * penalty)), one.truth)
    for penalty in jnp.asarray(penalties, jnp.float32)
    for weight in WEIGHTS
  ]
  return max(found)


def psnr(
  image: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None
) -> float:
  """Of an image [h, w, 3], or of its pixels in a mask [h, w], in dB."""
  if where is not None:
    image, truth = image[where][None], truth[where][None]  # [1, n, 3]
  return float(metrics.psnr(jnp.asarray(image), jnp.asarray(truth)))


@jax.jit
def _solved(operator: Operator, y: jax.Array, penalty: jax.Array) -> jax.Array:
  x, _ = operator.normal_solve(
    operator.adjoint(y),
    precision=penalty,
    noise_std=jnp.float32(1),
    tolerance=1e-5,
    max_iterations=200,
  )
  return operator.interior(x)


def gaussian(std: float) -> np.ndarray:
  """A Gaussian kernel [k, k] of sum 1."""
  wide = 2 * round(4 * std) + 1
  operator = operators.gaussian_blur((wide, wide, 1), size=wide, std=std)
  return np.asarray(operator.kernel)
