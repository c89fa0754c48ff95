"""What guidance needs of the denoiser: its answer and its Jacobian's products.

One call of the network, then one vector-Jacobian product (VJP) for every
product with its Jacobian; `Info.calls` and `Info.products` count them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from posterior_jax.base import Denoiser, Observation
from posterior_jax.denoising import predictor

Product = Callable[[jax.Array], jax.Array]


def denoise_with_vjp(
  denoise: Denoiser, x: jax.Array, sigma: jax.Array, *, clip: bool = False
) -> tuple[jax.Array, Product]:
  """The clean image and the transposed Jacobian of the denoiser.

  Args:
    denoise: D, (x [M, H, W, C], sigma [M]) -> [M, H, W, C].
    x: [..., H, W, C] at noise sigma.
    sigma: scalar > 0.
    clip: whether the clean image is clipped to [-1, 1]; the Jacobian is then
      that of the clipped image, zero where a pixel saturates.

  Returns:
    x0 = D(x, sigma), [..., H, W, C] float32, and v -> (dx0/dx)^T v on images
    of that shape.

  Raises:
    ValueError: if the denoiser returns something of another shape.
  """

  def clean(x: jax.Array) -> jax.Array:
    x0 = predictor.clean(denoise, x, sigma)
    return jnp.clip(x0, -1.0, 1.0) if clip else x0

  x0, transposed = jax.vjp(clean, x)
  return x0, lambda v: transposed(v)[0]


def misfit(observation: Observation, x0: jax.Array) -> jax.Array:
  """y - A x0 where the measurement holds data, 0 elsewhere.

  Args:
    observation: y [N, h, w, C].
    x0: [..., N, H, W, C].

  Returns:
    [..., N, h, w, C].
  """
  operator = observation.operator
  return operator.observed * (observation.y - operator.forward(x0))
