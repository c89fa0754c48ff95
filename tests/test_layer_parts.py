"""Parts of the Gated DeltaNet block in numpy, and what the block refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neumann_jax import Cache
from neumann_jax.layers import linear, norms
from neumann_jax.layers.caches.cache import KeyValueCache, check_cache
from neumann_jax.layers.convolution.short_conv import short_conv
from tests import float64_rule, models, oracles
from tests.oracles import assert_close

# At most 64 terms of a float32 sum.
TOLERANCE = 1e-6


def normal(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return rng.standard_normal(shape).astype(np.float32)


# --- Convolution -------------------------------------------------------------


# One program each, where all of their operations would be one.
conv = oracles.quick_jit(short_conv)
unit_norm = oracles.quick_jit(norms.unit_norm)


def conv_truth(x, kernel, history, segment_ids=None):
  before = np.swapaxes(history, 1, 2)
  y, kept = float64_rule.causal_conv(x, kernel, segment_ids, before)
  return y, np.swapaxes(kept, 1, 2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 11])
def test_short_conv_is_the_sum(length, width, packed):
  x, kernel = normal(3, length, 5), normal(width, 5)
  history = normal(3, 5, width)
  ids = None
  if packed:
    rng = np.random.default_rng([length, width])
    ids = np.cumsum(rng.integers(0, 2, (3, length)), 1).astype(np.int32)
  found = conv(x, kernel, history=history, segment_ids=ids)
  assert_close(found, conv_truth(x, kernel, history, ids), TOLERANCE)


def test_short_conv_in_two_calls():
  x, kernel, history = normal(2, 9, 5), normal(4, 5), normal(2, 5, 4)
  whole = conv(x, kernel, history=history)
  for cut in (1, 2, 5, 8):
    first, kept = conv(x[:, :cut], kernel, history=history)
    second, kept = conv(x[:, cut:], kernel, history=kept)
    found = jnp.concatenate([first, second], 1), kept
    chex.assert_trees_all_close(found, whole, rtol=0, atol=TOLERANCE)


def test_short_conv_history_is_of_the_last_document_alone():
  """Not of one before it whose id comes back, as padding's may."""
  x, kernel, history = normal(1, 4, 5), normal(3, 5), normal(1, 5, 3)
  ids = jnp.asarray([[0, 2, 1, 2]])
  _, kept = conv(x, kernel, history=history, segment_ids=ids)
  want = np.stack([0 * x[:, 3], 0 * x[:, 3], x[:, 3]], axis=2)
  np.testing.assert_array_equal(kept, np.float32(want))


def test_short_conv_history_ends_at_the_last_real_token():
  x, kernel, history = normal(4, 6, 5), normal(4, 5), normal(4, 5, 4)
  sizes = np.array([6, 5, 1, 0])
  mask = np.arange(6) < sizes[:, None]
  y, kept = conv(x, kernel, history=history, mask=mask)
  for row, size in enumerate(sizes):
    one = slice(row, row + 1)
    if size == 0:
      want = history[one]
    else:
      want = conv_truth(x[one, :size], kernel, history[one])[1]
      truth = conv_truth(x[one, :size], kernel, history[one])[0]
      assert_close(y[one, :size], truth, TOLERANCE)
    chex.assert_trees_all_equal(np.asarray(kept[one]), np.float32(want))


def test_short_conv_sums_narrow_columns_in_float32():
  x, kernel = (
    jnp.asarray(a, jnp.bfloat16) for a in (normal(2, 9, 5), normal(4, 5))
  )
  history = jnp.zeros((2, 5, 4), jnp.bfloat16)
  y, kept = conv(x, kernel, history=history)
  assert y.dtype == jnp.float32 and kept.dtype == jnp.bfloat16
  wide = (np.asarray(a, np.float64) for a in (x, kernel, history))
  assert_close(y, conv_truth(*wide)[0], TOLERANCE)


# --- Norms -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_unit_norm(size):
  """eps acts on the sum of squares: norms stay below 1."""
  x = np.float32(size) * normal(7, 16)
  wide = np.float64(x)
  want = wide / np.sqrt((wide**2).sum(-1, keepdims=True) + 1e-6)
  found = unit_norm(x)
  assert_close(found, want, TOLERANCE)
  assert np.linalg.norm(np.float64(found), axis=-1).max() <= 1 + TOLERANCE
  larger = wide / np.sqrt((wide**2).sum(-1, keepdims=True) + 0.25)
  assert_close(unit_norm(x, eps=0.25), larger, TOLERANCE)


