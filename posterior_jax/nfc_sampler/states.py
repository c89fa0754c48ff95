"""The states between levels: where a run starts, and how it is renoised."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from posterior_jax.base import Observation
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.records import Schedule


def noise(
  key: chex.PRNGKey,
  observation: Observation,
  shape: tuple[int, ...],
  level: Level,
) -> jax.Array:
  """sigma n, which knows nothing of the measurement."""
  del observation
  return level.sigma * jax.random.normal(key, shape, jnp.float32)


def wiener(
  observation: Observation, spectrum: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """The minimiser of |y - A z|^2 / s^2 + z^T S^-1 z, without a network call.

  S ends a run of a Gaussian prior before it begins; of photographs it knows
  what a blur has left, and nothing of edges.
  """
  target = gaussian.Target(observation, jnp.zeros(shape), spectrum)
  return gaussian.mean(target, tolerance=1e-4, max_iterations=500)[0]


def starting(
  schedule: Schedule, spectrum: jax.Array | None
) -> Callable[..., jax.Array]:
  """The part that makes the first state."""

  def measured(
    key: chex.PRNGKey,
    observation: Observation,
    shape: tuple[int, ...],
    level: Level,
  ) -> jax.Array:
    assert spectrum is not None  # `checks.spectrum_of` refused that
    fresh = schedule.renewal * noise(key, observation, shape, level)
    return wiener(observation, spectrum, shape) + fresh

  return measured if schedule.start == "measurement" else noise


def renoise(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
  """image + sigma' n: the state forgets how the image came about, as in DAPS.

  Noise that a DDIM step would keep is correlated with the error of the last
  prediction; fresh noise gives early mistakes no way to survive.
  """
  noise = jax.random.normal(key, image.shape, image.dtype)
  return image + level.following * noise


def renoising(renewal: float) -> Callable[..., jax.Array]:
  """`renoise` with a share of the noise."""

  def part(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
    following = level._replace(following=renewal * level.following)
    return renoise(key, image, following)

  # A factor of 1 would be one more rounding of every state.
  return renoise if renewal == 1 else part
