"""How many tokens a model's cache holds after a call, and where it is full."""

import jax
import jax.numpy as jnp

from neumann_jax.delta_rule import layout
from neumann_jax.layers.caches.cache import (
  LayerCache,
  ModelCache,
  documents_a_row,
)
from neumann_jax.layers.positions import Positions


def added(
  cache: ModelCache,
  layers: tuple[LayerCache, ...],
  shape: tuple[int, ...],
  places: Positions,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> tuple[ModelCache, jax.Array]:
  """A cache with the tokens of a call.

  Args:
    cache: before the call.
    layers: the caches of the layers after it.
    shape: [B, T] of the tokens.
    places: of the tokens.
    segment_ids: [B, T] or None.
    mask: [B, T] bool or None.

  Returns:
    The cache, and [B, 1 or T] bool, tokens whose row, or document,
    has outgrown the cache.
  """
  count = documents_a_row(cache.stored.shape[0], shape[0], segment_ids)
  if count is None:
    # int32 under x64 too, as a cache has it.
    new = shape[1] if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
    cache = ModelCache(layers, cache.stored + new, places.first[:, -1])
    return cache, (cache.stored > cache.capacity)[:, None]
  assert segment_ids is not None
  number = layout.numbers(segment_ids)  # [B, T]
  row = jnp.arange(shape[0])[:, None]
  stored = cache.stored.reshape(shape[0], count)
  stored = stored.at[row, number].add(1, mode="drop")
  full = (
    (stored > cache.capacity).at[row, number].get(mode="fill", fill_value=True)
  )  # [B, T]
  return ModelCache(layers, stored.ravel(), cache.start), full
