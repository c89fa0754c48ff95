"""Contours of dead leaves: jagged polygons, discs and rectangles.

Half of the images have jagged leaves alone, the others discs, rectangles and
jagged ones alike, as VibrantLeaves. Its jagged shapes are concave hulls
(alpha-shapes) of 50 to 100 points in a disc of 1.5 r. They need a
triangulation, which is not for an accelerator; here they are polygons about a
centre, their corners drawn evenly in that disc. Area and raggedness are near
theirs: of 400 hulls by shapely's `concave_hull(ratio=0.3)`, area 0.94 pi r^2,
0.59 of the convex hull's and 0.23 of that of a disc with as long a border; of
300 of these polygons 0.97, 0.64 and 0.21 (by a script that is not part of this
repository). Half of them are smoothed and half have a hole, as theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Directions in which a contour may have a corner: a multiple of 8, so that the
# corners of a square are among them.
SIDES = 64
REACH = 1.5  # of a contour of radius 1
CORNERS = 0.4  # share of the directions in which a jagged contour has one


def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Contours of radius 1.

  Args:
    key: of the draw.
    count: L.

  Returns:
    [L, SIDES, 2], the normal n of the edge n . p = 1 from every direction on;
    [L], areas; [L] bool, which are jagged.
  """
  keys = jax.random.split(key, 5)
  number, directions = np.arange(SIDES), jnp.float32(_directions())
  kind = jax.random.randint(keys[0], (count, 1), 0, 3)
  jagged = (kind == 2) | jax.random.bernoulli(keys[1])
  square = ~jagged & (kind == 1)
  corner = jax.random.uniform(keys[2], (count, SIDES)) < CORNERS
  # Edges must not go about the centre.
  corner |= number % (SIDES // 4) == 0
  diagonal = number % (SIDES // 4) == SIDES // 8
  corner = jnp.where(jagged, corner, jnp.where(square, diagonal, True))
  # Evenly in the disc, but not in its centre, where a corner has no direction;
  # a square and a disc have the area pi.
  u = jax.random.uniform(keys[3], (count, SIDES), minval=1e-3)
  rough = REACH * u**0.5
  reach = jnp.where(jagged, rough, jnp.where(square, (np.pi / 2) ** 0.5, 1.0))
  edges = _edges(reach, corner)
  # Rounded where every direction has a corner, each between its neighbours.
  to_border = 1 / (edges * directions).sum(-1)
  nearby = (jnp.roll(to_border, 1, 1) + jnp.roll(to_border, -1, 1)) / 4
  smooth = jagged & jax.random.bernoulli(keys[4], 0.5, (count, 1))
  to_border = jnp.where(smooth, to_border / 2 + nearby, to_border)
  edges = jnp.where(
    smooth[..., None], _edges(to_border, jnp.full_like(corner, True)), edges
  )
  points = to_border[..., None] * directions
  after = jnp.roll(points, -1, 1)
  area = _cross(points, after).sum(-1) / 2
  return edges, area, jagged[:, 0]


def holes(key: jax.Array, count: int) -> jax.Array:
  """Holes of leaves of radius 1: [L, 3], their centres and radii.

  Centres lie within 0.5 of the middle along either axis, radii are 0.1 to 0.3,
  and 0, no hole, for half of the leaves.
  """
  keys = jax.random.split(key, 3)
  middle = jax.random.uniform(keys[0], (count, 2), minval=-0.5, maxval=0.5)
  radius = jax.random.uniform(keys[1], (count, 1), minval=0.1, maxval=0.3)
  radius *= jax.random.bernoulli(keys[2], 0.5, (count, 1)).astype(jnp.float32)
  return jnp.concatenate([middle, radius], -1)


def direction(x: jax.Array, y: jax.Array) -> jax.Array:
  """Number of the direction, in [0, SIDES), at or before that of a point."""
  # Even along the border of a square, not of a disc: no arc tangent.
  part = x / jnp.maximum(jnp.abs(x) + jnp.abs(y), 1e-9)
  number = SIDES / 4 * jnp.where(y >= 0, 1 - part, 3 + part)
  return jnp.minimum(number.astype(jnp.int32), SIDES - 1)


def _directions() -> np.ndarray:
  """[SIDES, 2] of unit length: even along the border of a square."""
  t = np.arange(SIDES) * 4 / SIDES
  x = np.where(t <= 2, 1 - t, t - 3)
  y = np.where(t <= 2, 1, -1) * (1 - np.abs(x))
  return np.stack([x, y], -1) / np.hypot(x, y)[:, None]


def _edges(reach: jax.Array, corner: jax.Array) -> jax.Array:
  """Normals of the edges from corner to corner, one for every direction."""
  twice = jnp.tile(corner, 2)
  number = jnp.arange(2 * SIDES)
  before = lax.cummax(jnp.where(twice, number, -1), axis=1)[:, SIDES:]
  after = lax.cummin(jnp.where(twice, number, 2 * SIDES), axis=1, reverse=True)[
    :, 1 : SIDES + 1
  ]
  points = reach[..., None] * jnp.float32(_directions())
  start, end = (
    jnp.take_along_axis(points, at[..., None] % SIDES, axis=1)
    for at in (before, after)
  )
  step = end - start
  normal = jnp.stack([step[..., 1], -step[..., 0]], -1)
  return normal / jnp.maximum(_cross(start, end), 1e-6)[..., None]


def _cross(a: jax.Array, b: jax.Array) -> jax.Array:
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
