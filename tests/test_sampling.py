"""Draws from logits against exact probabilities."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neumann_jax.generation import sampling
from neumann_jax.generation.sampling import SamplingSpec
from tests import oracles

DRAWS = 20000
# Ties at the front and at the cut of every test below, a token ruled out, and
# a spread of e^8 between the others.
LOGITS = np.array([1.5, 3.0, -5.0, 3.0, 1.5, -np.inf, 0.0, 1.5], np.float32)


@functools.partial(oracles.quick_jit, static_argnums=2)
def _sample(logits, key, spec):
  return sampling.sample(logits, key, spec)


def draws(logits, spec, count=DRAWS, seed=0):
  rows = jnp.broadcast_to(logits, (count, len(logits)))
  found = _sample(rows, jax.random.key(seed), spec)
  assert found.dtype == jnp.int32
  return np.asarray(found)


def exact(logits, temperature=1.0, top_k=None, top_p=None, min_p=0.0):
  """The distribution of a spec in float64, token by token."""
  logits = np.asarray(logits, np.float64) / temperature
  weight = np.exp(logits - logits.max())
  order = sorted(range(len(weight)), key=lambda i: (-weight[i], i))[:top_k]
  total, mass, kept = math.fsum(weight[i] for i in order), 0.0, []
  for i in order:
    kept.append(i)
    mass += weight[i] / total
    if top_p is not None and mass >= top_p:
      break
  kept = [i for i in kept if weight[i] >= min_p * weight.max()]
  found = np.zeros(len(weight))
  found[kept] = weight[kept] / math.fsum(weight[kept])
  return found


@pytest.mark.parametrize(
  "spec",
  [
    SamplingSpec(),
    SamplingSpec(temperature=0.5),
    SamplingSpec(top_k=1),
    SamplingSpec(top_k=4),  # cuts among the three of 1.5
    SamplingSpec(top_p=1e-6),
    SamplingSpec(top_p=0.8),
    SamplingSpec(top_p=1.0),
    SamplingSpec(temperature=2.0, top_k=5, top_p=0.5),
    SamplingSpec(min_p=0.2),  # e^-1.5 of the largest is 0.223
    SamplingSpec(min_p=0.23),
    SamplingSpec(temperature=3.0, top_p=0.95, min_p=0.4),
  ],
)
def test_frequencies_are_the_exact_probabilities(spec):
  truth = exact(LOGITS, spec.temperature, spec.top_k, spec.top_p, spec.min_p)
  count = np.bincount(draws(LOGITS, spec), minlength=len(LOGITS))
  assert not count[truth == 0].any()  # exact: never, not seldom
  # Each count is binomial: five standard deviations and two draws are passed
  # by less than one in 10^5 right samplers, and the key is fixed.
  slack = 5 * np.sqrt(DRAWS * truth * (1 - truth)) + 2
  assert (np.abs(count - DRAWS * truth) <= slack * (truth > 0)).all()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("k", [None, 40])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, k):
  logits = 3 * np.random.default_rng(5).standard_normal((50, 101))
  logits[:, ::7] = logits[:, :1]  # many ties
  logits = logits.astype(np.float32)
  spec = SamplingSpec(temperature=0.7, top_k=k, top_p=p)
  draws = sampling.as_draws([spec] * 50, 101)
  weights, ids = sampling.candidates(jnp.asarray(logits), draws, k or 101)
  for row, (weight, order) in enumerate(zip(weights, np.asarray(ids))):
    found = np.zeros(logits.shape[1])
    found[order] = jax.nn.softmax(weight)
    truth = exact(logits[row], 0.7, k, p)
    np.testing.assert_array_equal(found > 0, truth > 0)
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_greedy_takes_the_first_of_the_largest():
  found = sampling.sample(jnp.asarray(LOGITS)[None], None, SamplingSpec(0))
  np.testing.assert_array_equal(found, [1])


@pytest.mark.parametrize("temperature", [1e-3, 1e-45])
def test_low_temperature_is_greedy_among_equals(temperature):
  logits = np.array([1e30, -1e30, 1e30, 9e29], np.float32)
  for spec in (
    SamplingSpec(temperature),
    SamplingSpec(temperature, top_k=3, top_p=0.9),
  ):
    count = np.bincount(draws(logits, spec, 1000), minlength=4)
    assert count[1] == count[3] == 0
    assert abs(count[0] - 500) < 5 * np.sqrt(250)


def test_a_row_draws_alike_in_any_batch():
  logits = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
  spec, key = SamplingSpec(top_k=20), jax.random.key(3)
  whole = sampling.sample(jnp.asarray(logits), key, spec)
  part = sampling.sample(jnp.asarray(logits[:3]), key, spec)
  np.testing.assert_array_equal(whole[:3], part)
  again = sampling.sample(jnp.asarray(logits), key, spec)
  np.testing.assert_array_equal(whole, again)
  assert len(set(draws(np.zeros(1000, np.float32), SamplingSpec(), 50))) > 40


def test_a_row_draws_alike_beside_other_specs():
  """Whether its neighbours need no noise, a short sort or a whole one."""
  logits = np.random.default_rng(1).standard_normal((4, 999)).astype(np.float32)
  specs = [
    SamplingSpec(0),
    SamplingSpec(1.5),
    SamplingSpec(0.8, top_k=30, top_p=0.9),
    SamplingSpec(0.8, top_p=0.6),
  ]
  draw = oracles.quick_jit(sampling.draw)
  for seed in range(20):
    key = jax.random.key(seed)
    for count in range(1, 5):
      together = sampling.as_draws(specs[:count] + specs[:1] * (4 - count), 999)
      found = draw(logits, key, together)
      for row, spec in enumerate(specs[:count]):
        alone = draw(logits, key, sampling.as_draws([spec] * 4, 999))
        assert found[row] == alone[row]


def test_penalties_by_their_definition():
  logits = np.array(
    [[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]], np.float32
  )
  seen = np.array([[1, 1, 0, 0], [2, 0, 1, 2]], np.int8)
  spec = SamplingSpec(repetition_penalty=2.0, presence_penalty=0.5)
  draws = sampling.as_draws([spec, spec], 4)
  found = sampling.penalised(jnp.asarray(logits), seen, draws)
  np.testing.assert_array_equal(
    found, [[1.0, -4.0, 1.0, -1.0], [0.5, -2.0, 0.5, -2.5]]
  )
  none = sampling.as_draws([SamplingSpec()] * 2, 4)
  found = sampling.penalised(jnp.asarray(logits), seen, none)
  np.testing.assert_array_equal(found, logits)


def test_half_precision_logits_are_drawn_from_in_float32():
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  half = draws(logits, SamplingSpec(top_p=0.9), 100)
  full = draws(logits.astype(jnp.float32), SamplingSpec(top_p=0.9), 100)
  np.testing.assert_array_equal(half, full)


@pytest.mark.parametrize(
  "fields, pattern",
  [
    ({"temperature": -0.1}, "temperature must be finite and at least 0, got -"),
    ({"temperature": math.nan}, "temperature must be finite"),
    ({"temperature": math.inf}, "temperature must be finite"),
    ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
    ({"top_k": 2.0}, "top_k must be an integer of at least 1, got 2.0"),
    ({"top_k": True}, "top_k must be an integer of at least 1, got True"),
    ({"top_k": "5"}, "top_k must be an integer of at least 1, got '5'"),
    ({"temperature": "1"}, "temperature must be a number, got '1'"),
    ({"temperature": None}, "temperature must be a number, got None"),
    ({"top_p": "0.9"}, "top_p must be a number, got '0.9'"),
    ({"min_p": None}, "min_p must be a number, got None"),
    ({"presence_penalty": True}, "presence_penalty must be a number, got True"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
    ({"top_p": math.nan}, r"top_p must be in \(0, 1\], got nan"),
    ({"min_p": 1.0}, r"min_p must be in \[0, 1\), got 1.0"),
    ({"min_p": -0.1}, r"min_p must be in \[0, 1\), got -0.1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be finite and ab"),
    ({"presence_penalty": math.nan}, "presence_penalty must be finite, got n"),
    ({"temperature": 0, "min_p": 0.1}, "no effect at temperature 0"),
    ({"temperature": 0, "top_k": 3}, "no effect at temperature 0"),
    ({"temperature": 0, "top_p": 0.5}, "no effect at temperature 0"),
  ],
)
def test_spec_refusals(fields, pattern):
  with oracles.refused(ValueError, pattern):
    SamplingSpec(**fields)


def test_numbers_of_numpy_are_numbers():
  spec = SamplingSpec(np.float32(0.5), np.int64(5), np.float64(0.5))
  assert spec == SamplingSpec(0.5, 5, 0.5)


def test_refusals():
  key, good = jax.random.key(0), jnp.zeros((2, 5))
  with oracles.refused(ValueError, "key must be given unless temperature is 0"):
    sampling.sample(good, None, SamplingSpec())
  with oracles.refused(ValueError, "at most the 5 tokens there are, got 6"):
    sampling.sample(good, key, SamplingSpec(top_k=6))
  with oracles.refused(TypeError, "logits must be floating point"):
    sampling.sample(jnp.zeros((2, 5), jnp.int32), key, SamplingSpec())
  for shape in ((5,), (0, 5), (2, 0)):
    with oracles.refused(ValueError, r"shape \[B >= 1, V >= 1\]"):
      sampling.sample(jnp.zeros(shape), key, SamplingSpec())
  for bad in (jnp.nan, jnp.inf):
    with oracles.refused(ValueError, f"finite largest entry .* got {bad}"):
      sampling.sample(good.at[1, 2].set(bad), key, SamplingSpec())
  with oracles.refused(ValueError, "finite largest entry .* got -inf"):
    sampling.sample(good.at[1].set(-jnp.inf), key, SamplingSpec())
