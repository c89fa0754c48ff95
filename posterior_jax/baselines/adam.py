"""Adam (Kingma and Ba 2015) on a batch of images, inside a sampler's step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
  """Running means of the slope and of its square, of the images' shape."""

  first: jax.Array
  second: jax.Array


def start(x: jax.Array) -> Moments:
  """Before the first slope."""
  return Moments(jnp.zeros_like(x), jnp.zeros_like(x))


def direction(
  moments: Moments,
  slope: jax.Array,
  count: jax.Array,
  *,
  first_decay: float = 0.9,
  second_decay: float = 0.999,
  epsilon: float = 1e-8,
) -> tuple[jax.Array, Moments]:
  """The step of rate 1, to be subtracted, and the moments after it.

  Args:
    moments: before this slope.
    slope: gradient of the loss, [...].
    count: int32 scalar, slopes seen before this one; it corrects the bias of
      moments that started at zero.
    first_decay: of the mean of slopes.
    second_decay: of the mean of their squares.
    epsilon: added to the root of the latter.
  """
  first = first_decay * moments.first + (1 - first_decay) * slope
  second = second_decay * moments.second + (1 - second_decay) * slope**2
  # Moments start at zero: after k slopes they hold 1 - decay^k of their mean.
  power = (count + 1).astype(slope.dtype)
  mean = first / (1 - first_decay**power)
  size = jnp.sqrt(second / (1 - second_decay**power)) + epsilon
  return mean / size, Moments(first, second)
