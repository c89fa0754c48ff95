"""Random fields that textures are read from, without borders.

Micro-textures as VibrantLeaves': random pixels of a patch of a photograph,
whose spectrum is given the amplitude 1 / (|u|^a + |v|^a), and which then get
back the deviation that each colour had; their mean is the colour of the leaf.
It draws one for every
leaf; here an image has a few, and leaves show them from random places on,
turned. A second field, Gaussian and smooth, bends stripes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FIELDS = 8  # micro-textures an image
PATCH = 50  # side of the patch that colours are from
SMOOTH = (5.0, 10.0)  # standard deviations of the blur that makes warps, pixels


class Fields(NamedTuple):
  """On a torus."""

  noise: jax.Array  # [FIELDS, F, F, 3], of mean 0
  warp: jax.Array  # [F, F, 2], of mean 0 and variance 1


def draw(
  key: jax.Array,
  tiles: jax.Array,
  side: int,
  finer: int,
  slopes: tuple[float, float],
) -> Fields:
  """Fields of `side` samples, `finer` of them a pixel.

  Args:
    key: of the draw.
    tiles: [P, T, T, 3] in [-1, 1], that colours are from.
    side: F.
    finer: samples a pixel.
    slopes: range of the exponent a.
  """
  keys = jax.random.split(key, 3)
  drawn = jax.vmap(_noise, (0, None, None, None))
  noise = drawn(jax.random.split(keys[0], FIELDS), tiles, side, slopes)
  std = finer * jax.random.uniform(keys[1], minval=SMOOTH[0], maxval=SMOOTH[1])
  u, v = _frequencies(side)
  gain = jnp.exp(-2 * (np.pi * std) ** 2 * (u**2 + v**2)).at[0, 0].set(0)
  white = jax.random.normal(keys[2], (side, side, 2))
  warp = filtered(white, gain[..., None])
  return Fields(noise, warp / warp.std((0, 1)))


def at(
  field: jax.Array, x: jax.Array, y: jax.Array, *first: jax.Array
) -> jax.Array:
  """Linear interpolation on the torus: field [*, F, F, c], x, y in samples."""
  side = field.shape[-2]
  left, top = jnp.floor(x), jnp.floor(y)
  right, below = (x - left)[..., None], (y - top)[..., None]
  i, j = (a.astype(jnp.int32) % side for a in (top, left))
  k, n = (i + 1) % side, (j + 1) % side
  above = field[(*first, i, j)] * (1 - right) + field[(*first, i, n)] * right
  under = field[(*first, k, j)] * (1 - right) + field[(*first, k, n)] * right
  return above * (1 - below) + under * below


def _noise(
  key: jax.Array, tiles: jax.Array, side: int, slopes: tuple[float, float]
) -> jax.Array:
  """[F, F, 3]: one micro-texture, less its mean."""
  keys = jax.random.split(key, 4)
  size = tiles.shape[1]
  patch = min(PATCH, size)
  tile = jax.random.randint(keys[0], (), 0, len(tiles))
  corner = jax.random.randint(keys[1], (2,), 0, size - patch + 1)
  rows, columns = jnp.moveaxis(
    corner + jax.random.randint(keys[2], (side, side, 2), 0, patch), -1, 0
  )
  pixels = tiles[tile, rows, columns]
  slope = jax.random.uniform(keys[3], minval=slopes[0], maxval=slopes[1])
  u, v = jnp.abs(_frequencies(side))
  amplitude = 1 / (u**slope + v**slope).at[0, 0].set(1)
  # The phases are those of the pixels, the amplitudes are not.
  wave = jnp.fft.rfft2(pixels, axes=(0, 1))
  gain = amplitude[..., None] / jnp.maximum(jnp.abs(wave), 1e-9)
  wave *= gain.astype(wave.dtype)
  shaped = jnp.fft.irfft2(wave.at[0, 0].set(0), (side, side), (0, 1))
  spread = jnp.maximum(shaped.std((0, 1)), 1e-9)
  return shaped * (pixels.std((0, 1)) / spread)


def _frequencies(side: int) -> np.ndarray:
  """[2, F, F / 2 + 1] cycles a sample, of `rfft2`."""
  rows, columns = np.fft.fftfreq(side), np.fft.rfftfreq(side)
  return np.stack(np.meshgrid(rows, columns, indexing="ij")).astype(np.float32)


def filtered(x: jax.Array, gain: jax.Array) -> jax.Array:
  """x [h, w, c] on a torus, its `rfft2` times a gain [h, w / 2 + 1, 1]."""
  wave = jnp.fft.rfft2(x, axes=(0, 1)) * gain.astype(jnp.complex64)
  return jnp.fft.irfft2(wave, x.shape[:2], (0, 1))
