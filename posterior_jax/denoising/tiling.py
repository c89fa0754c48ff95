"""Denoisers for images of any size: overlapping tiles, and sides padded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import fields
from posterior_jax.base import Denoiser
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiled:
  """A denoiser that works on overlapping tiles; made by `tiled`.

  Attributes:
    denoise: of one tile.
    tile: (height, width) of a tile.
    overlap: pixels that neighbours share, at least.
    margin: outermost pixels of a tile that only serve as context.
  """

  denoise: Denoiser
  tile: tuple[int, int] = dataclasses.field(metadata={"static": True})
  overlap: int = dataclasses.field(metadata={"static": True})
  margin: int = dataclasses.field(metadata={"static": True})

  __repr__ = short_repr

  def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[x0 | x], tile by tile: x [M, H, W, C], sigma [M] -> [M, H, W, C]."""
    height, width = x.shape[1:3]
    x = _pad(x, max(height, self.tile[0]), max(width, self.tile[1]))
    (tops, rows), (lefts, columns) = (
      _cuts(size, tile, self.overlap, self.margin)
      for size, tile in zip(x.shape[1:3], self.tile)
    )
    shape = (x.shape[0], *self.tile, x.shape[3])

    def one(total: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
      i, j = which
      corner = (0, jnp.asarray(tops)[i], jnp.asarray(lefts)[j], 0)
      part = lax.dynamic_slice(x, corner, shape)
      # Recomputed in a VJP: a network keeps many times the memory of its tile.
      found = jax.checkpoint(self.denoise)(part, sigma)
      weight = jnp.asarray(rows)[i][:, None] * jnp.asarray(columns)[j]
      there = lax.dynamic_slice(total, corner, shape)
      there = there + weight[..., None] * found.astype(jnp.float32)
      return lax.dynamic_update_slice(total, there, corner), None

    order = np.stack(
      np.meshgrid(np.arange(len(tops)), np.arange(len(lefts)), indexing="ij"),
      axis=-1,
    ).reshape(-1, 2)
    # One tile after another: the memory of one, where a vmap would take all.
    total, _ = lax.scan(
      one, jnp.zeros(x.shape, jnp.float32), jnp.asarray(order)
    )
    return total[:, :height, :width]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Padded:
  """A denoiser for sides it does not divide; made by `padded`.

  Attributes:
    denoise: of images whose sides are divisible by `multiple`.
    multiple: the unit of a side.
  """

  denoise: Denoiser
  multiple: int = dataclasses.field(metadata={"static": True})

  __repr__ = short_repr

  def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[x0 | x]: x [M, H, W, C], sigma [M] -> [M, H, W, C]."""
    height, width = x.shape[1:3]
    unit = self.multiple
    x = _pad(x, -(-height // unit) * unit, -(-width // unit) * unit)
    return self.denoise(x, sigma)[:, :height, :width]


def tiled(
  denoise: Denoiser,
  *,
  tile: int | tuple[int, int] = 256,
  overlap: int = 64,
  margin: int | None = None,
) -> Tiled:
  """A denoiser of images of any size from one of tiles.

  Tiles are spread evenly and overlap by `overlap` pixels or more. A tile's
  outermost `margin` pixels are context only, and where two tiles meet, their
  answers are blended linearly, as MultiDiffusion (Bar-Tal et al. 2023) does
  with equal weights. The result is that of the whole image where the denoiser
  looks no further than `margin`. An image smaller than a tile is mirrored up to
  its size. Tiles are done one after another, each for the whole batch, so the
  memory is that of a tile; for a VJP as well, which does each tile once more.

  Args:
    denoise: D, on [M, *tile, C].
    tile: side, or (height, width), in pixels.
    overlap: at least 0, below the tile's sides.
    margin: at least 0 and at most half of the overlap; None: a quarter of it.

  Returns:
    D on [M, H, W, C]; a pytree, so that new parameters do not retrace.

  Raises:
    TypeError: if the denoiser is not callable.
    ValueError: for sizes that do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(16, 16))
    >>> denoise = pj.tiled(prior.denoise, tile=16, overlap=8)
    >>> denoise(jnp.zeros((1, 24, 40, 3)), jnp.ones(1)).shape
    (1, 24, 40, 3)
  """
  sides = tuple(tile) if isinstance(tile, tuple | list) else (tile, tile)
  whole = all(isinstance(n, int | np.integer) and n > 0 for n in sides)
  if len(sides) != 2 or not whole:
    raise ValueError(f"tile must be one or two positive integers, got {tile}")
  overlap = fields.whole("overlap", overlap)
  if not 0 <= overlap < min(sides):
    raise ValueError(
      f"overlap must lie in [0, {min(sides)}), below the tile's sides; got "
      f"{overlap}"
    )
  margin = overlap // 4 if margin is None else fields.whole("margin", margin)
  if not 0 <= 2 * margin <= overlap:
    raise ValueError(
      f"margin must lie in [0, {overlap // 2}], half of the overlap; got "
      f"{margin}"
    )
  return Tiled(_as_pytree(denoise), sides, overlap, margin)


def padded(denoise: Denoiser, *, multiple: int = 8) -> Padded:
  """A denoiser of images of any size from one whose sides have a unit.

  The image is mirrored at its lower and right border up to the next multiple,
  and what was added is cut off again.

  Args:
    denoise: D, on sides divisible by `multiple`, such as a U-Net's.
    multiple: at least 1.

  Returns:
    D on [M, H, W, C]; a pytree, so that new parameters do not retrace.

  Raises:
    TypeError: if the denoiser is not callable.
    ValueError: if multiple is below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(16, 16))
    >>> denoise = pj.padded(prior.denoise, multiple=16)
    >>> denoise(jnp.zeros((1, 13, 15, 3)), jnp.ones(1)).shape
    (1, 13, 15, 3)
  """
  if fields.whole("multiple", multiple) < 1:
    raise ValueError(f"multiple must be at least 1, got {multiple}")
  return Padded(_as_pytree(denoise), multiple)


def _as_pytree(denoise: Denoiser) -> Denoiser:
  """A plain function would be an invalid leaf of the wrapper."""
  if not callable(denoise):
    raise TypeError(f"denoise must be callable, got {type(denoise).__name__}")
  if jax.tree_util.all_leaves([denoise]):
    return jax.tree_util.Partial(denoise)
  return denoise


def _pad(x: jax.Array, height: int, width: int) -> jax.Array:
  """Mirrored at the lower and right border up to a size."""
  below, right = height - x.shape[1], width - x.shape[2]
  if not below and not right:
    return x
  return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)), mode="symmetric")


def _cuts(
  size: int, tile: int, overlap: int, margin: int
) -> tuple[np.ndarray, np.ndarray]:
  """Where tiles start along an axis, [K], and their weights, [K, tile].

  The weights of all tiles sum to 1 at every pixel.
  """
  count = 1 + max(0, -(-(size - tile) // (tile - overlap)))
  starts = np.round(np.linspace(0, size - tile, count)).astype(int)
  # From pixel centre to pixel centre, 0 within the margin and 1 behind the
  # ramp.
  ramp = (np.arange(tile) + 0.5 - margin) / max(overlap - 2 * margin, 1)
  weights = np.ones((count, tile))
  weights[1:] = np.minimum(weights[1:], ramp)
  weights[:-1] = np.minimum(weights[:-1], ramp[::-1])
  weights = np.maximum(weights, 0)
  # Divided by their sum: three tiles meet where sizes leave no other way.
  total = np.zeros(size)
  for start, weight in zip(starts, weights):
    total[start : start + tile] += weight
  shares = [w / total[s : s + tile] for s, w in zip(starts, weights)]
  return starts.astype(np.int32), np.array(shares, np.float32)
