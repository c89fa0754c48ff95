"""Lower triangular matrices as tiles, of which zero ones are absent.

A `Tiles` of a C x C matrix maps (i, j) to its tile, [..., t, t], rows i t to
i t + t - 1 and columns j t to j t + t - 1. A missing tile is zero, and no
operation touches it: the sparsity of a method's masks is found while tracing.
Everything here traces inside a Pallas kernel of any back end.

Axes: C chunk, t tile.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tiles = dict[tuple[int, int], jax.Array]
# (row, column) of entries to whether they are kept, for numpy and jax arrays.
Keep = Callable[[Any, Any], Any]
TileProduct = Callable[[jax.Array, jax.Array], jax.Array]


def size(x: Tiles) -> int:
  """The width t of a tile."""
  return next(iter(x.values())).shape[-1]


def keep(x: Tiles, where: Keep) -> Tiles:
  """Zero outside `where`; tiles that lie outside altogether are dropped."""
  if not x:
    return {}
  t = size(x)
  at = np.arange(t)
  out = {}
  for (i, j), tile in x.items():
    # Numpy numbers are known while tracing: which tiles are zero, whole or cut
    # costs the program nothing.
    inside = where(at[:, None] + i * t, at[None, :] + j * t)  # [t, t]
    if inside.all():
      out[i, j] = tile
    elif inside.any():
      row = lax.broadcasted_iota(jnp.int32, (t, t), 0) + i * t
      col = lax.broadcasted_iota(jnp.int32, (t, t), 1) + j * t
      out[i, j] = jnp.where(where(row, col), tile, jnp.zeros((), tile.dtype))
  return out


def identity(like: Tiles) -> Tiles:
  """I in the shape and type of the diagonal tiles of `like`."""
  t = size(like)
  row = lax.broadcasted_iota(jnp.int32, (t, t), 0)
  col = lax.broadcasted_iota(jnp.int32, (t, t), 1)
  out = {}
  for (i, j), tile in like.items():
    if i == j:
      one, zero = jnp.ones((), tile.dtype), jnp.zeros((), tile.dtype)
      eye = jnp.where(row == col, one, zero)
      out[i, i] = jnp.broadcast_to(eye, tile.shape)
  return out


def add(x: Tiles, y: Tiles) -> Tiles:
  """x + y."""
  out = dict(x)
  for at, tile in y.items():
    out[at] = out[at] + tile if at in out else tile
  return out


def subtract(x: Tiles, y: Tiles) -> Tiles:
  """x - y."""
  out = dict(x)
  for at, tile in y.items():
    out[at] = out[at] - tile if at in out else -tile
  return out


def multiply(x: Tiles, y: Tiles, product: TileProduct) -> Tiles:
  """x y, sums taken over k in ascending order."""
  out: Tiles = {}
  # Sorted, so that sums do not depend on the order in which tiles were made.
  for (i, k), left in sorted(x.items()):
    for (m, j), right in sorted(y.items()):
      if m == k:
        term = product(left, right)
        out[i, j] = out[i, j] + term if (i, j) in out else term
  return out


def each(x: Tiles, function: Callable[[jax.Array], jax.Array]) -> Tiles:
  """The function of every tile; it must map zero to zero."""
  return {at: function(tile) for at, tile in x.items()}


def largest(x: Tiles, axis: int) -> dict[int, jax.Array]:
  """Largest magnitude of every row (axis -1) or column (-2), by tile row.

  Returns:
    i -> [..., t, 1] for axis -1, j -> [..., 1, t] for axis -2.
  """
  out: dict[int, jax.Array] = {}
  for (i, j), tile in sorted(x.items()):
    at = i if axis == -1 else j
    top = jnp.max(jnp.abs(tile), axis=axis, keepdims=True)
    out[at] = jnp.maximum(out[at], top) if at in out else top
  return out
