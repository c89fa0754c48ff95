"""Operators of small images and their definitions in float64, for the tests."""

import numpy as np
import pytest
import scipy.ndimage

from posterior_jax import operators
from tests import oracles

SHAPE = (24, 32, 3)
SOLVED = (16, 16, 1)
NOISE = 0.05
LOPSIDED = np.random.default_rng(5).dirichlet(np.ones(49)).reshape(7, 7)
TAPS = LOPSIDED[:2] / LOPSIDED[:2].sum(1, keepdims=True)  # down, across


def build(name, shape=SHAPE):
  return {
    "resize": lambda: operators.super_resolution(shape, factor=4),
    "box": lambda: operators.box_inpainting(shape, size=6, corner=(3, 7)),
    "random": lambda: operators.random_inpainting(shape),
    "blur": lambda: operators.blur(shape, LOPSIDED),
    "circular": lambda: operators.blur(shape, LOPSIDED, boundary="circular"),
    "scene blur": lambda: operators.blur(shape, LOPSIDED, boundary="valid"),
    "wide scene": lambda: operators.blur(
      shape, LOPSIDED, boundary="valid", seen=(shape[0] - 9, shape[1] - 8)
    ),
    "scene resize": lambda: operators.super_resolution(
      shape, factor=4, boundary="valid"
    ),
  }[name]()


def define(name, shape):
  """The same measurement of one channel [H, W] in numpy."""
  height, width, _ = shape
  if name == "resize":
    rows = oracles.resizer_matrix(height, 4)
    columns = oracles.resizer_matrix(width, 4)
    return lambda x: rows @ x @ columns.T
  if name in ("box", "random"):
    mask = np.ones((height, width))
    if name == "box":
      mask[3:9, 7:13] = 0
    else:
      order = np.random.default_rng(0).permutation(height * width)
      mask.ravel()[order[: int(0.7 * height * width)]] = 0
    return lambda x: mask * x
  if name == "scene resize":
    # Blocks of four start two pixels before the scene, so that the picture,
    # six pixels in, starts with a block.
    rows, columns = (
      oracles.resizer_matrix(n + 4, 4)[2:-2, 2:-2] for n in (height, width)
    )
    return lambda x: rows @ x @ columns.T
  if name == "scene blur":
    # No mode: every pixel that is used lies in the scene.
    return lambda x: scipy.ndimage.correlate(x, LOPSIDED)[3:-3, 3:-3]
  if name == "wide scene":
    # In the middle; the odd pixel lies below.
    return lambda x: scipy.ndimage.correlate(x, LOPSIDED)[4:-5, 4:-4]
  mode = {"blur": "mirror", "circular": "wrap"}[name]
  return lambda x: scipy.ndimage.correlate(x, LOPSIDED, mode=mode)


SCENES = ("scene blur", "scene resize")
NAMES = ("resize", "box", "random", "blur", "circular", *SCENES)
every_operator = pytest.mark.parametrize("name", NAMES)


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)