def test_unit_norm_of_nothing():
  """Padding has zero keys: zero, and a gradient that is not NaN."""
  zero = jnp.zeros((2, 8))
  assert not np.asarray(unit_norm(zero)).any()
  gradient = oracles.quick_jit(jax.jacobian(norms.unit_norm))(zero[0])
  # d x / sqrt(eps) at zero.
  assert_close(gradient, 1e3 * np.eye(8), TOLERANCE)


def test_unit_norm_of_narrow_input_is_float32():
  x = jnp.asarray(normal(7, 16), jnp.bfloat16)
  found = norms.unit_norm(x)
  assert found.dtype == jnp.float32
  chex.assert_trees_all_equal(found, norms.unit_norm(x.astype(jnp.float32)))


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_gated_rms_norm(eps):
  x, gate = normal(3, 5, 8), normal(3, 5, 8, seed=1)
  norm = norms.GatedRMSNorm(8, eps=eps)
  assert (norm.weight[...] == 1).all()
  weight = normal(8)
  norm.weight[...] = jnp.asarray(weight)
  wide = np.float64(x)
  normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
  want = weight * normed * float64_rule.silu(np.float64(gate))
  assert_close(norm(x, gate), want, TOLERANCE)
  # The gate is outside of the norm: twice the input, nearly the same output.
  gated_first = x * np.float32(float64_rule.silu(np.float64(gate)))
  assert oracles.error(norm(gated_first, np.ones_like(gate)), want) > 0.1


def test_gated_rms_norm_in_bfloat16():
  """Rounded after the norm, after the weight and at the end, each to 2^-8."""
  x, gate = (jnp.asarray(normal(7, 8, seed=s), jnp.bfloat16) for s in (0, 1))
  norm = norms.GatedRMSNorm(8, param_dtype=jnp.bfloat16)
  weight = jnp.asarray(normal(8), jnp.bfloat16)
  norm.weight[...] = weight
  found = norm(x, gate)
  assert found.dtype == jnp.bfloat16
  wide = norms.GatedRMSNorm(8)
  wide.weight[...] = weight.astype(jnp.float32)
  want = wide(x.astype(jnp.float32), gate.astype(jnp.float32))
  assert_close(found.astype(jnp.float32), want, 3 * 2.0**-8)


# --- Products ---------------------------------------------------------------


def test_wide_products_are_differentiated_in_the_type_of_their_operands():
  """A float32 product in the backward pass would have no matrix unit."""
  x, kernel, g = normal(3, 8), normal(8, 6), normal(3, 6)
  narrow = jnp.bfloat16(x), jnp.bfloat16(kernel)

  def pull(x, kernel):
    out, pull = jax.vjp(linear.wide_product, x, kernel)
    return out, pull(jnp.asarray(g))

  out, found = pull(*narrow)
  exact = [np.asarray(y, np.float64) for y in narrow]
  assert out.dtype == jnp.float32
  assert_close(out, exact[0] @ exact[1], TOLERANCE)
  want = g @ exact[1].T, exact[0].T @ g
  for y, truth in zip(found, want, strict=True):
    assert y.dtype == jnp.bfloat16
    # Eight terms and the result, each rounded to 8 bits.
    np.testing.assert_allclose(np.float64(y), truth, atol=0.03)
  products = [
    eqn
    for eqn in jax.make_jaxpr(pull)(*narrow).jaxpr.eqns
    if eqn.primitive.name == "dot_general"
  ]
  types = {str(y.aval.dtype) for eqn in products for y in eqn.invars}
  assert types == {"bfloat16"}, types


def test_wide_products_of_a_transposed_matrix_and_forward_derivatives():
  x, kernel, dx = normal(3, 8), normal(8, 6), normal(3, 8, seed=1)
  out, tangent = jax.jvp(
    lambda x: linear.wide_product(x, jnp.asarray(kernel.T), 1), (x,), (dx,)
  )
  assert_close(out, x @ kernel, TOLERANCE)
  assert_close(tangent, dx @ kernel, TOLERANCE)


# --- Cache -------------------------------------------------------------------


