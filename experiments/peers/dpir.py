"""DPIR, plain plug-and-play restoration: half-quadratic splitting.

Zhang et al. 2021, Plug-and-Play Image Restoration with Deep Denoiser Prior,
arXiv 2008.13751. It gives one image and no posterior samples, so it is no
baseline of `posterior_jax`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from experiments.data import degradations
from posterior_jax import Observation
from posterior_jax.base import Denoiser
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian

# DPIR's own first strength, 49 of 255 levels, in pixels of [-1, 1].
FIRST = 98 / 255
_WAYS = 8


@functools.partial(jax.jit, static_argnames=("calls", "turned"))
def dpir(
  denoise: Denoiser,  # D
  observation: Observation,  # y, A and s
  *,
  weight: jax.Array | float,  # lambda; 0.23 in the paper
  calls: int,  # strengths sigma, evenly in logarithm from the first to s
  first: jax.Array | float = FIRST,  # strength
  # Whether D sees the image in another of eight ways at every strength, as in
  # the authors' code (`x8` of their main_dpir_deblur.py and main_dpir_sisr.py).
  turned: bool = False,
) -> jax.Array:
  """Half-quadratic splitting with a denoiser as prior, [N, H, W, C].

  z = argmin |y - A z|^2 / s^2 + weight |z - x|^2 / sigma^2,  x = D(z, sigma)
  """
  x = degradations.as_image(observation)
  sigmas = jnp.geomspace(first, observation.noise_std, calls)
  ways = jnp.arange(calls) % _WAYS

  def body(
    x: jax.Array, level: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    sigma, way = level
    target = gaussian.Target(observation, x[None], sigma**2 / weight)
    z, _ = gaussian.mean(target, tolerance=1e-4, max_iterations=300)
    shown = predictor.turned(denoise, way) if turned else denoise
    return predictor.clean(shown, z[0], sigma), None

  return lax.scan(body, x, (sigmas, ways))[0]
