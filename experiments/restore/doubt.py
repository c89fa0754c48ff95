"""Whether a result is to be doubted, and what for.

A residual above 1 has two causes that look alike: the kernel, the mask or the
noise is not what was said, or the method has not come near the measurement. A
second opinion tells them apart: noise-frequency continuation goes on from the
image for a few levels with exact solves. If that reaches the measurement, what
was said fits and the method had stopped short; if it does not, no method will.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations
from experiments.restore import image_settings
from experiments.restore.drawing.stepwise import stepped
from experiments.restore.job import Job
from experiments.restore.measurement import degradation
from posterior_jax import NFCConfig, Observation, operators, priors
from posterior_jax.base import SamplerState, State, normalised_residual
from posterior_jax.nfc_sampler import Jacobian, Mean, Schedule

# Of a residual. A converged run with everything right stays below, whichever
# the sampler.
SUSPICIOUS = 1.1
LEVELS, START, LEAST = 8, 0.3, 0.005  # of the second opinion, and its noise
# Of the total variation, under which a flip is worth a hint. On eight Kodak
# photographs, three kernels and two noise levels the wrong way round had 0 to
# 12 % more, and in 47 cases of 48 more than half a percent.
FLIPPED = 0.995


class NotFinite(ValueError):
  """The prior or the method has failed on a picture."""


def about(job: Job, scene: np.ndarray, row: Mapping[str, Any]) -> list[str]:
  """What to say about a result, a sentence each.

  Args:
    job: what was restored.
    scene: the one image [H, W, C], margin included.
    row: with its residual.

  Raises:
    NotFinite: the residual is no number.
  """
  residual = row["residual"]
  if not np.isfinite(residual):
    raise NotFinite(
      f"the restored picture must be finite, its residual is {residual}: the "
      "prior or the method has failed"
    )
  if residual <= SUSPICIOUS:
    return []
  reached = second_opinion(job, scene)
  if reached <= SUSPICIOUS:
    return [
      f"the residual of {residual:.2f} is the method's: from its image NFC "
      f"comes to {reached:.2f}, so that the measurement fits; give "
      f"{job.settings.method} more levels, or take another method"
    ]
  what = {
    "motion_blur": "the kernel",
    "gaussian_blur": "std",
    "super_resolution": "factor",
    degradation.CUSTOM: "the operator",
    degradation.DENOISING: "the picture",
  }
  name = what.get(job.settings.task, "the mask")
  return [
    f"a residual far above 1, also from a second sampler ({reached:.2f}): "
    f"{name} or noise_std does not fit the picture"
  ]


def second_opinion(job: Job, scene: np.ndarray) -> float:
  """The residual that NFC reaches from an image."""
  given = job.given.coloured()
  # The last levels move an image by what its width at their noise allows: at
  # 0.1 that does not reach a measurement of less.
  last = max(2 * float(given.noise_std), LEAST)
  last = min(image_settings.stepped(last, LEAST), 0.1)
  config = NFCConfig(
    levels=LEVELS,
    schedule=Schedule(sigma_max=START, sigma_min=last),
    width=Jacobian(),
    inner=Mean(tolerance=1e-3, max_iterations=30),
  )
  sampler = posterior_jax.nfc(config)
  noise_std = jnp.asarray(given.noise_std, jnp.float32)
  observation = dataclasses.replace(given, noise_std=noise_std)
  key_start, *keys = jax.random.split(jax.random.key(0), LEVELS + 1)
  shape = (1, 1, *observation.operator.image_shape)
  image = jnp.broadcast_to(jnp.asarray(scene, jnp.float32), shape)
  x = image + START * jax.random.normal(key_start, shape)
  state = sampler.init(key_start, observation, 1)
  assert isinstance(state, SamplerState)  # as NFC's is
  state = state._replace(x=x)
  found: State = state
  for key in keys:
    found, _ = stepped(sampler.step, found, job.denoise, observation, key)
  return float(normalised_residual(observation, found.x)[0, 0])


def flip_hint(given: Observation) -> str:
  """A hint where the flipped kernel fits a picture better, else "".

  Blurs by a kernel and by its flip have the same gain at every frequency, so
  that no residual of a Gaussian prior tells them apart. The phase does: under
  the wrong one, edges come back doubled, and the picture has more of them. Two
  Wiener estimates of its grey are compared by their total variation.

  Args:
    given: y [1, h, w, C] of any operator.
  """
  operator = given.operator
  if not isinstance(operator, operators.Blur | operators.SceneBlur):
    return ""
  height, width, channels = operator.image_shape
  grey = dataclasses.replace(operator, image_shape=(height, width, 1))
  seen = Observation(
    jnp.mean(given.y, axis=-1, keepdims=True),
    grey,
    given.noise_std / channels**0.5,
  )
  known = degradations.build_prior(height, width)
  known = dataclasses.replace(known, mean=jnp.mean(known.mean))

  kernel = grey.kernel
  flipped = _variation(kernel[::-1, ::-1], seen, known)
  if flipped > FLIPPED * _variation(kernel, seen, known):
    return ""
  return (
    "the kernel turned by 180 degrees fits better, with fewer doubled edges: "
    "try --config.kernel_flip=True"
  )


@jax.jit
def _variation(
  kernel: jax.Array, seen: Observation, known: priors.GaussianPrior
) -> jax.Array:
  """Total variation of the estimate by a kernel, a pixel's mean."""
  blur: Any = seen.operator
  blur = dataclasses.replace(blur, kernel=kernel)
  image, _ = priors.posterior_mean(
    known,
    dataclasses.replace(seen, operator=blur),
    tolerance=1e-2,
    max_iterations=100,
  )
  image = blur.interior(image)
  down, across = (jnp.abs(jnp.diff(image, axis=axis)) for axis in (-3, -2))
  return jnp.mean(down) + jnp.mean(across)
