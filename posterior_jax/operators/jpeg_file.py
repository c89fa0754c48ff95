"""JPEG as a measurement: the picture that a file shows when it is decoded.

A file keeps rounded cosine coefficients of 8 x 8 blocks. Rounding has no
derivative that would help: it is 0 nearly everywhere. The forward map rounds as
the file does, and its tangent takes every rounding for the identity
(straight-through, Bengio et al. 2013, arXiv 1308.3432), so that what is off by
a step of the table is moved by that step.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from posterior_jax import fields
from posterior_jax.operators.shapes import check_image_shape
from posterior_jax.operators.smooth_function import Nonlinear, untried

BLOCK = 8
# Sums of whole levels meet a half often. libjpeg's integers know on which side
# it goes, floats come out on either.
TIE = 1e-4
# ITU-T T.81, tables K.1 and K.2: what libjpeg scales by the quality.
_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
# JFIF: luma and two colour differences of red, green and blue, and back.
# libjpeg's 16 bits: float32 holds their products with levels without an error.
_TO_COLOURS = (
  np.array(
    [
      [19595, 38470, 7471],
      [-11059, -21709, 32768],
      [32768, -27439, -5329],
    ]
  )
  / 2**16
)
_FROM_COLOURS = np.array(
  [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]
)
# Of the 16 bits: halves of a colour difference go down, those of luma up.
_UNIT = np.array([0, 2**-16, 2**-16], np.float32)


def jpeg(
  image_shape: tuple[int, int, int], *, quality: int = 75, chroma: int = 2
) -> Nonlinear:
  """The picture that a JPEG file shows, of a picture in [-1, 1].

    y = D(Q round(E(x) / Q))

  E: levels of 0 to 255, luma and colour differences, cosines of blocks; D: back
  again, clipped and rounded. More than 19 of 20 values are within a level of
  what libjpeg decodes, whose integers round some coefficients otherwise; none
  of the colours drifts. Taken by the samplers that `nonlinear` names; samples
  vary less than the posterior, since the tangent calls coefficients
  known that were rounded to 0.

  Args:
    image_shape: (H, W, C), C 1 or 3, H and W divisible by 8, of colours that
      are halved by 16.
    quality: of libjpeg's tables, 1 to 100.
    chroma: how many times smaller the colour differences are kept, on both
      axes: 2 as cameras and Pillow do, or 1.

  Raises:
    ValueError: for sides, channels, quality or chroma that are out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.jpeg((16, 16, 3), quality=10)
    >>> ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 16)[:, None], (16, 16, 3))
    >>> y = operator.forward(ramp)
    >>> bool((y == operator.forward(y)).mean() > 0.9)  # little is lost again
    True
  """
  height, width, channels = image_shape = check_image_shape(image_shape)
  if not 1 <= fields.whole("quality", quality) <= 100:
    raise ValueError(f"quality must lie in [1, 100], got {quality}")
  if fields.whole("chroma", chroma) not in (1, 2):
    raise ValueError(f"chroma must be 1 or 2, got {chroma}")
  if channels not in (1, 3):
    raise ValueError(f"image_shape must have 1 or 3 channels, got {channels}")
  unit = BLOCK * (chroma if channels == 3 else 1)
  if height % unit or width % unit:
    raise ValueError(
      f"image_shape must have sides divisible by {unit}, got {image_shape}"
    )
  return untried(_Coded(quality, chroma), image_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Coded:
  """Encodes and decodes; a value, so that equal ones do not compile again."""

  quality: int = dataclasses.field(metadata={"static": True})
  chroma: int = dataclasses.field(metadata={"static": True})

  def __call__(self, x: jax.Array) -> jax.Array:
    levels = _up(jnp.clip((x + 1) * 127.5, 0, 255))  # [H, W, C]
    if x.shape[-1] == 1:
      found = self._kept(levels[..., 0] - 128, _LUMA)[..., None] + 128
    else:
      parts = _up(_product(_TO_COLOURS, levels) - _UNIT)
      luma = self._kept(parts[..., 0] - 128, _LUMA) + 128
      back = [luma, *(self._difference(parts[..., i]) for i in (1, 2))]
      found = _product(_FROM_COLOURS, jnp.stack(back, -1))
    return _up(jnp.clip(found, 0, 255)) / 127.5 - 1

  def _difference(self, part: jax.Array) -> jax.Array:
    """A colour difference [H, W], kept smaller and enlarged as libjpeg does."""
    height, width = part.shape
    if self.chroma == 1:
      return self._kept(part, _CHROMA)
    small = part.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    # Halves go down and up alternately, by the column, so that none drifts.
    turns = np.resize(np.array([-1 / 4, 0], np.float32), width // 2)
    kept = self._kept(_up(small + turns), _CHROMA)
    large = jax.image.resize(kept, part.shape, "linear")  # in 16ths
    turns = np.resize(np.array([0, -1 / 16], np.float32), width)
    return _up(large + turns + TIE)

  def _kept(self, part: jax.Array, table: str) -> jax.Array:
    """What is left of [h, w] about 0 when its blocks are rounded."""
    height, width = part.shape
    cosines = jnp.asarray(
      scipy.fft.dct(np.eye(BLOCK), axis=0, norm="ortho"), part.dtype
    )
    steps = jnp.asarray(_steps(table, self.quality), part.dtype)  # [8, 8]
    blocks = part.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    found = einsum("ui,aibj,vj->abuv", cosines, blocks, cosines)
    # libjpeg has eighths of a coefficient, as whole numbers.
    found = _up(8 * found) / 8
    found = steps * _from_zero(found / steps)
    blocks = einsum("ui,abuv,vj->aibj", cosines, found, cosines)
    return _up(jnp.clip(blocks.reshape(height, width), -128, 127))


def _steps(table: str, quality: int) -> np.ndarray:
  """libjpeg's table of a quality, [8, 8], from 1 to 255."""
  base = np.array(table.split(), int).reshape(BLOCK, BLOCK)
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  return np.clip((base * scale + 50) // 100, 1, 255)


def _product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """A matrix [3, 3] times colours [H, W, 3]."""
  # A GPU's or TPU's shorter products would be off by a level.
  return jnp.matmul(
    x, jnp.asarray(matrix.T, x.dtype), precision=jax.lax.Precision.HIGHEST
  )


def _up(x: jax.Array) -> jax.Array:
  """Rounded, halves up, with the derivative of the identity."""
  # libjpeg adds a half and shifts right, also what is negative.
  return x + jax.lax.stop_gradient(jnp.floor(x + 0.5) - x)


def _from_zero(x: jax.Array) -> jax.Array:
  """Rounded, halves away from 0, with the derivative of the identity."""
  # So it divides by a step.
  whole = jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5 + TIE)
  return x + jax.lax.stop_gradient(whole - x)
