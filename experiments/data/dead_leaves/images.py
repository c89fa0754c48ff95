"""Images of dead leaves, drawn on the device.

Shapes of radius r with density r^-3 occlude one another. Their images have the
power spectrum, the edges and the scale invariance of photographs (Lee, Mumford
and Huang 2001). VibrantLeaves (Achddou, Gousseau, Ladjal and Susstrunk 2025,
arXiv 2504.10201) makes them enough to train denoisers on: shapes that are not
convex, textures of random and of periodic kind, seen in perspective, and a
depth of field. Its geometry, textures and acquisition are in the modules of
this room, each of which says where it departs from that paper. Numbers beyond
the paper's text are those of its authors' published generator.

Measured on tiles of 144 pixels of the 381 photographs, by a script that is not
part of this repository: power falls from 1/72 to 1/4 cycles per pixel with the
exponent 2.40 over 48 images, beside 2.55 of 500 tiles.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.dead_leaves import fields, planes, shapes, textures
from experiments.data.dead_leaves.planes import Plane
from experiments.data.dead_leaves.settings import LeafSettings

# Drawn this much larger, then averaged down: edges are antialiased.
FINER = 2


@functools.partial(jax.jit, static_argnames=("count", "settings"))
def images(
  key: jax.Array, tiles: jax.Array, *, count: int, settings: LeafSettings
) -> jax.Array:
  """Draws [N, T, T, 3] uint8, coloured as tiles [K, T, T, 3] uint8 are."""
  draw = functools.partial(_image, tiles=tiles, s=settings)
  return jax.vmap(draw)(jax.random.split(key, count))


def bank(
  key: jax.Array,
  tiles: jax.Array,
  *,
  count: int,
  settings: LeafSettings,
  at_once: int = 32,
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


def _image(key: jax.Array, tiles: jax.Array, s: LeafSettings) -> jax.Array:
  keys = jax.random.split(key, 4)
  # Neighbours in the list are as a rule of one photograph.
  some = min(s.palette, len(tiles))
  first = jax.random.randint(keys[0], (), 0, len(tiles) - some + 1)
  palette = lax.dynamic_slice_in_dim(tiles, first, some)
  palette = palette.astype(jnp.float32) / 127.5 - 1
  # Most images are nearly sharp: the radius has the density r^(-1/2).
  radius = s.defocus * jax.random.uniform(keys[1]) ** 2
  ends = np.log(s.smallest)
  least = jnp.exp(jax.random.uniform(keys[2], minval=ends[0], maxval=ends[1]))
  far, middle, near = _planes(keys[3], palette, least, s)
  image = planes.composed(far, middle, near, radius, s.defocus)
  return jnp.round((jnp.clip(image, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _planes(
  key: jax.Array, palette: jax.Array, least: jax.Array, s: LeafSettings
) -> list[Plane]:
  """The far, the middle and the near plane, averaged down."""
  size = palette.shape[1]
  keys = jax.random.split(key, 3)
  counts = [s.leaves, max(s.leaves // 5, 1), max(s.leaves // 10, 1)]
  leaves = shapes.draw(keys[0], sum(counts), size, least, s.largest)
  look = textures.draw(keys[1], leaves.pose.radius, palette, s)
  stuff = fields.draw(keys[2], palette, FINER * size, FINER, s.slopes)
  side = (jnp.arange(FINER * size, dtype=jnp.float32) + 0.5) / FINER
  place = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1)
  ends, fronts = np.cumsum([0, *counts]).tolist(), []
  for start, end, share in zip(ends, ends[1:], (1.0, s.middle, s.near)):
    part = jax.tree.map(operator.itemgetter(slice(start, end)), leaves)
    front = shapes.seen(part, shapes.covering(part, share), place)
    fronts.append(jnp.where(front < 0, -1, front + start))
  # Of what no leaf covers, the far plane shows the first.
  fronts[0] = jnp.maximum(fronts[0], 0)
  front = jnp.stack(fronts)  # [3, h, w]
  at = jnp.maximum(front, 0)
  seen, pose = jax.tree.map(lambda a: a[at], (look, leaves.pose))
  cover = jnp.float32(front >= 0)[..., None]
  colours = cover * textures.paint(seen, pose, place, stuff, FINER)
  return [Plane(*map(_averaged, plane)) for plane in zip(colours, cover)]


def _averaged(x: jax.Array) -> jax.Array:
  h, w, c = x.shape
  return x.reshape(h // FINER, FINER, w // FINER, FINER, c).mean((1, 3))
