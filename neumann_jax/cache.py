"""What the Gated DeltaNet block carries from one call to the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
  """What the block carries from one call to the next.

  Attributes:
    conv_state: [B, 2 Hk Dk + Hv Dv, W], the last W raw columns of q|k|v,
      oldest first, in the activation dtype.
    recurrent_state: [B, Hv, Dk, Dv] float32.
  """

  conv_state: jax.Array
  recurrent_state: jax.Array


def check_cache(cache: Cache, like: Cache) -> None:
  """Raises ValueError unless arrays have the shape and kind of `like`'s."""
  for name, found, want in zip(Cache._fields, cache, like):
    if found.shape != want.shape:
      raise ValueError(
        f"cache.{name} must have shape {want.shape}, got {found.shape}"
      )
    if not jnp.issubdtype(found.dtype, jnp.floating):
      raise ValueError(
        f"cache.{name} must be floating point, got dtype {found.dtype}"
      )
