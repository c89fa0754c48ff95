"""The key families of `experiments.data.key_families`, drawn on the device.

Float32 and jitted, for a million matrices; the same distributions, not the
same numbers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.key_families import DECAYS, FAMILIES


class Mixture(NamedTuple):
  """Chunks of all families and decays, betas of two ranges.

  Attributes:
    keys: [N, C, D] float32, unit norm; the families follow each other.
    beta: [N, C] float32.
    log_decay: [N, C] float32, constant over a chunk.
    wide: [N] bool, whether beta comes from the second range.
  """

  keys: jax.Array
  beta: jax.Array
  log_decay: jax.Array
  wide: jax.Array


def keys(
  family: str, key: jax.Array, count: int, chunk_size: int, dim: int
) -> jax.Array:
  """Unit keys [count, C, D] of a named family, as `key_families.keys`.

  Args:
    family: one of FAMILIES.
    key: of jax.random.
    count: number of chunks.
    chunk_size: C.
    dim: D, the key width.

  Raises:
    ValueError: if the family is unknown.
  """
  if family not in FAMILIES:
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}")
  return _shaped(family, _noise(key, count, chunk_size, dim))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def mixture(
  key: jax.Array,
  count: int,
  chunk_size: int,
  dim: int,
  betas: tuple[tuple[float, float], tuple[float, float]],
) -> Mixture:
  """Draws `count` chunks, all families and decays and both ranges of beta.

  Args:
    key: of jax.random.
    count: N, number of chunks; every combination occurs from 6 a family on.
    chunk_size: C.
    dim: D, the key width.
    betas: two ranges of the uniform write strengths.
  """
  first, last = jax.random.split(key)
  noise = _noise(first, count, chunk_size, dim)
  ends = [count * i // len(FAMILIES) for i in range(len(FAMILIES) + 1)]
  sizes = np.diff(ends)
  parts = [
    _shaped(family, _Noise(*(x[start:end] for x in noise)))
    for family, start, end in zip(FAMILIES, ends, ends[1:])
  ]
  place = np.concatenate([np.arange(size) for size in sizes])  # in its family
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
  """A [N, C, C] of a mixture; its decays are constant over a chunk."""
  c = chunks.keys.shape[1]
  gram = _product("nid,njd->nij", chunks.keys, chunks.keys)
  behind = np.arange(c, dtype=np.float32)[:, None] - np.arange(
    c, dtype=np.float32
  )
  decay = jnp.exp(np.maximum(behind, 0) * chunks.log_decay[:, :1, None])
  return jnp.tril(chunks.beta[..., None] * gram * decay, -1)


class _Noise(NamedTuple):
  """Normal numbers that any family is made of: one draw, compiled once."""

  own: jax.Array  # [N, C, D]
  few: jax.Array  # [N, 7, D]
  weights: jax.Array  # [N, C, 4]


def _noise(key: jax.Array, count: int, chunk_size: int, dim: int) -> _Noise:
  sizes = (chunk_size * dim, 7 * dim, chunk_size * 4)
  every = jax.random.normal(key, (count, sum(sizes)), jnp.float32)
  own, few, weights = jnp.split(every, np.cumsum(sizes)[:-1], axis=1)
  return _Noise(
    own.reshape(count, chunk_size, dim),
    few.reshape(count, 7, dim),
    weights.reshape(count, chunk_size, 4),
  )


def _shaped(family: str, noise: _Noise) -> jax.Array:
  """Unit keys [N, C, D] of a family out of noise."""
  shape = noise.own.shape
  if family == "independent":
    return _unit(noise.own)
  if family.startswith("cosine_"):
    cosine = float(family.removeprefix("cosine_"))
    shared, own = _unit(noise.few[:, :1]), _unit(noise.own)
    return _unit(cosine**0.5 * shared + (1 - cosine) ** 0.5 * own)
  if family == "identical":
    return jnp.broadcast_to(_unit(noise.few[:, :1]), shape)
  if family == "rank_4":
    basis = _orthonormal(noise.few[:, :4])
    return _unit(_product("ncr,nrd->ncd", noise.weights, basis))
  return _unit(noise.few)[:, np.arange(shape[1]) % 7]


def _product(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(axes, x, y, precision=lax.Precision.HIGHEST)


def _unit(x: jax.Array) -> jax.Array:
  return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def _orthonormal(x: jax.Array) -> jax.Array:
  """Gram-Schmidt on the few rows of [N, R, D]."""
  rows: list[jax.Array] = []
  for i in range(x.shape[1]):
    row = x[:, i]
    for other in rows:
      row = row - jnp.sum(row * other, axis=-1, keepdims=True) * other
    rows.append(_unit(row))
  return jnp.stack(rows, axis=1)
