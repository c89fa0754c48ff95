"""Rotary frequencies of YaRN, and write strengths up to 2."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax import Yarn
from neumann_jax.layers.positions import rotation, turned
from tests import models, oracles

THETA, WIDTH = 1e7, 64


def rotate(x, position, *, rotary_dim, theta, scaling=None):
  return turned(x, *rotation(position, rotary_dim, theta, scaling))


def test_ends_and_the_ramp_between():
  yarn = Yarn(4.0, 262144)
  own = THETA ** -(np.arange(0, WIDTH, 2) / WIDTH)
  found = yarn.frequencies(THETA, WIDTH) / own
  turns = 262144 * own / (2 * np.pi)
  # Whole components: up to one more on either side keeps its end.
  ramp = (found < 1 - 1e-6) & (found > 0.25 * (1 + 1e-6))
  np.testing.assert_allclose(found[turns > 32 * 1.7], 1, rtol=1e-6)
  np.testing.assert_allclose(found[turns < 1 / 1.7], 0.25, rtol=1e-6)
  assert 3 <= ramp.sum() <= 8 and (np.diff(found) <= 1e-6).all()
  slopes = np.diff(found[ramp])
  np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)  # a straight one
  assert yarn.scale == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(
  "options, scale",
  [
    ({"attention_factor": 0.5}, 0.5),
    ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ({"mscale": 2.0, "mscale_all_dim": 1.0}, 1.277258872 / 1.138629436),
    ({"factor": 0.5}, 1.0),
  ],
)
def test_what_is_rotated_grows(options, scale):
  yarn = Yarn(
    **{"factor": 4.0, "original_max_position_embeddings": 99} | options
  )
  assert yarn.scale == pytest.approx(scale)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 5, 2, 32)), jnp.float32)
  turn = functools.partial(
    rotate, position=jnp.arange(5)[None], rotary_dim=24, theta=1e4
  )
  found = turn(x, scaling=yarn)
  np.testing.assert_array_equal(found[..., 24:], x[..., 24:])
  norms = [np.linalg.norm(y[..., :24], axis=-1) for y in (found, x)]
  np.testing.assert_allclose(norms[0], scale * norms[1], rtol=1e-5)


def test_a_factor_of_one_changes_nothing():
  x = jnp.ones((1, 300, 1, 32))
  turn = functools.partial(
    rotate, x, jnp.arange(300)[None], rotary_dim=32, theta=1e4
  )
  oracles.assert_close(turn(scaling=Yarn(1.0, 64)), turn(), 1e-5)


def test_bad_options():
  with oracles.refused(ValueError, "factor of YaRN must be positive, got 0"):
    Yarn(0, 64)
  with oracles.refused(ValueError, "rope_scaling must be a Yarn or None"):
    models.delta_net(rope_scaling={"factor": 4})


def test_write_strengths_up_to_two():
  """The same gates, twice as strong: eigenvalues 1 - beta from 1 to -1."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 16, 24)) * 3, jnp.float32)
  plain, both = (
    models.delta_net(allow_neg_eigval=flag, chunk_size=16)
    for flag in (False, True)
  )
  run = nnx.jit(lambda layer, x: (layer.chunk_matrices(x), layer(x)[0]))
  (one, _), (two, outputs) = (run(layer, x) for layer in (plain, both))
  np.testing.assert_array_equal(two.beta, 2 * one.beta)
  assert two.beta.max() > 1.2
  oracles.assert_close(two.a, 2 * one.a, 1e-6)
  np.testing.assert_array_equal(two.log_decay, one.log_decay)
  assert np.isfinite(outputs).all()
