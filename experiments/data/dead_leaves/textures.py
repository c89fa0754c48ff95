"""What dead leaves look like: colours, gradients, stripes and micro-textures.

A leaf has two sides, each a colour with or without a micro-texture upon it, and
a map in [0, 1] that leads from one to the other: 0 for a micro-texture alone, a
ramp for a gradient, stripes or checks for the pseudo-periodic ones. Stripes are
those of VibrantLeaves, sines whose crests are cut and whose contrast is raised,
half of them bent by a warp. Half of the textured leaves lie on a tilted plane:
their far end is smaller than the near one, as under its perspective.

Not as there: sides are mixed in RGB, not in Lab; periods that change along the
leaf, which it draws one by one, are a slower sine in the phase; its grids of
lines, 1.6 % of the textures, are the checks whose crests are cut lowest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dead_leaves import fields, shapes
from experiments.data.dead_leaves.fields import Fields
from experiments.data.dead_leaves.settings import LeafSettings
from experiments.data.dead_leaves.shapes import Pose


class Textures(NamedTuple):
  """Of leaves [L], or of the leaf at every place [h, w] in place of [L]."""

  colours: jax.Array  # [L, 2, 3], of both sides
  rough: jax.Array  # [L, 2], 1 where a side has a micro-texture
  field: jax.Array  # [L, 2], which
  offset: jax.Array  # [L, 2], where in it the leaf lies
  ramp: jax.Array  # [L], 1 of a gradient
  steep: jax.Array  # [L], of the ramp
  striped: jax.Array  # [L], 1 of stripes and checks
  waves: jax.Array  # [L, 2, 2], cycles a pixel along both axes
  cut: jax.Array  # [L, 2], where crests are cut
  contrast: jax.Array  # [L, 2]
  drift: jax.Array  # [L], how far the phase of a slower sine runs, radians
  checks: jax.Array  # [L], 1 where both waves count
  bend: jax.Array  # [L], standard deviation of the warp, pixels
  tilt: jax.Array  # [L, 2], towards the far end: change of scale by radius


def draw(
  key: jax.Array, radius: jax.Array, palette: jax.Array, s: LeafSettings
) -> Textures:
  """For leaves of radius [L], in colours of palette [P, T, T, 3] in [-1, 1]."""
  keys = jax.random.split(key, 7)
  count = len(radius)
  spots = [
    jax.random.randint(k, (count, 2), 0, n)
    for k, n in zip(jax.random.split(keys[0], 3), palette.shape)
  ]
  u = jax.random.uniform(keys[1], (count, 1))
  limits = np.cumsum([s.gradient, s.waves, s.mixed])
  kind = (u >= limits).sum(-1)  # a gradient, waves, a mixture, or noise
  kind = jnp.where(radius < s.textured, 4, kind)  # plain
  striped = (kind == 1) | (kind == 2)
  # Of a mixture's sides one in ten is plain.
  rough = jax.random.uniform(keys[2], (count, 2)) < 0.9
  rough = (kind[:, None] == 2) & rough | (kind[:, None] == 3)
  return Textures(
    colours=palette[tuple(spots)],
    rough=rough.astype(jnp.float32),
    field=jax.random.randint(keys[3], (count, 2), 0, fields.FIELDS),
    offset=jax.random.uniform(keys[4], (count, 2), maxval=4096.0),
    ramp=(kind == 0).astype(jnp.float32),
    striped=striped.astype(jnp.float32),
    tilt=_tilts(keys[5], kind, s),
    **_stripes(keys[6], count, s),
  )


def paint(
  look: Textures, pose: Pose, place: jax.Array, stuff: Fields, finer: int
) -> jax.Array:
  """Colours [h, w, 3] at places [h, w, 2], of the leaf that each is on."""
  x, y = shapes.along(pose, place)
  far = (look.tilt[..., 0] * x + look.tilt[..., 1] * y) / pose.radius
  scale = 1 / (1 - far)
  along = jax.nn.sigmoid(look.steep * x / pose.radius)
  x, y = x * scale, y * scale
  bent = fields.at(stuff.warp, finer * x, finer * y) * look.bend[..., None]
  stripes = _map(look, x + bent[..., 0], y + bent[..., 1])
  part = look.ramp * along + look.striped * stripes
  at = [finer * a + look.offset[..., i] for i, a in enumerate((x, y))]
  sides = [
    look.colours[..., i, :]
    + look.rough[..., i, None] * fields.at(stuff.noise, *at, look.field[..., i])
    for i in (0, 1)
  ]
  paint = sides[0] + part[..., None] * (sides[1] - sides[0])
  return jnp.clip(paint, -1, 1)


def _tilts(key: jax.Array, kind: jax.Array, s: LeafSettings) -> jax.Array:
  """Half of the textured leaves are tilted, each in a direction of its own."""
  keys = jax.random.split(key)
  angle = jax.random.uniform(keys[0], kind.shape, maxval=2 * np.pi)
  tilted = jax.random.bernoulli(keys[1], 0.5, kind.shape) & (kind < 4)
  # (1 + c) / (1 - c) is the ratio of the scales, c at the leaf's reach.
  most = (s.tilt - 1) / (s.tilt + 1) / shapes.reach()
  towards = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
  return jnp.where(tilted[:, None], most * towards, 0.0)


def _stripes(
  key: jax.Array, count: int, s: LeafSettings
) -> dict[str, jax.Array]:
  """The numbers of stripes and checks, and the steepness of ramps."""
  keys = jax.random.split(key, 9)

  def uniform(i: int, low: float, high: float, *shape: int) -> jax.Array:
    return jax.random.uniform(keys[i], (count, *shape), minval=low, maxval=high)

  def some(i: int) -> jax.Array:
    return jax.random.bernoulli(keys[i], 0.5, (count,)).astype(jnp.float32)

  # Short periods are the most frequent, those of a density p^(1 / 2.5 - 1).
  short, long = s.periods
  cycles = 1 / (short + (long - short) * uniform(0, 0, 1, 2) ** 2.5)
  # 15 to 45 degrees off a right angle to the first.
  angle = jnp.deg2rad(90 - uniform(1, 15, 45))
  second = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
  first = jnp.broadcast_to(jnp.array([1.0, 0.0]), second.shape)
  return {
    "waves": jnp.stack([first, second], 1) * cycles[..., None],
    "cut": uniform(2, 0.05, 1, 2),
    "contrast": uniform(3, 1, 10, 2),
    "drift": some(4) * uniform(5, 0, np.pi),
    "checks": some(6),
    "bend": some(7) * s.warp * uniform(8, 0.5, 1),
    # The key of the periods once more: no leaf has a ramp and stripes.
    "steep": uniform(0, 2, 10, 2)[:, 0],
  }


def _map(look: Textures, x: jax.Array, y: jax.Array) -> jax.Array:
  """Stripes, or their product where a leaf has checks."""
  found = []
  for i in (0, 1):
    phase = look.waves[..., i, 0] * x + look.waves[..., i, 1] * y
    phase = 2 * np.pi * phase + look.drift * jnp.sin(phase)
    height = 0.5 + 0.5 * jnp.sin(phase)
    height = jnp.where(height > look.cut[..., i], 1.0, height)
    found.append(_contrasted(height, look.contrast[..., i]))
  return found[0] * jnp.where(look.checks > 0, found[1], 1.0)


def _contrasted(x: jax.Array, contrast: jax.Array) -> jax.Array:
  """A sigmoid about 1/2 that keeps 0 and 1."""
  low = jax.nn.sigmoid(-contrast / 2)
  return (jax.nn.sigmoid(contrast * (x - 0.5)) - low) / (1 - 2 * low)
