"""What a call of the model accepts, and where its tokens stand."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from neumann_jax import checks, sequence_axis
from neumann_jax.delta_rule import inputs
from neumann_jax.layers.caches.cache import (
  ModelCache,
  check_model_cache,
  check_room,
  documents_a_row,
)
from neumann_jax.layers.positions import Positions, positions, shard_positions


def check(
  tokens: jax.Array,
  cache: ModelCache | None,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
  *,
  vocab_size: int,
  axis: str | None,
  init_cache: Callable[[int, int], ModelCache],
) -> None:
  """Raises TypeError or ValueError for what a call does not accept.

  Args:
    tokens: [B, T] integers in [0, V).
    cache: from the call before, or None.
    segment_ids: [B, T] integers or None.
    mask: [B, T] or None.
    vocab_size: V.
    axis: the mesh axis that splits the tokens, or None.
    init_cache: rows and capacity to a cache of the right shapes.
  """
  checks.check_tokens(tokens, vocab_size)
  inputs.check_marks(tokens.shape, segment_ids, mask)
  sequence_axis.check(axis, mask)
  # A shard's cache would have to hold what later shards compute.
  if axis is not None and cache is not None:
    raise ValueError(
      f"cache cannot be given where mesh axis {axis!r} splits the tokens: "
      "prefill without it"
    )
  if cache is not None:
    rows = tokens.shape[0]
    if isinstance(cache, ModelCache):
      found = cache.stored.shape[0]
      rows *= documents_a_row(found, rows, segment_ids) or 1
    check_model_cache(cache, functools.partial(init_cache, rows))
    check_room(cache, tokens.shape, mask, segment_ids)


def marks_of(counted: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Which tokens count, [B, T] float32, from marks of float32 or bool.

  Args:
    counted: [B, T].
    shape: [B, T] of the tokens.

  Raises:
    TypeError: for another type.
    ValueError: for another shape.
  """
  if counted.dtype not in (jnp.float32, jnp.bool_):
    raise TypeError(f"counted must be float32 or bool, got {counted.dtype}")
  if counted.shape != shape:
    raise ValueError(
      f"counted must have the shape of tokens {shape}, got {counted.shape}"
    )
  # Sums of a bool are whether any is, not how many are.
  return counted.astype(jnp.float32)


def places(
  shape: tuple[int, ...],
  cache: ModelCache | None,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
  axis: str | None,
) -> Positions:
  """Where the tokens stand in their documents and in the cache.

  Args:
    shape: [B, T] of the tokens.
    cache: as for `check`, like all that follows.
    segment_ids: [B, T] integers or None.
    mask: [B, T] bool or None.
    axis: the mesh axis that splits the tokens, or None.
  """
  batch, length = shape
  # A shard starts in the middle of the row and has to ask where.
  if axis is not None:
    return shard_positions(batch, length, segment_ids, axis)
  stored, start = (None, None) if cache is None else cache[1:]
  return positions(
    batch,
    length,
    stored=stored,
    start=start,
    segment_ids=segment_ids,
    mask=mask,
  )
