"""Dead leaves: images of shapes that occlude one another, without end of scale.

Shapes of radius r with density r^-3 fall at random places, each over those
before it. Their images have the power spectrum, the edges and the scale
invariance of photographs (Lee, Mumford and Huang 2001). Every image takes its
colours and textures from a few tiles of training photographs; shading and blur
make it softer.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

# Drawn this much larger, then averaged down: edges are antialiased.
FINER = 2


@dataclasses.dataclass(frozen=True)
class LeafSettings:
  """The model's numbers; lengths in pixels of the finished image."""

  leaves: int = 1000  # shapes an image
  # range of the least radius, drawn evenly in log for every image
  smallest: tuple[float, float] = (1.5, 12.0)
  largest: float = 60.0  # greatest radius
  palette: int = 4  # tiles an image takes colours and textures from
  plain: float = 0.3  # share of the shapes without texture
  shading: float = 0.3  # greatest change of brightness across a shape
  blur: float = 1.0  # greatest standard deviation of the blur

  def __post_init__(self) -> None:
    """Raises ValueError for numbers out of range, of which images are NaN."""
    least, most = self.smallest
    if not 0 < least <= most <= self.largest < math.inf:
      raise ValueError(
        "smallest must be two ascending radii, positive and at most largest; "
        f"got {self.smallest} and {self.largest}"
      )
    if min(self.leaves, self.palette) < 1:
      raise ValueError(
        f"leaves and palette must be at least 1, got {self.leaves} and "
        f"{self.palette}"
      )
    for name in ("plain", "shading"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"{name} must lie in [0, 1], got {getattr(self, name)}"
        )
    if not 0 <= self.blur < math.inf:
      raise ValueError(f"blur must be at least 0, got {self.blur}")


class _Leaf(NamedTuple):
  """One shape; leading axes count shapes."""

  centre: jax.Array  # [2], row and column
  radius: jax.Array
  flatness: jax.Array  # of the other half axis
  turn: jax.Array  # angle
  power: jax.Array  # 1 a diamond, 2 an ellipse, large a rectangle
  tile: jax.Array  # whose texture
  colour: jax.Array  # [3]
  texture: jax.Array  # strength
  shading: jax.Array


@functools.partial(jax.jit, static_argnames=("count", "settings"))
def images(
  key: jax.Array, tiles: jax.Array, *, count: int, settings: LeafSettings
) -> jax.Array:
  """Draws [N, T, T, 3] uint8, coloured as tiles [K, T, T, 3] uint8 are."""
  draw = functools.partial(_image, tiles=tiles, settings=settings)
  return jax.vmap(draw)(jax.random.split(key, count))


def bank(
  key: jax.Array,
  tiles: jax.Array,
  *,
  count: int,
  settings: LeafSettings,
  at_once: int = 64,
) -> jax.Array:
  """As `images`, `at_once` together: memory stays bounded."""
  parts = [
    images(
      jax.random.fold_in(key, start),
      tiles,
      count=min(at_once, count - start),
      settings=settings,
    )
    for start in range(0, count, at_once)
  ]
  return jnp.concatenate(parts)


def _image(
  key: jax.Array, tiles: jax.Array, settings: LeafSettings
) -> jax.Array:
  size = tiles.shape[1]
  keys = jax.random.split(key, 3)
  leaves = _leaves(keys[0], tiles, settings)
  ground = _enlarged(_tile(tiles, leaves.tile[0]))
  side = jnp.arange(FINER * size) / FINER
  place = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1)

  def fall(canvas: jax.Array, leaf: _Leaf) -> tuple[jax.Array, None]:
    inside, along = _shape(leaf, place)
    texture = _tile(tiles, leaf.tile)
    texture = leaf.texture * (texture - texture.mean((0, 1)))
    paint = leaf.colour + leaf.shading * along[..., None] + _enlarged(texture)
    return jnp.where(inside[..., None], paint, canvas), None

  canvas, _ = lax.scan(fall, ground, leaves)
  fine = canvas.reshape(size, FINER, size, FINER, 3).mean((1, 3))
  std = settings.blur * jnp.maximum(jax.random.uniform(keys[1], minval=-1), 0)
  soft = _blurred(jnp.clip(fine, -1, 1), std)
  return jnp.round((soft + 1) * 127.5).astype(jnp.uint8)