def test_cache_is_a_tree_of_two():
  cache = Cache(jnp.ones((2, 5, 4)), jnp.ones((2, 3, 8, 6)))
  doubled = jax.tree.map(lambda a: 2 * a, cache)
  assert isinstance(doubled, Cache) and (doubled.conv_state == 2).all()
  assert Cache._fields == ("conv_state", "recurrent_state")
  check_cache(doubled, cache)
  for name in Cache._fields:
    bad = cache._replace(**{name: getattr(cache, name)[:1]})
    with oracles.refused(ValueError, rf"cache\.{name} must be float32 of shap"):
      check_cache(bad, cache)
  with oracles.refused(ValueError, r"got bfloat16 of shape \(2, 3, 8, 6\)"):
    narrow = jnp.bfloat16(cache.recurrent_state)
    check_cache(cache._replace(recurrent_state=narrow), cache)
  with oracles.refused(TypeError, "cache must be a Cache, got KeyValueCache"):
    check_cache(KeyValueCache(*cache), cache)


# --- What the block refuses --------------------------------------------------


@functools.cache
def block(**options):
  return models.delta_net(**options)


@pytest.mark.parametrize(
  "options, sentence",
  [
    (
      {"linear_num_value_heads": 3},
      "num_value_heads must be a whole multiple of",
    ),
    ({"linear_num_key_heads": 0}, "num_key_heads must be at least 1, got 0"),
    ({"hidden_size": -1}, "hidden_size must be at least 1, got -1"),
    ({"linear_key_head_dim": 0}, "key_head_dim must be at least 1, got 0"),
    ({"linear_value_head_dim": 0}, "value_head_dim must be at least 1, got 0"),
    (
      {"linear_conv_kernel_dim": 0},
      "linear_conv_kernel_dim must be at least 1, got 0",
    ),
    (
      {"linear_num_key_heads": 2.0},
      "num_key_heads must be an integer, got 2.0",
    ),
    ({"decay_init": "fast"}, 'decay_init must be "qwen" or "slow", got '),
    ({"chunk_size": 48}, "chunk_size must be a power of two, got 48"),
    ({"implementation": "cuda"}, "implementation must be one of"),
  ],
)
def test_bad_options(options, sentence):
  with oracles.refused(ValueError, sentence):
    block(**options)


X = normal(2, 4, 24)
IDS = np.zeros((2, 4), np.int32)


@pytest.mark.parametrize(
  "x, options, kind, sentence",
  [
    (
      X[0],
      {},
      ValueError,
      r"x must have shape \[B, T >= 1, 24\], got \(4, 24\)",
    ),
    (X[..., 1:], {}, ValueError, r"x must have shape \[B, T >= 1, 24\]"),
    (X[:, :0], {}, ValueError, r"x must have shape \[B, T >= 1, 24\]"),
    (X.astype(np.int32), {}, TypeError, "x must be floating point"),
    (X.tolist(), {}, TypeError, "x must be an array, got list"),
    (
      X,
      {"segment_ids": IDS, "mask": IDS},
      ValueError,
      "segment_ids and mask exclude each other",
    ),
    (X, {"mask": IDS[:, :3]}, ValueError, r"mask must have shape \[B, T\]"),
    (X, {"segment_ids": IDS[0]}, ValueError, "segment_ids must have shape"),
    (
      X,
      {"segment_ids": IDS.astype(np.float32)},
      TypeError,
      "segment_ids must be an integer array",
    ),
    (
      X[:, :1],
      {"segment_ids": np.zeros((2, 1), np.float32)},
      TypeError,
      "segment_ids must be an integer array",
    ),
    (
      X,
      {"segment_ids": np.tile(np.int32([0, 1, 0, 1]), (2, 1))},
      ValueError,
      "an id of its own, but row 0 comes back to 0",
    ),
    (
      X,
      {"mask": np.array([[0, 1, 1, 0], [1, 0, 1, 0]])},
      ValueError,
      "mask must mark one run of tokens in a row, .* but row 1 has 2 runs",
    ),
    (
      X,
      {"mask": IDS * np.nan},
      TypeError,
      "mask must be an array of bool or integers, nonzero .*, got dtype float",
    ),
    (X, {"mask": IDS.tolist()}, TypeError, "mask must be an array, got list"),
    (
      X,
      {"segment_ids": IDS.tolist()},
      TypeError,
      "segment_ids must be an integer array",
    ),
  ],
)
def test_bad_inputs(x, options, kind, sentence):
  with oracles.refused(kind, sentence):
    block()(x, **options)


def test_bad_caches():
  layer = block()
  other = layer.init_cache(3)
  good = layer.init_cache(2)
  for name in Cache._fields:
    bad = good._replace(**{name: getattr(other, name)})
    with oracles.refused(ValueError, rf"cache\.{name} must be float32 of shap"):
      layer(X, cache=bad)
