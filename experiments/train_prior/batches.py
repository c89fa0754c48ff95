"""Batches for the photo prior, drawn on the device: crops and noise levels."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.harness.settings import Checked, setting


class Pool(NamedTuple):
  """What crops come from, on the device."""

  photos: jax.Array  # [K, T, T, 3] uint8, tiles of photographs
  leaves: jax.Array  # [L, T, T, 3] uint8, dead leaves


SHARES = "leaf_share and noise_uniform must lie in [0, 1]"


@dataclasses.dataclass(frozen=True)
class BatchSettings(Checked):
  """What a batch holds."""

  # share of the crops that show dead leaves
  leaf_share: float = setting(0.15, at_least=0, at_most=1, words=SHARES)
  # strength of the changes of colour; 0 none, 1 as in training
  jitter: float = setting(1.0, at_least=0)
  # of the log-normal part of the noise levels
  noise_median: float = setting(0.25, above=0)
  # standard deviation of its logarithm
  noise_spread: float = setting(1.1, at_least=0)
  # share of levels drawn evenly in log sigma instead
  noise_uniform: float = setting(0.25, at_least=0, at_most=1, words=SHARES)
  noise_range: tuple[float, float] = (0.01, 80.0)  # lowest and highest level

  def __post_init__(self) -> None:
    super().__post_init__()
    low, high = self.noise_range
    if not 0 < low < high:
      raise ValueError(
        f"noise_range must be two increasing levels > 0, got {low} and {high}"
      )


def crops(
  key: jax.Array, pool: Pool, *, count: int, size: int, settings: BatchSettings
) -> jax.Array:
  """Augmented crops of random tiles.

  Args:
    key: of the draw.
    pool: where they come from.
    count: N.
    size: side, at most that of a tile.
    settings: the mixture and the jitter.

  Returns:
    [N, size, size, 3] float32 in [-1, 1].
  """
  keys = jax.random.split(key, 5)
  corner = jax.random.randint(
    keys[0], (count, 2), 0, pool.photos.shape[1] - size + 1
  )
  chosen = jax.random.randint(
    keys[1], (2, count), 0, jnp.array([[len(pool.photos)], [len(pool.leaves)]])
  )
  leafy = jax.random.uniform(keys[2], (count,)) < settings.leaf_share

  def cut(tiles: jax.Array, index: jax.Array, corner: jax.Array) -> jax.Array:
    start = (index, corner[0], corner[1], jnp.zeros_like(index))
    return lax.dynamic_slice(tiles, start, (1, size, size, 3))[0]

  photo, leaf = (
    jax.vmap(cut, (None, 0, 0))(tiles, index, corner)
    for tiles, index in zip(pool, chosen)
  )
  x = jnp.where(leafy[:, None, None, None], leaf, photo)
  x = _dihedral(keys[3], x.astype(jnp.float32) / 127.5 - 1)
  return _jittered(keys[4], x, settings.jitter)


def noise_levels(
  key: jax.Array, count: int, settings: BatchSettings
) -> jax.Array:
  """Noise levels [count], within `noise_range`.

  Log-normal about what restoration meets, mixed with levels that are even in
  log sigma, so that sampling finds none untrained.
  """
  keys = jax.random.split(key, 3)
  low, high = np.log(settings.noise_range)
  normal = jax.random.normal(keys[0], (count,)) * settings.noise_spread
  normal = jnp.clip(normal + np.log(settings.noise_median), low, high)
  even = jax.random.uniform(keys[1], (count,), minval=low, maxval=high)
  is_even = jax.random.uniform(keys[2], (count,)) < settings.noise_uniform
  return jnp.exp(jnp.where(is_even, even, normal))


def _dihedral(key: jax.Array, x: jax.Array) -> jax.Array:
  """A random one of the square's eight symmetries for every image."""
  turn = jax.random.bernoulli(key, 0.5, (3, len(x), 1, 1, 1))
  x = jnp.where(turn[0], x[:, ::-1], x)
  x = jnp.where(turn[1], x[:, :, ::-1], x)
  return jnp.where(turn[2], x.transpose(0, 2, 1, 3), x)


def _jittered(key: jax.Array, x: jax.Array, strength: float) -> jax.Array:
  """Random saturation, white balance, contrast and brightness."""
  keys = jax.random.split(key, 4)
  shape = (len(x), 1, 1, 1)

  def normal(i: int, *channels: int) -> jax.Array:
    drawn = jax.random.normal(keys[i], (*shape[:3], *(channels or (1,))))
    return strength * jnp.clip(drawn, -2, 2)

  grey = x.mean(-1, keepdims=True)
  x = grey + (x - grey) * jnp.exp(0.25 * normal(0) - 0.1 * strength)
  x = (x + 1) * jnp.exp(0.06 * normal(1, 3)) - 1
  return jnp.clip(x * jnp.exp(0.12 * normal(2)) + 0.08 * normal(3), -1, 1)
