"""The restoration problems: photographs, five degradations, a known prior."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import posterior_jax
from experiments import photographs
from posterior_jax import operators, priors


class Problem(NamedTuple):
  """Photographs seen through one operator.

  Attributes:
    name: of the operator.
    truth: [N, H, W, 3].
    observation: y [N, h, w, 3].
  """

  name: str
  truth: jax.Array
  observation: posterior_jax.Observation


Build = Callable[[tuple[int, int, int]], posterior_jax.Operator]
OPERATORS: dict[str, Build] = {
  "super-resolution x4": operators.super_resolution,
  "box inpainting": lambda s: operators.box_inpainting(s, size=s[0] // 2),
  "random inpainting 70 %": operators.random_inpainting,
  "Gaussian blur": operators.gaussian_blur,
  "motion blur": operators.motion_blur,
}


def build_prior(size: int) -> priors.GaussianPrior:
  """Spectrum and channel means of photographs that are never restored."""
  images = photographs.stack(photographs.PRIOR, 256)
  spectrum = priors.estimate_spectrum(list(images), size, size)
  return priors.GaussianPrior(
    jnp.asarray(spectrum, jnp.float32),
    jnp.asarray(images.mean((0, 1, 2)), jnp.float32),
  )


def build_problems(
  names: tuple[str, ...], size: int, noise_std: float, seed: int
) -> list[Problem]:
  """Every operator on the named photographs, with frozen noise.

  Args:
    names: photographs.
    size: their side.
    noise_std: of the measurement, pixels in [-1, 1].
    seed: of the noise.

  Returns:
    One problem an operator.
  """
  truth = jnp.asarray(photographs.stack(names, size))  # [N, H, W, 3]
  problems = []
  for i, (name, build) in enumerate(OPERATORS.items()):
    operator = build((size, size, 3))
    key = jax.random.fold_in(jax.random.key(seed), i)
    clean = operator.forward(truth)
    y = clean + noise_std * jax.random.normal(key, clean.shape)
    observation = posterior_jax.Observation(y, operator, noise_std)
    problems.append(Problem(name, truth, observation))
  return problems


def as_image(observation: posterior_jax.Observation) -> jax.Array:
  """The measurement at the image's size, [N, H, W, 3].

  Small ones are enlarged by cubic interpolation; dropped pixels become grey.
  """
  y, operator = observation.y, observation.operator
  if operator.measurement_shape != operator.image_shape:
    return jax.image.resize(y, (len(y), *operator.image_shape), "cubic")
  return y * operator.observed
