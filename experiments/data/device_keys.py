"""The families of `key_families`, drawn on the device.

Float32 and jitted, for a million matrices; the same distributions, not the
same numbers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import key_families
from experiments.data.key_families import DECAYS, FAMILIES, PERIOD, RANK, Normal


class Mixture(NamedTuple):
  """Chunks of all families and decays, betas of two ranges."""

  # [N, C, D] float32, unit norm; the families follow each other
  keys: jax.Array
  beta: jax.Array  # [N, C] float32
  log_decay: jax.Array  # [N, C] float32, constant over a chunk
  wide: jax.Array  # [N] bool, whether beta comes from the second range


def keys(
  family: str, key: jax.Array, count: int, chunk_size: int, dim: int
) -> jax.Array:
  """Unit keys [count, C, D] of a named family, as `key_families.keys`."""
  return _shaped(family, _noise(key, count, chunk_size, dim))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def mixture(
  key: jax.Array,  # of jax.random
  # N, number of chunks; every combination occurs from 6 a family on
  count: int,
  chunk_size: int,  # C
  dim: int,  # D, the key width
  # two ranges of the uniform write strengths
  betas: tuple[tuple[float, float], tuple[float, float]],
) -> Mixture:
  """Draws `count` chunks, all families and decays and both ranges of beta."""
  first, last = jax.random.split(key)
  noise = _noise(first, count, chunk_size, dim)
  ends = [count * i // len(FAMILIES) for i in range(len(FAMILIES) + 1)]
  parts = [
    _shaped(family, tuple(x[start:end] for x in noise))
    for family, start, end in zip(FAMILIES, ends, ends[1:])
  ]
  place = np.concatenate([np.arange(n) for n in np.diff(ends)])  # in its family
  wide = place // len(DECAYS) % 2
  low, high = np.array(betas, np.float32)[wide].T[:, :, None]  # [N, 1] each
  uniform = jax.random.uniform(last, (count, chunk_size), jnp.float32)
  decay = np.array(DECAYS, np.float32)[place % len(DECAYS)][:, None]
  return Mixture(
    jnp.concatenate(parts),
    low + (high - low) * uniform,
    jnp.broadcast_to(-decay, (count, chunk_size)),
    jnp.asarray(wide == 1),
  )


@jax.jit
def matrices(chunks: Mixture) -> jax.Array:
  """A [N, C, C] of a mixture."""
  with jax.default_matmul_precision("highest"):
    return key_families.Chunks(*chunks[:3]).a


# One draw that any family is made of, because a draw is slow to compile.
_Noise = tuple[jax.Array, ...]  # [N, C, D], [N, PERIOD, D], [N, C, RANK]


def _noise(key: jax.Array, count: int, chunk_size: int, dim: int) -> _Noise:
  shapes = ((chunk_size, dim), (PERIOD, dim), (chunk_size, RANK))
  sizes = [rows * columns for rows, columns in shapes]
  every = jax.random.normal(key, (count, sum(sizes)), jnp.float32)
  parts = jnp.split(every, np.cumsum(sizes)[:-1], axis=1)
  return tuple(x.reshape(count, *shape) for x, shape in zip(parts, shapes))


def _shaped(family: str, noise: _Noise) -> jax.Array:
  """Unit keys [N, C, D] of a family out of noise."""
  own, few, weights = noise
  normal = Normal(
    own=lambda: own,
    few=lambda m: few[:, :m],
    basis=lambda: _orthonormal(few[:, :RANK]),
    weights=lambda: weights,
  )
  with jax.default_matmul_precision("highest"):
    return key_families.shaped(family, normal, own.shape[1])


def _orthonormal(x: jax.Array) -> jax.Array:
  """Gram-Schmidt on the few rows of [N, R, D]: QR of a million is slow."""
  rows: list[jax.Array] = []
  for i in range(x.shape[1]):
    row = x[:, i]
    for other in rows:
      row = row - jnp.sum(row * other, axis=-1, keepdims=True) * other
    rows.append(row / jnp.linalg.norm(row, axis=-1, keepdims=True))
  return jnp.stack(rows, axis=1)
