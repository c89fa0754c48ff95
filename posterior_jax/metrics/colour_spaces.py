"""sRGB in [0, 1], the light of it, and colours as far apart as they look.

Images are [..., 3, H, W] here: what mixes colours is a product in front of
planes that lie together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# sRGB's red, green and blue, and its white D65, by chromaticity x, y.
_PRIMARIES = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
_WHITE = np.array([0.31271, 0.32902])
_PRIMARY_XYZ, _WHITE_XYZ = (
  np.concatenate([xy, 1 - xy.sum(axis=-1, keepdims=True)], axis=-1)
  for xy in (_PRIMARIES, _WHITE)
)
_WHITE_XYZ = _WHITE_XYZ / _WHITE[1]
# Of linear sRGB: X, Y, Z, each 1 at white, and Y, X - Y, Y - Z of them, which
# are the paper's Y, Cx, Cz but for factors that blurring leaves alone.
_XYZ = _PRIMARY_XYZ.T / _WHITE_XYZ[:, None]
_XYZ = _XYZ * np.linalg.solve(_XYZ, np.ones(3))
OPPONENT = np.array([[0, 1, 0], [1, -1, 0], [0, 1, -1]]) @ _XYZ
# CIELAB is linear below the cube of this.
_DELTA = 6 / 29


def linear(x: jax.Array) -> jax.Array:
  """sRGB in [0, 1] to light, IEC 61966-2-1."""
  return jnp.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)


def mixed(matrix: np.ndarray, image: jax.Array) -> jax.Array:
  """Colours times a matrix: [..., 3, H, W]."""
  return jnp.einsum(
    "ij,...jhw->...ihw",
    jnp.asarray(matrix, image.dtype),
    image,
    precision=lax.Precision.HIGHEST,
  )


def hunt(rgb: jax.Array) -> jax.Array:
  """CIELAB, its colours paler in the dark: linear RGB [..., 3, H, W]."""
  xyz = mixed(_XYZ, rgb)
  root = jnp.cbrt(jnp.maximum(xyz, _DELTA**3))  # finite slope at black
  bent = jnp.where(
    xyz > _DELTA**3, root, xyz / (3 * _DELTA**2) + (2 / 3) * _DELTA
  )
  x, y, z = jnp.moveaxis(bent, -3, 0)
  light = 116 * y - 16
  paler = 0.01 * light
  return jnp.stack(
    [light, paler * 500 * (x - y), paler * 200 * (y - z)], axis=-3
  )
