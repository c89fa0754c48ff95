"""The caches of scanned layers, written in place by a step of decoding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.layers.caches.cache import KeyValueCache, LayerCache


class KeyValuesOfPeriod(NamedTuple):
  """The cache of one of many scanned layers, in the arrays of all of them.

  Attributes:
    keys: [P, B, S, Hkv, D], those of every period.
    values: [P, B, S, Hkv, D].
    period: [] int32, whose keys and values are read and written.
  """

  keys: jax.Array
  values: jax.Array
  period: jax.Array

  @property
  def capacity(self) -> int:
    """Tokens that a row may have: S."""
    return self.keys.shape[-3]


def scan(
  run: Callable[..., tuple[jax.Array, tuple[tuple[LayerCache, ...], Any]]],
  x: jax.Array,
  states: Any,
  caches: tuple[LayerCache, ...],
) -> tuple[jax.Array, tuple[tuple[LayerCache, ...], Any]]:
  """`lax.scan` over periods that carries their caches.

  As inputs and outputs of a scan the caches would be copied whole, twice for
  every token. A backward pass would rather have them so: under remat it keeps
  what a period reads, and here that is the arrays of all periods.

  Args:
    run: (x, (states, caches) of a period) -> (x, (its caches, anything)).
    x: [B, T, hidden].
    states: of all periods, [P, ...].
    caches: of all periods, [P, ...].

  Returns:
    What `lax.scan(run, x, (states, caches))` gives.
  """

  def step(carry, parts):
    (x, caches), (period, states) = carry, parts
    before = tuple(_of_period(stack, period) for stack in caches)
    x, (after, found) = run(x, (states, before))
    caches = tuple(
      _with_period(*pair, period) for pair in zip(caches, after, strict=True)
    )
    return (x, caches), found

  periods = jnp.arange(jax.tree.leaves(states)[0].shape[0], dtype=jnp.int32)
  (x, caches), found = lax.scan(step, (x, caches), (periods, states))
  return x, (caches, found)


def _of_period(stack: LayerCache, period: jax.Array) -> LayerCache:
  """One layer's cache out of those of all periods, [P, ...] -> [...]."""
  if isinstance(stack, KeyValueCache):
    # Left where they are: a token writes one slot of them.
    return KeyValuesOfPeriod(*stack, period)
  return jax.tree.map(
    lambda x: lax.dynamic_index_in_dim(x, period, keepdims=False), stack
  )


def _with_period(
  stack: LayerCache, cache: LayerCache, period: jax.Array
) -> LayerCache:
  """The caches of all periods with what a layer made of its own."""
  if isinstance(cache, KeyValuesOfPeriod):
    return KeyValueCache(cache.keys, cache.values)
  return jax.tree.map(
    lambda old, new: lax.dynamic_update_index_in_dim(old, new, period, 0),
    stack,
    cache,
  )
