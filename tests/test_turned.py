"""A denoiser is shown the image in eight ways, and answers as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax.denoising import predictor
from posterior_jax.nfc_sampler import (
  Denoise,
  Jacobian,
  Mean,
  Schedule,
  Sigma,
  compose,
  levels_of,
  parts_of,
)

SIDE = 4
LEVELS = 8
CONFIG = pj.NFCConfig(
  levels=LEVELS,
  schedule=Schedule(sigma_max=0.8, sigma_min=0.1, renewal=0.0),
  predictor=Denoise(turned=True),
  width=Sigma(),
  inner=Mean(),
)


def _corner(x, sigma):
  """Dims every pixel by its own place: no two ways are alike."""
  h, w = x.shape[1:3]
  rows, columns = np.arange(h)[:, None, None], np.arange(w)[None, :, None]
  gain = 1 / (1 + rows + w * h * columns)  # [H, W, 1]
  return x * gain


def _by_hand(x, way):
  """One image [H, W, C], by NumPy."""
  if way & 4:
    x = x.transpose(1, 0, 2)
  if way & 1:
    x = x[::-1]
  if way & 2:
    x = x[:, ::-1]
  x = np.asarray(_corner(x[None], None))[0]
  if way & 2:
    x = x[:, ::-1]
  if way & 1:
    x = x[::-1]
  return x.transpose(1, 0, 2) if way & 4 else x


@pytest.mark.parametrize("way", range(8))
def test_a_way_by_hand(way):
  x = np.random.default_rng(0).normal(size=(SIDE, SIDE, 2))
  answer = predictor.turned(_corner, jnp.float32(way))
  found = answer(jnp.asarray(np.float32(x))[None], jnp.ones(1))
  np.testing.assert_allclose(found[0], _by_hand(x, way), rtol=1e-5)


def test_what_is_not_square_is_mirrored():
  x = np.random.default_rng(0).normal(size=(SIDE, SIDE + 2, 1))
  answer = predictor.turned(_corner, jnp.float32(7))
  found = answer(jnp.asarray(np.float32(x))[None], jnp.ones(1))
  np.testing.assert_allclose(found[0], _by_hand(x, 3), rtol=1e-5)


@pytest.mark.parametrize("width", [Sigma(), Jacobian()])
def test_every_level_turns_another_way(width):
  """The last one none; a covariance is of the turned denoiser."""
  config = CONFIG.replace(width=width)
  parts, levels = parts_of(config), levels_of(config)
  ways = np.asarray(levels.way).astype(int)
  assert sorted(ways) == list(range(8)) and ways[-1] == 0
  # Of rows, columns and transposition neighbours differ in two or all.
  apart = [int(a ^ b).bit_count() for a, b in zip(ways, np.roll(ways, 1))]
  assert min(apart) == 2
  x = np.random.default_rng(1).normal(size=(SIDE, SIDE, 1))
  image = jnp.asarray(np.float32(x))[None, None]
  for number, way in enumerate(ways):
    level = jax.tree.map(lambda entry, n=number: entry[n], levels)
    found = parts.predict(_corner, image, level)
    np.testing.assert_allclose(found.x0[0, 0], _by_hand(x, way), rtol=1e-5)
    if found.covariance is not None:
      product = found.covariance(image)[0, 0]
      expected = float(level.sigma) ** 2 * _by_hand(x, way)
      np.testing.assert_allclose(product, expected, rtol=1e-5)


def test_a_denoiser_that_sees_no_direction_gives_the_same_run():
  observation = pj.Observation(
    jnp.asarray(np.random.default_rng(2).normal(size=(1, SIDE, SIDE, 1)) / 2),
    pj.operators.inpainting((SIDE, SIDE, 1), np.eye(SIDE)),
    0.1,
  )

  def last(turned):
    config = CONFIG.replace(predictor={"turned": turned})
    sampler = compose(parts_of(config), levels_of(config))
    return pj.run(
      sampler, lambda x, sigma: 0.8 * x, observation, jax.random.key(0)
    )[0]

  np.testing.assert_array_equal(last(True), last(False))
