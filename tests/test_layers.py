"""The Gated DeltaNet block against a float64 block, and its use of a cache.

Its parts and what it refuses are in test_layer_parts.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import Cache
from tests import float64_rule, models, oracles
from tests.oracles import assert_close

HIDDEN = models.BLOCK["hidden_size"]


def block(seed=0, **options):
  """A small block; parameters that start at 1 are drawn, so that all count."""
  layer = models.delta_net(seed=seed, **{"chunk_size": 16} | options)
  rng = np.random.default_rng(seed)
  for start in (layer.dt_bias, layer.norm.weight):
    drawn = rng.uniform(0.5, 1.5, start[...].shape)
    start[...] = jnp.asarray(drawn, start[...].dtype)
  return layer


def hidden_states(*shape, seed=1):
  x = np.random.default_rng(seed).standard_normal((*shape, HIDDEN))
  return x.astype(np.float32)


def checkpoint(layer):
  """The parameters by Hugging Face name and layout, in float64."""
  linear = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
  weights = {f"{n}.weight": getattr(layer, n).kernel[...].T for n in linear}
  weights["conv1d.weight"] = layer.conv1d[...].T[:, None]
  weights["A_log"], weights["dt_bias"] = layer.A_log[...], layer.dt_bias[...]
  weights["norm.weight"] = layer.norm.weight[...]
  return {name: np.asarray(w, np.float64) for name, w in weights.items()}


def truth_of(layer, x, segment_ids=None, weights=None):
  return float64_rule.gated_delta_net(
    x,
    checkpoint(layer) if weights is None else weights,
    key_heads=layer.config.linear_num_key_heads,
    value_heads=layer.config.linear_num_value_heads,
    key_dim=layer.config.linear_key_head_dim,
    value_dim=layer.config.linear_value_head_dim,
    segment_ids=segment_ids,
  )


def _layer(graph, state, x, cache, segment_ids, mask):
  layer = nnx.merge(graph, state)
  return layer(x, cache=cache, segment_ids=segment_ids, mask=mask)


_call = oracles.quick_jit(_layer, static_argnums=0)
# Where the bits of two programs are compared.
_call_in_order = oracles.same_order_jit(_layer, static_argnums=0)


@functools.partial(oracles.quick_jit, static_argnums=0)
def _matrices(graph, state, x, segment_ids):
  return nnx.merge(graph, state).chunk_matrices(x, segment_ids=segment_ids)


def matrices(layer, x, segment_ids=None):
  return _matrices(*nnx.split(layer), x, segment_ids)


def call(layer, x, cache=None, segment_ids=None, mask=None):
  return _call(*nnx.split(layer), x, cache, segment_ids, mask)


# --- Values ------------------------------------------------------------------


@pytest.mark.parametrize(
  "key_heads, value_heads, width, length, decay_init",
  [
    (2, 4, 4, 40, "slow"),
    (2, 4, 4, 40, "qwen"),
    (2, 2, 4, 17, "slow"),
    (1, 3, 2, 17, "slow"),
    (1, 4, 1, 5, "slow"),
    (2, 4, 4, 2, "slow"),
    (2, 4, 4, 1, "slow"),
  ],
)
def test_block_is_the_float64_block(
  key_heads, value_heads, width, length, decay_init
):
  layer = block(
    linear_num_key_heads=key_heads,
    linear_num_value_heads=value_heads,
    linear_conv_kernel_dim=width,
    decay_init=decay_init,
  )
  x = hidden_states(2, length)
  found, truth = call(layer, x), truth_of(layer, x)
  want = truth.y, Cache(truth.conv_state, truth.recurrent_state)
  assert_close(found, want, oracles.FLOAT32_BLOCK)


def test_chunk_matrices_are_those_of_the_block():
  layer, x = block(decay_init="slow"), hidden_states(2, 32)
  ids = np.tile((np.arange(32) >= 11).astype(np.int32), (2, 1))
  _, k, _, log_decay, beta = truth_of(layer, x, ids).operands
  found = matrices(layer, x, ids)
  alone = oracles.quick_jit(
    neumann_jax.chunk_matrices, static_argnames="chunk_size"
  )
  want = alone(
    *(np.float32(a) for a in (k, log_decay, beta)),
    segment_ids=ids,
    chunk_size=16,
  )
  assert found.a.shape == (2, 4, 2, 16, 16)
  assert_close(found, want, oracles.FLOAT32_BLOCK)


def test_chunk_size_does_not_show():
  x = hidden_states(2, 40)
  found = [call(block(chunk_size=c, decay_init="slow"), x) for c in (1, 64)]
  assert_close(found[0], found[1], oracles.FLOAT32_BLOCK)


@pytest.mark.parametrize(
  "name, low, high", [("qwen", 0.01, 16.0), ("slow", 0.001, 0.01)]
)
def test_decay_init(name, low, high):
  """A token of zeros has a = 0 and dt_bias = 1: log decay -rate softplus(1)."""
  layer = models.delta_net(decay_init=name, linear_num_value_heads=64)
  assert (layer.dt_bias[...] == 1).all()
  rate = np.exp(np.float64(layer.A_log[...]))
  assert low <= rate.min() and rate.max() <= high
  # 64 uniform draws leave a tenth of the range empty at an end with
  # probability 0.9^64 = 0.1 %.
  assert rate.min() < low + (high - low) / 10
  assert rate.max() > high - (high - low) / 10
  found = matrices(layer, np.zeros((1, 2, HIDDEN), np.float32)).log_decay
  want = np.broadcast_to(-rate * np.log1p(np.e), (1, 64))
  assert_close(found[:, :, 0, 0], want, oracles.FLOAT32_BLOCK)


def test_slow_decay_remembers_what_qwen_forgets():
  def kept(name):  # of the state after 64 tokens, [1, Hv]
    found = matrices(block(decay_init=name), hidden_states(1, 64))
    return np.exp(np.asarray(found.log_decay, np.float64).sum((2, 3)))

  assert kept("slow").min() > 0.1  # 64 * 0.01 * softplus(3) = 2 at most
  assert np.median(kept("qwen")) < 1e-3


# --- Cache -------------------------------------------------------------------


@pytest.mark.parametrize(
  "width, cuts",
  [
    (4, ([7], [2], [17, 18, 19])),
    pytest.param(1, ([7],), marks=pytest.mark.slow),
    pytest.param(2, ([1],), marks=pytest.mark.slow),
  ],
)
def test_decoding_is_prefill(width, cuts):
  """Token by token and in pieces, some shorter than the convolution."""
  layer = block(linear_conv_kernel_dim=width, decay_init="slow")
  x = hidden_states(2, 20)
  whole = call(layer, x)
  for borders in (range(1, 20), *cuts):
    cache, outputs = layer.init_cache(2), []
    for start, stop in zip([0, *borders], [*borders, 20], strict=True):
      y, cache = call(layer, x[:, start:stop], cache)
      outputs.append(y)
    found = np.concatenate(outputs, 1), cache
    assert_close(found, whole, oracles.FLOAT32_BLOCK)


def test_no_cache_is_an_empty_one():
  layer, x = block(), hidden_states(2, 3)
  chex.assert_trees_all_equal(
    call(layer, x), call(layer, x, layer.init_cache(2))
  )


def test_the_cache_is_what_it_says():
  layer, x = block(), hidden_states(3, 5)
  empty = layer.init_cache(3)
  _, cache = call(layer, x)
  chex.assert_trees_all_equal_shapes_and_dtypes(empty, cache)
  assert cache.conv_state.shape == (3, 2 * 2 * 8 + 4 * 6, 4)
  assert cache.recurrent_state.shape == (3, 4, 8, 6)
  assert not any(np.asarray(a).any() for a in empty)


# --- Documents and padding ---------------------------------------------------


def test_documents_are_sequences_alone():
  """Shorter than the convolution too; the cache is that of the last one."""
  layer = block(decay_init="slow")
  sizes = (3, 1, 14, 2)
  ids = np.repeat(np.int32([0, 1, 4, 5]), sizes)[None].repeat(2, 0)
  x = hidden_states(2, 20)
  empty, rng = layer.init_cache(2), np.random.default_rng(2)
  before = jax.tree.map(
    lambda held: np.float32(rng.standard_normal(held.shape)), empty
  )
  y, cache = call(layer, x, before, ids)
  truth = truth_of(layer, x, ids)
  assert_close(y[:, 3:], truth.y[:, 3:], oracles.FLOAT32_BLOCK)
  want = Cache(truth.conv_state, truth.recurrent_state)
  assert_close(cache, want, oracles.FLOAT32_BLOCK)
  # What was cached enters the first document and nothing else.
  assert_close(
    y[:, :3], call(layer, x[:, :3], before)[0], oracles.FLOAT32_BLOCK
  )
  with_it, without = (
    _call_in_order(*nnx.split(layer), x, held, ids, None)[0]
    for held in (before, empty)
  )
  chex.assert_trees_all_equal(with_it[:, 3:], without[:, 3:])
  assert oracles.error(y[:, :3], without[:, :3]) > 1e-2
  # One document at a time is the same as well.
  start = 0
  for size in sizes[:-1]:
    start += size
  alone = call(layer, x[:, start:])
  assert_close((y[:, start:], cache), alone, oracles.FLOAT32_BLOCK)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("sizes", [(9, 2), (1, 0)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_nothing(side, sizes, fresh):
  """Rows of different lengths, NaN as padding, at a start and later on."""
  layer, x = block(decay_init="slow"), hidden_states(2, max(sizes))
  cache = layer.init_cache(2)
  if not fresh:
    cache = call(layer, hidden_states(2, 6, seed=2))[1]
  total = max(sizes) + 3
  padded = np.full((2, total, HIDDEN), np.nan, np.float32)
  mask = np.zeros((2, total), bool)
  for row, size in enumerate(sizes):
    place = slice(total - size, None) if side == "left" else slice(size)
    padded[row, place], mask[row, place] = x[row, :size], True
  y, after = call(layer, padded, cache, None, mask)
  assert not np.asarray(y)[~mask].any()
  for row, size in enumerate(sizes):
    one = jax.tree.map(lambda a: a[row : row + 1], (cache, after))  # noqa: B023
    if not size:
      chex.assert_trees_all_equal(one[0], one[1])
      continue
    want = call(layer, x[row : row + 1, :size], one[0])
    found = y[row][mask[row]][None], one[1]
    assert_close(found, want, oracles.FLOAT32_BLOCK)


# --- Gradients ---------------------------------------------------------------


def test_gradient_of_every_parameter():
  """Slopes along random directions, of the float64 block by differences."""
  layer, x = block(decay_init="slow"), hidden_states(2, 20)
  ids = np.tile((np.arange(20) >= 13).astype(np.int32), (2, 1))
  rng = np.random.default_rng(4)
  g = rng.standard_normal(x.shape)

  graph, state = nnx.split(layer)

  @oracles.quick_jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(state, x):
    y, _ = nnx.merge(graph, state)(x, segment_ids=ids)
    return jnp.sum(y * np.float32(g))

  by_state, by_x = gradients(state, x)
  by_parameter = nnx.merge(graph, by_state)
  found = checkpoint(by_parameter)
  weights = checkpoint(layer)
  assert len(found) == len(jax.tree.leaves(state)) == 9
  found["x"], weights["x"] = np.float64(by_x), np.float64(x)
  for name, gradient in found.items():
    assert np.isfinite(gradient).all(), name
    # Every entry counts, except where a weight meets nothing but zeros.
    assert (gradient != 0).mean() > 0.99, name
    direction = rng.standard_normal(gradient.shape)
    values = []
    for step in (1e-5, -1e-5):
      moved = weights | {name: weights[name] + step * direction}
      y = truth_of(layer, moved.pop("x"), ids, moved).y
      values.append(np.vdot(g, y))
    slope = (values[0] - values[1]) / 2e-5
    size = np.linalg.norm(gradient) * np.linalg.norm(direction)
    gap = abs(slope - np.vdot(gradient, direction))
    assert gap <= oracles.FLOAT32_RULE_GRADIENT * size, (name, gap / size)


def test_decays_of_any_size_are_right_and_have_gradients():
  """exp(A_log) overflows or the gate's softplus vanishes; their product not.

  Heads that keep all, that forget e^-4 a token, everything, and e^-1.
  """
  layer, x = block(decay_init="slow"), hidden_states(2, 20)
  layer.A_log[...] = jnp.asarray([100.0, 100.0, 100.0, 89.0])
  layer.dt_bias[...] = jnp.asarray([-300.0, -104.0, 1.0, -90.0])
  truth = truth_of(layer, x)
  want = truth.y, Cache(truth.conv_state, truth.recurrent_state)
  assert_close(call(layer, x), want, oracles.FLOAT32_BLOCK)
  graph, state = nnx.split(layer)

  @oracles.quick_jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(state, x):
    return jnp.sum(nnx.merge(graph, state)(x)[0] ** 2)

  found = gradients(state, x)
  chex.assert_tree_all_finite(found)
  slopes = np.asarray(nnx.merge(graph, found[0]).A_log[...])
  assert slopes[1] != 0 and slopes[3] != 0
  assert slopes[2] == 0  # more of it forgets no more


def test_truncated_gradient_is_that_of_what_was_computed():
  """Of an inverse that is far off; the implicit one is of another function."""
  spec = neumann_jax.InverseSpec("banded", order=1, residual_steps=1)
  x = hidden_states(2, 32)
  rng = np.random.default_rng(5)
  g, direction = (np.float32(rng.standard_normal(x.shape)) for _ in range(2))

  def value(layer, x):
    return jnp.sum(layer(x)[0] * g)

  gaps = {}
  for gradient in ("truncated", "implicit"):
    layer = block(decay_init="slow", spec=spec, gradient=gradient)
    slope = oracles.quick_jit(jax.grad(functools.partial(value, layer)))(x)
    if not gaps:
      run = oracles.quick_jit(functools.partial(value, layer))
      ends = [float(run(x + step * direction)) for step in (1e-2, -1e-2)]
      truth = (ends[0] - ends[1]) / 2e-2
    gaps[gradient] = abs(float(np.vdot(slope, direction)) - truth)
  size = np.linalg.norm(slope) * np.linalg.norm(direction)
  # Differences of float32 sums over a step of 1e-2: 2e-5 of the size.
  assert gaps["truncated"] <= 1e-4 * size, gaps
  assert gaps["implicit"] > 1e-3 * size, gaps


# --- Use ---------------------------------------------------------------------


def test_one_trace_over_changing_inputs():
  traces = 0

  @nnx.jit
  def step(layer, x, cache):
    nonlocal traces
    traces += 1
    return layer(x, cache=cache)

  layer = block()
  cache = layer.init_cache(2)
  for seed in range(3):
    y, cache = step(layer, hidden_states(2, 1, seed=seed), cache)
  assert traces == 1
  step(block(seed=1), hidden_states(2, 1), cache)  # weights are inputs too
  assert traces == 1
  chex.assert_tree_all_finite((y, cache))


def test_same_seed_same_bits():
  x = hidden_states(2, 5)
  first, again, other = (call(block(seed=s), x) for s in (3, 3, 4))
  chex.assert_trees_all_equal(first, again)
  assert oracles.error(other[0], first[0]) > 1e-2


@pytest.mark.slow
def test_bfloat16_is_near_float32():
  """Weights in bfloat16 both times: only the activations are rounded.

  Six roundings on the way of a value (projection, convolution, rule, norm,
  gate, output), each within 2^-8, and what normalisation makes of those of
  q and k: twice that, relative to the largest output.
  """
  options = {"param_dtype": jnp.bfloat16, "decay_init": "slow"}
  x = hidden_states(2, 40)
  narrow = block(dtype=jnp.bfloat16, **options)
  wide = block(dtype=jnp.float32, **options)
  assert narrow.in_proj_qkv.kernel[...].dtype == jnp.bfloat16
  assert narrow.A_log[...].dtype == narrow.dt_bias[...].dtype == jnp.float32
  y, cache = call(narrow, x)
  want, wide_cache = call(wide, x)
  assert y.dtype == cache.conv_state.dtype == jnp.bfloat16
  assert cache.recurrent_state.dtype == want.dtype == jnp.float32
  found = jax.tree.map(lambda a: a.astype(jnp.float32), (y, cache))
  assert_close(found, (want, wide_cache), 12 * 2.0**-8)
  token, after = call(narrow, x[:, :1], cache)
  assert token.dtype == jnp.bfloat16
  chex.assert_trees_all_equal_shapes_and_dtypes(after, cache)
