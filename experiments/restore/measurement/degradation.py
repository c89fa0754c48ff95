"""How a picture was degraded: the operator of a task, its margin, its scale."""

import contextlib
import functools
import importlib.util
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.restore.picture_files import kernel_file
from posterior_jax import Operator, operators, uncertain
from posterior_jax.baselines import TASKS
from posterior_jax.operators import resize

DENOISING, CUSTOM = "denoising", "custom"
KINDS = (*TASKS, DENOISING, CUSTOM)
BLURRED = ("motion_blur",)  # by a kernel of one's own
MASKED = ("box_inpainting", "random_inpainting")

Shape = tuple[int, int, int]


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


def degradation(
  task: str,
  *,
  kernel: np.ndarray | None = None,
  family: uncertain.Kernels | None = None,
  mask: np.ndarray | None = None,
  std: float = 3.0,
  factor: int = 4,
  boundary: str = "valid",
  build: Callable[[Shape], Operator] | None = None,
) -> Degradation:
  """How a picture was degraded.

  Args:
    task: of KINDS.
    kernel: of motion blur, see `kernel_file.read`.
    family: of kernels that it may be; the middle one is taken.
    mask: of inpainting, see `mask.mask_of`.
    std: of Gaussian blur, in pixels.
    factor: of super-resolution.
    boundary: of blur and super-resolution: "valid", the scene goes on beyond
      the picture, or "reflect".
    build: of a custom operator, see `load_operator`.
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
    assert build is not None
    return Degradation(build)
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


@contextlib.contextmanager
def _told(file: str) -> Iterator[None]:
  """What a user's file raises, or where it would exit, as a sentence."""
  try:
    yield
  except (Exception, SystemExit) as error:
    # What JAX says goes on for lines.
    first = next(iter(str(error).splitlines()), "")
    raise ValueError(
      f"operator {file!r} cannot be run: {type(error).__name__}, {first}"
    ) from error


def _wrong(operator: Operator) -> str:
  """What is wrong with an operator that can be run, "" for nothing."""
  image = jax.ShapeDtypeStruct((1, *operator.image_shape), np.float32)
  jax.eval_shape(operator.forward, image)
  if operator.is_linear:
    try:
      operators.check_operator(operator)
    except ValueError as error:
      return str(error)
  return ""


def _check_shape(
  file: str, operator: Operator, shape: Shape, degrade: bool
) -> None:
  """Refuses an operator that is not of the picture that it was built for."""
  image, measured = operator.image_shape, operator.measurement_shape
  # A clean picture is cut to an image that is smaller.
  within = np.less_equal(image[:2], shape[:2]).all() and image[2] == shape[2]
  if not (within if degrade else measured == shape):
    what, found = (
      ("have an image_shape within", image)
      if degrade
      else ("have the measurement_shape", measured)
    )
    raise ValueError(
      f"operator(shape) of {file!r} must {what} {shape} of the picture, got "
      f"{found}"
    )


def load_operator(file: str, *, degrade: bool) -> Callable[[Shape], Operator]:
  """The function `operator` of a Python file of one's own, which is run.

  Args:
    file: defines operator(shape), from the shape of the image file to an
      `Operator`: the restored picture's (H, W, C) where that is clean and to be
      degraded, else the measurement's (h, w, c). It may be called from a
      thread, by one at a time.
    degrade: whether the picture is clean, and the operator's image.

  It is checked as `operators.check_operator` does, once for every shape.

  Raises:
    ValueError: there is no such file, it cannot be run, or does not define one
      whose adjoint and solves are those of a linear map.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"operator must name a file, {file!r} is none")
  spec = importlib.util.spec_from_file_location("operator_of_ones_own", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"operator {file!r} must be a Python file, NAME.py")
  module = importlib.util.module_from_spec(spec)
  with _told(file):
    spec.loader.exec_module(module)
  build = getattr(module, "operator", None)
  if not callable(build):
    raise ValueError(f"operator {file!r} must define operator(shape)")

  # Pictures of one shape have one operator, whose functions are part of the
  # compiled program.
  @functools.cache
  def checked(shape: Shape) -> Operator:
    with _told(file):
      found = build(shape)
    if not isinstance(found, Operator) or found.image_shape[2] != 3:
      raise ValueError(
        f"operator(shape) of {file!r} must return an Operator of colour images "
        f"(H, W, 3), got {found!r:.80}"
      )
    _check_shape(file, found, shape, degrade)
    with _told(file):
      wrong = _wrong(found)
    if wrong:
      raise ValueError(f"the operator of {file!r} is wrong: {wrong}")
    return found

  # A cache alone lets threads that miss it together build one each.
  lock = threading.Lock()

  def built(shape: Shape) -> Operator:
    with lock:
      return checked(shape)

  return built
