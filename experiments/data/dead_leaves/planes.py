"""Three planes of dead leaves at three depths, the middle one in focus.

The planes before and behind it are blurred by a disc, that of a lens; a plane
in front lets through what its blurred cover leaves open. VibrantLeaves blurs
the near plane's colours together with what lies behind them and covers by the
blurred cover again, which shows the sharp plane twice at its border; here
colours are blurred times their cover.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dead_leaves import fields


class Plane(NamedTuple):
  """What a plane shows; the colours are times the cover."""

  colours: jax.Array  # [h, w, 3] in [-1, 1]
  cover: jax.Array  # [h, w, 1] in [0, 1]


def composed(
  far: Plane, middle: Plane, near: Plane, radius: jax.Array, most: float
) -> jax.Array:
  """The image [h, w, 3], with far and near blurred by a disc's radius."""
  stack = jnp.concatenate([far.colours, near.colours, near.cover], -1)
  soft = blurred(stack, radius, most)
  image = middle.colours + (1 - middle.cover) * soft[..., :3]
  return soft[..., 3:6] + (1 - soft[..., 6:]) * image


def blurred(x: jax.Array, radius: jax.Array, most: float) -> jax.Array:
  """Means over discs of radius at most `most`, the border repeated.

  x is [h, w, c], lengths are pixels.
  """
  pad = int(np.ceil(most)) + 1
  wide = jnp.pad(x, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
  rows, columns = (
    np.minimum(np.arange(n), n - np.arange(n)) for n in wide.shape[:2]
  )
  far = np.hypot(rows[:, None], columns).astype(np.float32)
  # The border of the disc is a pixel wide; of radius 0, the pixel alone.
  disc = jnp.clip(radius + 0.5 - far, 0, 1)
  disc = jnp.where(radius < 0.5, jnp.where(far == 0, 1, disc), disc)
  gain = jnp.fft.rfft2(disc / disc.sum())[..., None]
  return fields.filtered(wide, gain)[pad:-pad, pad:-pad]
