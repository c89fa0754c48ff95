"""What layers and models carry from one call to the next."""

from typing import NamedTuple

import jax
import numpy as np


class Cache(NamedTuple):
  """What the block carries from one call to the next.

  Attributes:
    conv_state: [B, 2 Hk Dk + Hv Dv, W], the last W raw columns of q|k|v,
      oldest first, in the activation dtype.
    recurrent_state: [B, Hv, Dk, Dv] float32.
  """

  conv_state: jax.Array
  recurrent_state: jax.Array


class KeyValueCache(NamedTuple):
  """What full attention carries from one call to the next.

  Slot j of a row holds the row's j-th token, wherever padding stood.

  Attributes:
    keys: [B, S, Hkv, D], rotated, in the activation dtype.
    values: [B, S, Hkv, D].
  """

  keys: jax.Array
  values: jax.Array


class ModelCache(NamedTuple):
  """What a model carries from one call to the next.

  Attributes:
    layers: one cache a layer; with scanned layers one for each layer of a
      period, whose arrays lead with the periods.
    stored: [B] int32, tokens of each row so far.
    start: [B] int32, number of the first token of the row's last document.
  """

  layers: tuple[Cache | KeyValueCache, ...]
  stored: jax.Array
  start: jax.Array

  @property
  def capacity(self) -> int:
    """Tokens that a row may have: S, or no limit without full attention."""
    rooms = [
      layer.keys.shape[-3]
      for layer in self.layers
      if isinstance(layer, KeyValueCache)
    ]
    return min(rooms, default=np.iinfo(np.int32).max - 1)


def check_room(
  cache: ModelCache, shape: tuple[int, ...], mask: jax.Array | None
) -> None:
  """Raises ValueError where tokens do not fit, if all is concrete.

  Args:
    cache: before the tokens, of B rows.
    shape: [B, T] of the tokens.
    mask: [B, T], nonzero at real tokens, or None.
  """
  if any(isinstance(x, jax.core.Tracer) for x in (cache.stored, mask)):
    return
  real = np.ones(shape, bool) if mask is None else np.asarray(mask) != 0
  total = (np.asarray(cache.stored) + real.sum(axis=1)).max()
  if total > cache.capacity:
    raise ValueError(
      f"cache has room for {cache.capacity} tokens a row, but a row would have "
      f"{total}"
    )


def check_cache(
  cache: Cache | KeyValueCache, like: Cache | KeyValueCache
) -> None:
  """Raises unless a layer's cache has the form of another.

  Args:
    cache: what was given.
    like: what `init_cache` gives; shapes and dtypes will do.

  Raises:
    TypeError: if it is of another kind.
    ValueError: for an array of another shape or dtype.
  """
  if type(cache) is not type(like):
    raise TypeError(
      f"cache must be a {type(like).__name__}, got {type(cache).__name__}"
    )
  for name, found, want in zip(like._fields, cache, like):
    if found.shape != want.shape or found.dtype != want.dtype:
      raise ValueError(
        f"cache.{name} must be {want.dtype} of shape {want.shape}, got "
        f"{found.dtype} of shape {found.shape}"
      )
