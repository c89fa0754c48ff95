"""Shapes of dead leaves: their sizes, where they lie, and which one is seen.

Radii have the density r^-3, in a window of a plane without end: a leaf counts
if it may reach the window, so that r leaves a density r^-3 (S + 2 R r)^2, and
falls anywhere where it may (Lee, Mumford and Huang 2001).

VibrantLeaves has that law of sizes, but drops the centres into the window
alone, as many as cover 0.998 of it. All leaves are flattened here as its
rectangles are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.dead_leaves import contours

FLATTEST = 0.5  # ratio of a leaf's sides
AT_ONCE = 8  # leaves a step of the scan


class Pose(NamedTuple):
  """Where leaves [L] lie, or the leaf at every place; lengths in pixels."""

  centre: jax.Array  # [L, 2], row and column
  radius: jax.Array  # [L]
  turn: jax.Array  # [L, 2, 2], a rotation


class Leaves(NamedTuple):
  """Shapes, the last one in front."""

  pose: Pose
  flat: jax.Array  # [L, 2], half axes of a leaf of radius 1
  edges: jax.Array  # [L, contours.SIDES, 2], normals n of n . p < 1 inside
  hole: jax.Array  # [L, 3], centre and radius for a leaf of radius 1
  rate: jax.Array  # [L], -log of the chance that a place is not covered


def draw(
  key: jax.Array, count: int, size: int, least: jax.Array, most: float
) -> Leaves:
  """As many leaves as told before a window of `size` pixels a side."""
  keys = jax.random.split(key, 6)
  radius = radii(keys[0], count, size, least, most)
  margin = reach() * radius
  flat = jax.random.uniform(keys[1], (count,), minval=FLATTEST) ** 0.5
  angle = jax.random.uniform(keys[2], (count,), maxval=2 * np.pi)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  edges, area, jagged = contours.draw(keys[3], count)
  place = jax.random.uniform(keys[4], (count, 2))
  covers = jnp.minimum(area * (radius / (size + 2 * margin)) ** 2, 0.99)
  return Leaves(
    pose=Pose(
      centre=place * (size + 2 * margin)[:, None] - margin[:, None],
      radius=radius,
      turn=jnp.stack([cos, sin, -sin, cos], -1).reshape(count, 2, 2),
    ),
    flat=jnp.stack([1 / flat, flat], -1),
    edges=edges,
    hole=contours.holes(keys[5], count) * jagged[:, None].astype(jnp.float32),
    rate=-jnp.log1p(-covers),
  )


def radii(
  key: jax.Array, count: int, size: int, least: jax.Array, most: float
) -> jax.Array:
  """Of leaves that may reach the window: density r^-3 (size + 2 R r)^2.

  The square's three terms are powers of r, whose distribution functions can be
  inverted; their integrals say how often each is drawn.
  """
  keys = jax.random.split(key)
  m = 2 * reach()
  terms = jnp.stack(
    [
      size**2 / 2 * (least**-2 - most**-2),
      2 * size * m * (1 / least - 1 / most),
      m**2 * jnp.log(most / least),
    ]
  )
  term = jax.random.categorical(keys[0], jnp.log(terms), shape=(count,))
  u = jax.random.uniform(keys[1], (count,))
  drawn = [
    (least**-2 + u * (most**-2 - least**-2)) ** -0.5,
    1 / (1 / least + u * (1 / most - 1 / least)),
    least * (most / least) ** u,
  ]
  return jnp.choose(term, drawn, mode="clip")


def covering(leaves: Leaves, share: float) -> jax.Array:
  """[L] bool: the first leaves, that cover such a share of the window."""
  if share == 1:
    return jnp.full_like(leaves.rate, True, bool)
  # The last leaf is let in where it brings the share nearer.
  return jnp.cumsum(leaves.rate) - leaves.rate / 2 < -np.log1p(-share)


def seen(leaves: Leaves, present: jax.Array, place: jax.Array) -> jax.Array:
  """Number of the leaf in front at every place [h, w, 2], -1 where none is.

  Only the number: what a leaf looks like is computed once, where it is seen.
  """
  count = len(leaves.rate)
  pad = -count % AT_ONCE
  number = jnp.where(present, jnp.arange(count), -1)
  number = jnp.pad(number, (0, pad), constant_values=-1)
  leaves = jax.tree.map(
    lambda a: jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1), mode="edge"),
    leaves,
  )

  def step(front: jax.Array, some: tuple) -> tuple[jax.Array, None]:
    leaf, number = some
    inside = jax.vmap(_inside, (0, None))(leaf, place)
    found = jnp.where(inside, number[:, None, None], -1).max(0)
    return jnp.maximum(front, found), None

  groups = jax.tree.map(
    lambda a: a.reshape(-1, AT_ONCE, *a.shape[1:]), (leaves, number)
  )
  start = jnp.full(place.shape[:2], -1)
  return lax.scan(step, start, groups)[0]


def along(pose: Pose, place: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Places [..., 2], row and column, along the axes of their leaf, in pixels.

  Args:
    pose: of one leaf, or of the leaf at every place.
    place: in the image.
  """
  step = place - pose.centre
  y, x = step[..., 0], step[..., 1]
  turn = pose.turn
  return (
    turn[..., 0, 0] * x + turn[..., 0, 1] * y,
    turn[..., 1, 0] * x + turn[..., 1, 1] * y,
  )


def reach() -> float:
  """How far a leaf of radius 1 may reach."""
  return contours.REACH / FLATTEST**0.5


def _inside(leaf: Leaves, place: jax.Array) -> jax.Array:
  x, y = (
    a / (leaf.pose.radius * flat)
    for a, flat in zip(along(leaf.pose, place), leaf.flat)
  )
  side = contours.direction(x, y)
  nx, ny = leaf.edges[side, 0], leaf.edges[side, 1]
  to_hole = (x - leaf.hole[0]) ** 2 + (y - leaf.hole[1]) ** 2
  return (nx * x + ny * y < 1) & (to_hole >= leaf.hole[2] ** 2)
