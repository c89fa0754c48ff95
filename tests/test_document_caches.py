"""Packed calls of a model that go on from a cache for each document."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax import Execution, RuleOptions
from tests import models, oracles

# Tokens of each document in the cache, and in the call: the second row has two
# documents, one of a single token, and room for a third.
STORED = ((5, 0, 18), (2, 7, 4))
LENGTHS = ((7, 20, 3), (1, 29))
ROWS, COUNT, CAPACITY = 2, 3, 40
IDS = np.stack([np.repeat([4, 0, 2][: len(x)], x) for x in LENGTHS]).astype(
  np.int32
)
SPANS = [
  (row, n, slice(end - length, end))
  for row, lengths in enumerate(LENGTHS)
  for n, (length, end) in enumerate(zip(lengths, np.cumsum(lengths)))
]
slow = pytest.mark.slow


@functools.cache
def model_of(kind):
  rule = RuleOptions(chunk_size=16)
  execution = Execution(rule=rule, scan_layers=kind == "deep")
  return models.trained_like(kind, execution)


@functools.partial(oracles.quick_jit, static_argnums=0)
def _call(graph, params, tokens, cache, ids, mask):
  return nnx.merge(graph, params)(
    tokens, cache=cache, segment_ids=ids, mask=mask
  )


def call(model, tokens, cache, ids=None, mask=None):
  return _call(*nnx.split(model), tokens, cache, ids, mask)


def draw(*shape):
  rng = np.random.default_rng(shape[1])
  return rng.integers(0, models.VOCABULARY, shape, np.int32)


def under(lengths, width):
  """[B M, width], where rows have tokens."""
  lengths = np.array([n for row in lengths for n in (*row, 0)[:COUNT]])
  return np.arange(width) < lengths[:, None]


@functools.cache
def filled(kind):
  """A cache of B M rows after what is stored, read as rows of a batch."""
  model, mask = model_of(kind), under(STORED, 29)
  cache = model.init_cache(ROWS * COUNT, CAPACITY)
  return call(model, draw(ROWS * COUNT, 29), cache, None, mask)[1]


def as_rows(tokens):
  """The documents of a packed call as rows of a batch, padded right."""
  rows = np.zeros((ROWS * COUNT, 29), np.int32)
  for row, n, span in SPANS:
    rows[row * COUNT + n, : span.stop - span.start] = tokens[row, span]
  return rows


@pytest.mark.parametrize("kind", ["dense", pytest.param("deep", marks=slow)])
def test_a_packed_call_is_a_call_of_rows(kind):
  model, tokens = model_of(kind), draw(ROWS, 30)
  cache = filled(kind)
  truth, whole = call(model, as_rows(tokens), cache, None, under(LENGTHS, 29))
  found, after = call(model, tokens, cache, IDS)
  for row, n, span in SPANS:
    own = truth[row * COUNT + n, : span.stop - span.start]
    oracles.assert_close(found[row, span], own, oracles.FLOAT32_MODEL)
  np.testing.assert_array_equal(after.stored, whole.stored)
  np.testing.assert_array_equal(after.start, whole.start)
  for a, b in zip(jax.tree.leaves(after.layers), jax.tree.leaves(whole.layers)):
    oracles.assert_close(a, b, oracles.FLOAT32_MODEL)
  # The document that no token is of.
  axis = int(kind == "deep")
  for a, b in zip(jax.tree.leaves(after.layers), jax.tree.leaves(cache.layers)):
    np.testing.assert_array_equal(*(jnp.take(x, 5, axis=axis) for x in (a, b)))


@slow
@pytest.mark.parametrize("kind", ["dense", "deep"])
def test_gradients_of_a_packed_call_are_those_of_rows(kind):
  model, tokens = model_of(kind), draw(ROWS, 30)
  graph, params = nnx.split(model)
  cache, weights = filled(kind), np.random.default_rng(3)
  weights = weights.standard_normal((ROWS, 30, models.VOCABULARY))
  weights = weights.astype(np.float32)
  of_rows = np.zeros((ROWS * COUNT, 29, models.VOCABULARY), np.float32)
  for row, n, span in SPANS:
    own = weights[row, span]
    of_rows[row * COUNT + n, : len(own)] = own

  def loss(params, layers, tokens, weights, **marks):
    model = nnx.merge(graph, params)
    logits, _ = model(tokens, cache=cache._replace(layers=layers), **marks)
    return jnp.sum(jnp.where(weights == 0, 0, logits * weights))

  grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
  found = grad(params, cache.layers, tokens, weights, segment_ids=IDS)
  mask = under(LENGTHS, 29)
  truth = grad(params, cache.layers, as_rows(tokens), of_rows, mask=mask)
  assert oracles.whole_error(found, truth) < 1e-4


def test_a_document_without_a_row_of_the_cache_is_nan():
  model, tokens = model_of("dense"), draw(ROWS, 30)
  ids = np.array(IDS)
  ids[1, 10:20], ids[1, 20:] = 7, 8
  cache = filled("dense")
  truth, _ = call(model, tokens, cache, IDS)
  found, after = call(model, tokens, cache, ids)
  np.testing.assert_array_equal(found[0], truth[0])
  np.testing.assert_array_equal(found[1, :10], truth[1, :10])
  assert np.isnan(found[1, 20:]).all() and np.isfinite(found[1, :20]).all()
  np.testing.assert_array_equal(after.stored[3:], [3, 16, 14])


@pytest.mark.parametrize(
  "change, message",
  [
    ({}, "cache has room for 30 tokens a row, but a row would have 36"),
    ({"room": 40, "rows": 4}, "cache has 2 rows for the documents of a row"),
    (
      {"room": 40, "rows": 5},
      "cache must have 2 rows, .* or M times 2 for up to M documents .* got 5",
    ),
  ],
)
def test_refusals(change, message):
  model = model_of("dense")
  cache = model.init_cache(change.get("rows", 6), change.get("room", 30))
  if not change:
    cache = cache._replace(stored=jnp.array([0, 0, 0, 0, 7, 0], jnp.int32))
  with oracles.refused(ValueError, message):
    model(jnp.zeros((2, 30), jnp.int32), cache=cache, segment_ids=IDS)
