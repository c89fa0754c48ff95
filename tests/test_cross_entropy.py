"""Chunked cross-entropy: the plain one in float64, and what it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neumann_jax import Execution, tuning
from neumann_jax.checkpoint import params as param_place
from tests import models, oracles


@pytest.fixture
def float64():
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


def plain(hidden, matrix, targets, axis):
  letters = "...d,vd->...v" if axis == 0 else "...d,dv->...v"
  logits = jnp.einsum(letters, hidden, matrix)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def operands(words, axis, dtype, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(3, 4, 6))
  matrix = 3 * rng.normal(size=(words, 6) if axis == 0 else (6, words))
  targets = rng.integers(0, words, (3, 4))
  targets[0, :2] = 0, words - 1
  weights = rng.normal(size=(3, 4))
  arrays = (jnp.asarray(x, dtype) for x in (hidden, matrix, weights))
  return (*arrays, jnp.asarray(targets, jnp.int32))


# A last block that is cut, blocks that divide, one block, a word at a time.
@pytest.mark.parametrize(
  "words, block, axis", [(37, 8, 0), (37, 8, 1), (64, 16, 0), (5, 100, 1)]
)
def test_value_and_gradient_in_float64(float64, words, block, axis):
  hidden, matrix, weights, targets = operands(words, axis, jnp.float64)

  def of(losses):
    def total(hidden, matrix):
      found = losses(hidden, matrix)
      return jnp.sum(weights * found), found

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))

  want = of(lambda h, w: plain(h, w, targets, axis))(hidden, matrix)
  found = of(
    lambda h, w: tuning.cross_entropy(
      h, w, targets, vocab_axis=axis, block=block
    )
  )(hidden, matrix)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want)):
    assert a.dtype == jnp.float64
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_large_logits_and_bfloat16():
  hidden, matrix, _, targets = operands(37, 0, jnp.float32)
  found = tuning.cross_entropy(300 * hidden, matrix, targets, block=8)
  want = plain(300 * hidden, matrix, targets, 0)
  assert want.max() > 1000
  np.testing.assert_allclose(found, want, rtol=1e-6)
  narrow = hidden.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16)
  found = tuning.cross_entropy(*narrow, targets, block=8)
  assert found.dtype == jnp.float32
  wide = (x.astype(jnp.float32) for x in narrow)
  np.testing.assert_allclose(found, plain(*wide, targets, 0), rtol=1e-5)


def test_a_token_that_is_not_wanted_has_no_gradient():
  """Its target may be anything, and its loss NaN."""
  hidden, matrix, _, targets = operands(37, 0, jnp.float32)
  targets = targets.at[1, 2].set(-100)
  wanted = targets >= 0

  def loss(hidden, matrix):
    found = tuning.cross_entropy(hidden, matrix, targets, block=8)
    return jnp.sum(jnp.where(wanted, found, 0)), found

  gradient, found = jax.grad(loss, (0, 1), has_aux=True)(hidden, matrix)
  assert np.isnan(found[1, 2]) and np.isfinite(found[wanted]).all()
  assert all(np.isfinite(x).all() for x in gradient)
  assert (gradient[0][1, 2] == 0).all() and (gradient[0][1, 1] != 0).any()


def test_it_never_holds_the_logits():
  """At the shape of 0.8B, 4096 tokens: logits alone are 3.8 GiB."""
  words, width = 248_320, 1024
  shapes = (
    jax.ShapeDtypeStruct((4096, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((words, width), jnp.float32),
    jax.ShapeDtypeStruct((4096,), jnp.int32),
  )

  def with_all(hidden, matrix, targets):
    return plain(hidden.astype(jnp.float32), matrix, targets, 0)

  def needed(losses, wanted):
    step = jax.value_and_grad(lambda *given: jnp.mean(losses(*given)), wanted)
    memory = jax.jit(step).lower(*shapes).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**30

  for wanted in (0, (0, 1)):  # of an adapted model, and of all its weights
    found = needed(tuning.cross_entropy, wanted)
    assert found < 0.3, wanted
    assert needed(with_all, wanted) > 25 * found, wanted


@pytest.mark.parametrize("kind", ["dense", "tied"])
def test_under_a_models_own_matrix(kind):
  shapes = param_place.abstract_model(models.CONFIGS[kind], Execution())
  rng = np.random.default_rng(0)
  model = param_place.with_params(
    shapes,
    {
      path: jnp.asarray(rng.normal(size=x.shape), x.dtype)
      for path, x in param_place.flat_params(shapes).items()
    },
  )
  hidden = jax.random.normal(jax.random.key(0), (2, 5, 64))
  targets = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
  want = optax.softmax_cross_entropy_with_integer_labels(
    model.logits(hidden), targets
  )
  found = tuning.token_losses(model, hidden, targets, block=24)
  np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
  "change, kind, words",
  [
    ({"targets": jnp.zeros((3, 4))}, TypeError, "targets must be integers"),
    ({"targets": jnp.zeros(3, jnp.int32)}, ValueError, "targets must have the"),
    ({"hidden": jnp.zeros((3, 4, 6), int)}, TypeError, "hidden must be float"),
    ({"matrix": jnp.zeros((6, 37))}, ValueError, "matrix must be of two axes"),
    ({"block": 8.0}, TypeError, "block must be an integer, got 8.0"),
    (
      {"matrix": jnp.zeros((0, 6))},
      ValueError,
      "matrix must have at least one",
    ),
    ({"block": 0}, ValueError, "block must be at least 1, got 0"),
    ({"vocab_axis": 2}, ValueError, "vocab_axis must be 0 or 1, got 2"),
  ],
)
def test_refusals(change, kind, words):
  hidden, matrix, _, targets = operands(37, 0, jnp.float32)
  given = {"hidden": hidden, "matrix": matrix, "targets": targets} | change
  with oracles.refused(kind, words):
    tuning.cross_entropy(
      given.pop("hidden"), given.pop("matrix"), given.pop("targets"), **given
    )
