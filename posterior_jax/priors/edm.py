"""EDM preconditioning: what makes one network fit every noise level.

Karras et al. 2022, table 1: the network F sees inputs of unit variance and is
asked for outputs of unit variance, whatever sigma is,

  D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Preconditioning(NamedTuple):
  """Scalings at given noise levels, each of sigma's shape.

  Attributes:
    skip: share of the noisy image in the answer.
    out: scale of the network's output.
    inner: scale of its input (c_in).
    noise: what it is told of sigma.
  """

  skip: jax.Array
  out: jax.Array
  inner: jax.Array
  noise: jax.Array


def precondition(sigma: jax.Array, sigma_data: float) -> Preconditioning:
  """The four scalings.

  Args:
    sigma: noise levels > 0, any shape.
    sigma_data: standard deviation of a clean pixel, > 0.

  Returns:
    Of sigma's shape each.
  """
  total = sigma**2 + sigma_data**2
  return Preconditioning(
    skip=sigma_data**2 / total,
    out=sigma * sigma_data * jax.lax.rsqrt(total),
    inner=jax.lax.rsqrt(total),
    noise=jnp.log(sigma) / 4,
  )


def loss_weight(sigma: jax.Array, sigma_data: float) -> jax.Array:
  """1 / c_out^2: squared errors of D become those of F, of order 1."""
  return 1 / sigma**2 + 1 / sigma_data**2