def _leaves(key: jax.Array, tiles: jax.Array, settings: LeafSettings) -> _Leaf:
  count, size = settings.leaves, tiles.shape[1]
  keys = jax.random.split(key, 11)

  def uniform(
    i: int, low: ArrayLike, high: ArrayLike, *shape: int
  ) -> jax.Array:
    return jax.random.uniform(keys[i], (count, *shape), minval=low, maxval=high)

  # The inverse distribution function of the density r^-3 between two radii.
  smallest = jnp.exp(
    jax.random.uniform(
      keys[9],
      minval=np.log(settings.smallest[0]),
      maxval=np.log(settings.smallest[1]),
    )
  )
  radius = uniform(0, settings.largest**-2, smallest**-2) ** -0.5
  palette = jax.random.randint(keys[10], (settings.palette,), 0, len(tiles))
  ends = jnp.array([settings.palette, size, size])
  at = jax.random.randint(keys[1], (count, 3), 0, ends)
  tile = palette[at[:, 0]]
  colour = tiles[tile, at[:, 1], at[:, 2]]
  textured = uniform(2, 0, 1) > settings.plain
  margin = settings.largest / 2
  return _Leaf(
    centre=uniform(3, -margin, size + margin, 2),
    radius=radius,
    flatness=uniform(4, 0.3, 1.0),
    turn=uniform(5, 0, np.pi),
    power=2.0 ** uniform(6, -0.2, 4.0),
    tile=tile,
    colour=_signed(colour),
    texture=jnp.where(textured, uniform(7, 0.1, 1.0), 0.0),
    shading=uniform(8, -settings.shading, settings.shading),
  )


def _shape(leaf: _Leaf, place: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Whether places [h, w, 2] lie in the leaf, and how far along it, [-1, 1]."""
  cos, sin = jnp.cos(leaf.turn), jnp.sin(leaf.turn)
  rows, columns = jnp.moveaxis((place - leaf.centre) / leaf.radius, -1, 0)
  along = cos * columns + sin * rows
  across = (cos * rows - sin * columns) / leaf.flatness
  reach = jnp.maximum(jnp.abs(along), 1e-6) ** leaf.power
  reach += jnp.maximum(jnp.abs(across), 1e-6) ** leaf.power
  return reach < 1, jnp.clip(along, -1, 1)


def _tile(tiles: jax.Array, index: jax.Array) -> jax.Array:
  return _signed(lax.dynamic_index_in_dim(tiles, index, keepdims=False))


def _signed(pixels: jax.Array) -> jax.Array:
  """uint8 -> [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1


def _enlarged(x: jax.Array) -> jax.Array:
  return jnp.repeat(jnp.repeat(x, FINER, 0), FINER, 1)


def _blurred(x: jax.Array, std: jax.Array) -> jax.Array:
  """A Gaussian of 7 taps along both axes, the border repeated; x [h, w, 3]."""
  taps = jnp.arange(-3.0, 4.0) / jnp.maximum(std, 1e-3)
  taps = jnp.exp(-0.5 * taps**2)
  taps /= taps.sum()
  for axis in (0, 1):
    pad = [(3, 3) if i == axis else (0, 0) for i in range(3)]
    wide = jnp.pad(x, pad, mode="edge")
    x = jnp.zeros_like(x) + sum(
      taps[i] * lax.slice_in_dim(wide, i, i + x.shape[axis], axis=axis)
      for i in range(7)
    )
  return x
