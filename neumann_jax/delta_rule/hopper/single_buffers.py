"""Buffers that are there once, in the programs for keys of 256.

Each has a barrier of its own. Keys, gates and, in `reverse`, the outputs'
cotangents are there twice and share one.
"""

from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def once_free(n: jax.Array, free: Any) -> None:
  """Waits until the chunk before has let go of what is there once."""

  @pl.when(n >= 1)
  def _is_free():
    plgpu.barrier_wait(free)


def leave(s: Any, bars: list[tuple[Any, Any]], n: jax.Array) -> None:
  """Whose columns another program carries only keeps the buffers moving."""
  slot = lax.rem(n, 2)
  for full, free in [(s.k_full.at[slot], s.k_free.at[slot]), *bars]:
    plgpu.barrier_wait(full)
    plgpu.barrier_arrive(free)


def hidden_zero(n: jax.Array) -> jax.Array:
  """0, of which a compiler does not know that it is the same in every chunk.

  A product's descriptors of a buffer that is there once would be computed
  before the loop otherwise, in more registers than a state leaves.
  """
  return lax.shift_right_logical(n, 24)
