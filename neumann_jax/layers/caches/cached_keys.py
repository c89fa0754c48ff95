"""Keys and values in a cache: written in place, read as far as it is filled."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.layers.caches.cache import KeyValueCache
from neumann_jax.layers.caches.period_caches import KeyValuesOfPeriod
from neumann_jax.layers.positions import PADDING, Positions

# A cache is read up to the first of these many slots that holds all tokens.
_FIRST_PREFIX, _PREFIX_RATIO = 256, 4
# Off the CPU up to so many slots over all rows a single token is bound by the
# weights of its layers, and a branch would cost more than it saves: it is one
# more program to compile, and on a GPU the host waits to take it. On a CPU 4096
# slots cost half of a small model's step, and a branch nothing.
_SLOTS_OF_A_TOKEN = 4096


KeyValues = TypeVar("KeyValues", KeyValueCache, KeyValuesOfPeriod)


def store(
  cache: KeyValues,
  k: jax.Array,
  v: jax.Array,
  slot: jax.Array,
  document: jax.Array | None = None,
) -> KeyValues:
  """Writes [B, T, Hkv, D] keys and values into their slots [B, T].

  Args:
    cache: of B rows, or of M for each row.
    k: keys.
    v: values.
    slot: [B, T] int32.
    document: [B, T] int32, which of M rows a token belongs to, or None.
  """
  row = jnp.arange(k.shape[0])[:, None]  # [B, 1]
  if document is not None:
    row = row * (cache.keys.shape[-4] // k.shape[0]) + document  # [B, T]
  at: tuple[jax.Array, ...] = (row, slot)
  if isinstance(cache, KeyValuesOfPeriod):
    at = (cache.period, row, slot)
  # "drop" is what loses padding, whose slot lies past every cache.
  write = lambda old, new: old.at[at].set(  # noqa: E731
    new.astype(old.dtype), mode="drop"
  )
  return cache._replace(
    keys=write(cache.keys, k), values=write(cache.values, v)
  )


def over_slots_in_use(
  attend: Callable[..., jax.Array],
  q: jax.Array,
  cache: KeyValues,
  positions: Positions,
  document: jax.Array | None = None,
) -> jax.Array:
  """Attention to a cache at the cost of its tokens, whatever its capacity.

  Args:
    attend: `causal_attention` with its options.
    q: [B, T, H, D].
    cache: with the keys of the queries.
    positions: of the queries.
    document: [B, T] int32, which of M rows of the cache a query reads, or None.

  Returns:
    [B, T, H, D].
  """
  # Padding sees nothing, so that its slot, past every cache, asks for nothing.
  slot = jnp.where(positions.slot == PADDING, 0, positions.slot)

  def up_to(first: int) -> Callable[..., jax.Array]:
    # One branch for each prefix, and not a loop over blocks of keys: a loop
    # whose length is data has no reverse derivative, and costs a launch for
    # each block.
    sizes = [first]
    while sizes[-1] < cache.capacity:
      sizes.append(_PREFIX_RATIO * sizes[-1])
    sizes[-1] = cache.capacity
    branches = [_over(attend, size) for size in sizes]

    def run(newest, *operands):
      branch = jnp.sum(newest >= jnp.array(sizes[:-1], jnp.int32))
      return lax.switch(branch, branches, *operands)

    return run

  operands = jnp.max(slot), q, cache, positions, document
  if q.shape[1] > 1 or cache.capacity <= _FIRST_PREFIX:
    return up_to(_FIRST_PREFIX)(*operands)
  elsewhere = max(_FIRST_PREFIX, _SLOTS_OF_A_TOKEN // q.shape[0])
  return lax.platform_dependent(
    *operands, cpu=up_to(_FIRST_PREFIX), default=up_to(elsewhere)
  )


def _over(
  attend: Callable[..., jax.Array], size: int
) -> Callable[..., jax.Array]:
  """Attention to the first slots of a cache."""

  def run(q, cache, positions, document):
    # In the branch: one that is not taken copies nothing.
    keys, values = _first(cache, size)
    if document is not None:
      # One row of keys, those of each document after those of the one before:
      # slots then say whose they are.
      rows = (q.shape[0], -1, *keys.shape[2:])
      keys, values = keys.reshape(rows), values.reshape(rows)
      positions = positions._replace(
        slot=positions.slot + document * size,
        first=positions.first + document * size,
      )
    slots = jnp.arange(keys.shape[1], dtype=jnp.int32)[None]
    return attend(q, keys, values, positions, slots)

  return run


def _first(cache: KeyValues, size: int) -> tuple[jax.Array, jax.Array]:
  """[B, size, Hkv, D] keys and values of the first slots."""
  if isinstance(cache, KeyValueCache):
    return cache.keys[:, :size], cache.values[:, :size]
  _, rows, _, heads, width = cache.keys.shape
  keys, values = (
    lax.dynamic_slice(
      x, (cache.period, 0, 0, 0, 0), (1, rows, size, heads, width)
    )[0]
    for x in (cache.keys, cache.values)
  )
  return keys, values
