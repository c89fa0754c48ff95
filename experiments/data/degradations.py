"""The restoration problems: photographs, five degradations, a known prior."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import posterior_jax
from experiments.data import photographs
from posterior_jax import operators, priors
from posterior_jax.baselines import TASKS, Task
from posterior_jax.operators import frozen


class Problem(NamedTuple):
  """Photographs seen through one operator."""

  name: str  # of the operator
  truth: jax.Array  # [N, H, W, 3]
  observation: posterior_jax.Observation  # y [N, h, w, 3]


Build = Callable[[tuple[int, int, int]], posterior_jax.Operator]
# In the order of TASKS.
OPERATORS: dict[str, Build] = {
  "super-resolution x4": operators.super_resolution,
  "box inpainting": lambda s: operators.box_inpainting(s, size=s[0] // 2),
  "random inpainting 70 %": operators.random_inpainting,
  "Gaussian blur": operators.gaussian_blur,
  "motion blur": operators.motion_blur,
}


def build_prior(height: int, width: int | None = None) -> priors.GaussianPrior:
  """Spectrum and channel means of photographs that are never restored."""
  images = photographs.stack(photographs.PRIOR, 256)
  spectrum = priors.estimate_spectrum(list(images), height, width or height)
  return priors.GaussianPrior(
    jnp.asarray(spectrum, jnp.float32),
    jnp.asarray(images.mean((0, 1, 2)), jnp.float32),
  )


def build_problems(
  names: tuple[str, ...], size: int, noise_std: float, seed: int
) -> list[Problem]:
  """Every operator on the named photographs, with frozen noise."""
  truth = jnp.asarray(photographs.stack(names, size))  # [N, H, W, 3]
  problems = []
  for i, (name, build) in enumerate(OPERATORS.items()):
    operator = build((size, size, 3))
    key = jax.random.fold_in(jax.random.key(seed), i)
    problems.append(_observed(name, operator, truth, noise_std, key))
  return problems


def as_image(observation: posterior_jax.Observation) -> jax.Array:
  """The measurement at the picture's size, [N, H, W, 3].

  Small ones are enlarged by cubic interpolation; dropped pixels become grey.
  What is no picture is shown as A^T y, scaled to fit, of the tangent at grey
  where A is not linear.
  """
  y, operator = observation.y, observation.operator
  if not operator.pictorial:
    grey = jnp.zeros((len(y), *operator.image_shape), y.dtype)
    back = operator.interior(operator.tangent(grey).adjoint(y))
    return back / jnp.maximum(jnp.abs(back).max(), 1e-30)
  picture = jax.eval_shape(
    operator.interior, jax.ShapeDtypeStruct(operator.image_shape, y.dtype)
  )
  if operator.measurement_shape != picture.shape:
    return jax.image.resize(y, (len(y), *picture.shape), "cubic")
  return y * operator.observed


class Degradation(NamedTuple):
  """One frozen measurement of the restoration benchmark."""

  task: Task  # which
  # of "motion_blur", a name of `frozen.ALL_PATHS`; "" for other tasks
  kernel: str = ""

  def __str__(self) -> str:
    words = self.task.replace("_", " ")
    return f"{words}, {self.kernel}" if self.kernel else words


# What the benchmark reports.
FROZEN = (
  *(Degradation(task) for task in TASKS if task != "motion_blur"),
  *(Degradation("motion_blur", kernel) for kernel in frozen.PATHS),
)
# Motion blur by every frozen kernel, by increasing path length.
MOTION_BLURS = tuple(
  Degradation("motion_blur", kernel) for kernel in frozen.ALL_PATHS
)
# A measurement's noise follows from its place here: what is new goes last.
_NUMBERED = (*FROZEN, *(each for each in MOTION_BLURS if each not in FROZEN))


def frozen_operator(
  degradation: Degradation,  # task and kernel
  # (H, W, C). At other sizes the box is half as wide and in the middle, and the
  # random mask is another draw
  image_shape: tuple[int, int, int],
) -> posterior_jax.Operator:
  """The operator of a degradation; at 256 x 256 with the frozen masks."""
  task, kernel = degradation
  if task == "motion_blur":
    return operators.motion_blur(image_shape, kernel)
  if image_shape[:2] == (256, 256):
    if task == "box_inpainting":
      corner = frozen.box_corner()
      return operators.box_inpainting(image_shape, size=128, corner=corner)
    if task == "random_inpainting":
      mask = frozen.random_mask()
      return operators.inpainting(image_shape, mask, contiguous=False)
  return dict(zip(TASKS, OPERATORS.values()))[task](image_shape)


def measure(
  degradation: Degradation, truth: jax.Array, noise_std: float, seed: int
) -> Problem:
  """Photographs [N, H, W, 3] seen through a degradation, with frozen noise.

  Noise differs from degradation to degradation; pixels are in [-1, 1].
  """
  height, width, channels = truth.shape[1:]
  operator = frozen_operator(degradation, (height, width, channels))
  number = _NUMBERED.index(degradation)
  key = jax.random.fold_in(jax.random.key(seed), number)
  return _observed(str(degradation), operator, truth, noise_std, key)


def _observed(
  name: str,
  operator: posterior_jax.Operator,
  truth: jax.Array,
  noise_std: float,
  key: jax.Array,
) -> Problem:
  clean = operator.forward(truth)
  y = clean + noise_std * jax.random.normal(key, clean.shape)
  observation = posterior_jax.Observation(y, operator, noise_std)
  return Problem(name, truth, observation)
