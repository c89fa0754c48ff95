"""Quantised weights: codes, exact products, and models made of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax.layers.linear import linear
from neumann_jax.weight_quantization import matrix as weight_quant
from neumann_jax.weight_quantization.matrix import (
  PRESETS,
  QuantizedKernel,
  WeightQuantSpec,
)
from neumann_jax.weight_quantization.quantized_model import (
  QuantizedExperts,
  QuantizedLinear,
  quantize_weights,
)
from tests import oracles

LARGEST = {4: 7, 8: 127, 16: 32639}
DENSE = neumann_jax.ModelConfig(
  hidden_size=32,
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  intermediate_size=40,
  head_dim=16,
  linear_num_key_heads=2,
  linear_num_value_heads=4,
  linear_key_head_dim=8,
  linear_value_head_dim=8,
)
SPARSE = dataclasses.replace(
  DENSE,
  model_type="qwen3_5_moe_text",
  num_experts=4,
  num_experts_per_tok=2,
  moe_intermediate_size=24,
  shared_expert_intermediate_size=16,
)


def model(config=DENSE, *, chunk_size=16, **execution):
  """Drawn weights of a size that makes every layer count, nothing compiled."""
  rule = neumann_jax.RuleOptions(chunk_size=chunk_size)
  execution = neumann_jax.Execution(rule=rule, **execution)
  shapes = nnx.eval_shape(
    lambda: neumann_jax.LanguageModel(config, execution, rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(shapes)
  rng = np.random.default_rng(5)

  def draw(x):
    return jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype)

  return nnx.merge(graph, jax.tree.map(draw, state))


def quantize(plain, spec):
  """Compiled at once, because hundreds of eager operations take seconds."""
  graph, state = nnx.split(plain)
  new = None

  @oracles.quick_jit
  def run(state):
    nonlocal new
    new, state = nnx.split(quantize_weights(nnx.merge(graph, state), spec))
    return state

  state = run(state)
  return nnx.merge(new, state)


# Compiled for the same reason.
applied = oracles.quick_jit(lambda layer, x: layer(x))


def tokens(*shape):
  return jnp.asarray(np.random.default_rng(3).integers(0, 256, shape))


def matrix(rows, columns=6, seed=0):
  """A zero column, an outlier, tiny and huge columns, ties between codes."""
  rng = np.random.default_rng([seed, rows])
  w = rng.standard_normal((rows, columns)).astype(np.float32)
  w[:, 0] = 0
  w[rows // 2, 1] = 1e3
  w[:, 2] *= 1e-30
  w[:, 3] *= 1e30
  w[:, 4] = rng.integers(-14, 15, rows) / 2  # multiples of half a 4-bit code
  w[0, 4] = 7
  return w


def groups_of(rows, group):
  group = rows if group is None else group
  return np.arange(rows) // group


@pytest.mark.parametrize("group", [None, 5, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_entries_are_within_half_a_scale(bits, group):
  w = matrix(24)
  kernel = QuantizedKernel(jnp.asarray(w), WeightQuantSpec(bits, None, group))
  codes, scale = np.asarray(kernel.codes[...]), np.asarray(kernel.scale[...])
  number = groups_of(len(w), group)
  assert codes.dtype == np.int8 and codes.shape == w.shape
  assert scale.shape == (number[-1] + 1, w.shape[1]) and (scale > 0).all()
  assert np.abs(codes).max() == LARGEST[bits]
  by_row = scale[number].astype(np.float64)
  # One float32 rounding of the reciprocal moves the border by that much.
  error = np.abs(w - by_row * codes)
  assert (error <= by_row / 2 * (1 + 1e-5)).all()
  for g in range(number[-1] + 1):
    top = np.abs(w[number == g]).max(axis=0)
    np.testing.assert_allclose(
      scale[g][top > 0], top[top > 0] / LARGEST[bits], rtol=3e-7
    )
  np.testing.assert_allclose(
    np.asarray(kernel.dequantized(), np.float64), by_row * codes, rtol=1e-7
  )


@pytest.mark.parametrize("name", ["W4", "W8-g128"])
def test_quantising_what_is_quantised_changes_no_code(name):
  once = QuantizedKernel(jnp.asarray(matrix(300)), PRESETS[name])
  again = QuantizedKernel(once.dequantized(), PRESETS[name])
  np.testing.assert_array_equal(once.codes[...], again.codes[...])


def _activation_codes(x, bits):
  """Float32 operations one by one, as `quantize` defines them."""
  q = LARGEST[bits]
  top = np.abs(x).max(axis=-1, keepdims=True)
  tiny = np.finfo(np.float32).tiny
  scale = np.maximum(top * np.float32(1 / q), tiny)
  codes = np.floor(x * (np.float32(1) / scale) + np.float32(0.5))
  return np.clip(codes, -q, q).astype(np.int64), scale


def _quantised_linear(w, spec):
  layer = linear(*w.shape, rngs=nnx.Rngs(0))
  layer.kernel[...] = jnp.asarray(w)
  return QuantizedLinear(layer, spec)


def test_w8a8_is_the_int32_product_bit_for_bit():
  rng = np.random.default_rng(1)
  w = matrix(3000)
  w[:, 5] = np.abs(w[:, 5].max())  # sums of 3000 * 127^2: past float32's 2^24
  x = rng.standard_normal((7, 3000)).astype(np.float32)
  x[0], x[1], x[2] = 1, 0, np.linspace(0.9, 1, 3000)
  layer = _quantised_linear(w, PRESETS["W8A8"])
  codes = np.asarray(layer.kernel.codes[...], np.int64)
  n, x_scale = _activation_codes(x, 8)
  total = n @ codes
  assert np.abs(total).max() > 2**24 and np.abs(total).max() < 2**31
  want = total.astype(np.float32) * np.asarray(layer.kernel.scale[...])
  want = want * x_scale
  np.testing.assert_array_equal(jax.jit(lambda f, x: f(x))(layer, x), want)


@pytest.mark.parametrize(
  "name", ["W4", "W8-g128", "W8A16", "W4A16-g128", "W8A8-g128"]
)
def test_products_are_those_of_the_quantised_values(name):
  spec = PRESETS[name]
  w, rng = matrix(300), np.random.default_rng(2)
  w[:, 3] *= 1e-30
  x = rng.standard_normal((2, 5, 300)).astype(np.float32)
  x[0, 0] = 0
  layer = _quantised_linear(w, spec)
  seen = x.astype(np.float64)
  if spec.activation_bits:
    n, x_scale = _activation_codes(x, spec.activation_bits)
    seen = n * x_scale.astype(np.float64)
  kernel = layer.kernel
  scale = np.asarray(kernel.scale[...], np.float64)
  values = np.asarray(kernel.codes[...]) * scale[groups_of(300, spec.group)]
  found = np.asarray(applied(layer, jnp.asarray(x)), np.float64)
  size = np.abs(seen) @ np.abs(values)  # of the sum's terms
  assert (np.abs(found - seen @ values) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("name", ["W8", "W4A16-g128", "W8A8"])
def test_experts_multiply_by_their_own_codes_and_scales(name):
  config = dataclasses.replace(SPARSE, hidden_size=160)
  layer = model(config).layers[0].mlp
  rng = np.random.default_rng(4)
  size = rng.uniform(0.1, 10, (4, 1, 1)).astype(np.float32)
  layer.experts.gate_up_proj[...] *= jnp.asarray(size)
  quantised = QuantizedExperts(layer.experts, PRESETS[name])
  x = jnp.asarray(rng.standard_normal((6, 160)), jnp.float32)
  sizes = jnp.asarray([3, 0, 1, 2])
  found = oracles.quick_jit(lambda f, *x: f.multiply("gate_up_proj", *x))(
    quantised, x, sizes
  )
  kernel = quantised.gate_up_proj
  rows = []
  for row, expert in zip(np.asarray(x), [0, 0, 0, 2, 3, 3]):
    scale = np.asarray(kernel.scale[expert], np.float64)
    values = (
      np.asarray(kernel.codes[expert])
      * (scale[groups_of(160, PRESETS[name].group)])
    )
    seen = row
    if bits := PRESETS[name].activation_bits:
      n, x_scale = _activation_codes(row, bits)
      seen = n * x_scale.astype(np.float64)
    rows.append(seen @ values)
  oracles.assert_close(found, np.stack(rows), 2e-6)


KINDS = {
  "dense": (DENSE, {}),
  "experts": (SPARSE, {}),
  "scanned": (
    dataclasses.replace(
      SPARSE, num_hidden_layers=4, layer_types=2 * SPARSE.layer_types
    ),
    {"scan_layers": True},
  ),
}
# Linear maps that are quantised, each name with its count.
REPLACED = {"dense": 5 + 4 + 2 * 3, "experts": 5 + 4 + 2 * 5, "scanned": 19}


def _values_of(plain, quantised):
  """Writes the values that the codes stand for into the plain model."""
  count = 0
  for path, node in nnx.iter_graph(quantised):
    if isinstance(node, QuantizedKernel):
      kernel = plain
      for part in path:
        kernel = (
          kernel[part] if isinstance(part, int) else (getattr(kernel, part))
        )
      assert kernel.shape == node.codes[...].shape
      kernel[...] = node.dequantized()
      count += 1
  return count


@functools.partial(oracles.quick_jit, static_argnums=0)
def _call(graph, state, tokens, cache):
  return nnx.merge(graph, state)(tokens, cache=cache)


def _logits(model, tokens, cache=None):
  logits, cache = _call(*nnx.split(model), tokens, cache)
  return logits if cache is None else (logits, cache)


@pytest.mark.parametrize(
  "kind",
  [
    "dense",
    pytest.param("experts", marks=pytest.mark.slow),
    pytest.param("scanned", marks=pytest.mark.slow),
  ],
)
def test_a_quantised_model_is_the_model_of_the_quantised_weights(kind):
  config, execution = KINDS[kind]
  plain, ids = model(config, **execution), tokens(2, 21)
  before = [np.asarray(x) for x in jax.tree.leaves(nnx.state(plain))]
  quantised = quantize(plain, PRESETS["W8-g128"])
  after = jax.tree.leaves(nnx.state(plain))
  assert all((x == y).all() for x, y in zip(before, after, strict=True))
  trained = _logits(plain, ids)
  found = _logits(quantised, ids)
  assert _values_of(plain, quantised) == REPLACED[kind]
  oracles.assert_close(found, _logits(plain, ids), oracles.FLOAT32_BLOCK)
  assert oracles.error(found, trained) > 1e-3  # and not of the trained ones


@pytest.mark.slow
def test_quantising_under_jit_and_another_execution():
  plain, ids = model(), tokens(1, 19)
  eager = quantize_weights(plain, PRESETS["W4A16-g128"])

  jitted = quantize(plain, PRESETS["W4A16-g128"])
  # Compilers may round the reciprocal of a scale's divisor once more.
  for a, b in zip(
    jax.tree.leaves(nnx.state(eager)),
    jax.tree.leaves(nnx.state(jitted)),
    strict=True,
  ):
    assert a.dtype == b.dtype
    if a.dtype == jnp.int8:
      assert (a == b).mean() > 0.999
    else:
      np.testing.assert_allclose(a, b, rtol=1e-6)
  exact = neumann_jax.InverseSpec("exact")
  other = eager.with_execution(spec=exact, chunk_size=8)
  assert other.layers[0].linear_attn.rule.spec == exact
  oracles.assert_close(_logits(other, ids), _logits(eager, ids), 1e-3)
  cache = eager.init_cache(1, 19)
  first, cache = _logits(eager, ids[:, :7], cache)
  second, _ = _logits(eager, ids[:, 7:], cache)
  split = jnp.concatenate([first, second], axis=1)
  oracles.assert_close(split, _logits(eager, ids), 1e-3)


def test_what_stays_and_what_keep_changes():
  plain = model(SPARSE)
  default = quantize_weights(plain, PRESETS["W4"])
  for stays in (
    lambda m: m.lm_head.kernel,
    lambda m: m.layers[0].mlp.gate.kernel,
    lambda m: m.layers[0].mlp.shared_expert_gate.kernel,
    lambda m: m.embed_tokens.embedding,
    lambda m: m.layers[0].linear_attn.conv1d,
    lambda m: m.layers[0].linear_attn.A_log,
  ):
    assert stays(default)[...] is stays(plain)[...]
  everything = quantize_weights(plain, PRESETS["W4"], keep=())
  assert isinstance(everything.lm_head, QuantizedLinear)
  assert isinstance(everything.layers[0].mlp.gate, QuantizedLinear)
  logits = everything.logits(jnp.ones((1, 2, 32)))
  assert logits.dtype == jnp.float32
  gates = quantize_weights(
    plain, PRESETS["W4"], keep=("in_proj_a", "in_proj_b")
  )
  assert isinstance(gates.layers[0].linear_attn.in_proj_a, nnx.Linear)
  assert isinstance(gates.layers[0].linear_attn.in_proj_z, QuantizedLinear)


def test_biases_and_dtypes_go_through():
  layer = linear(8, 4, use_bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  layer.bias[...] = jnp.arange(4.0)
  for name in ("W8", "W8A16"):
    quantised = QuantizedLinear(layer, PRESETS[name])
    y = applied(quantised, jnp.zeros((2, 8)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y[1], np.float32), np.arange(4))


def test_names():
  assert PRESETS["W4A16"] == WeightQuantSpec(4, 16, None)
  assert weight_quant.preset("W8A8-g128") == WeightQuantSpec(8, 8, 128)
  assert weight_quant.preset("W8") == WeightQuantSpec(8, None, None)
  with oracles.refused(ValueError, "one of W4, W4-g128, .*; got 'W3'"):
    weight_quant.preset("W3")


def test_refusals():
  for fields, words in (
    ({"weight_bits": 16}, "weight_bits must be 4 or 8, got 16"),
    ({"activation_bits": 4}, "activation_bits must be None, 8 or 16, got 4"),
    ({"group": 0}, "group must be an integer of at least 1 or None, got 0"),
    ({"group": 2.0}, "group must be an integer of at least 1 or None, got 2.0"),
  ):
    with oracles.refused(ValueError, words):
      WeightQuantSpec(**fields)
  plain = model()
  with oracles.refused(TypeError, "spec must be a WeightQuantSpec.*'W8A8'"):
    quantize_weights(plain, "W8A8")
  with oracles.refused(ValueError, "keep must be among .*; got 'q_prj'"):
    quantize_weights(plain, PRESETS["W8"], keep=("q_prj",))
  once = quantize_weights(plain, PRESETS["W8"])
  with oracles.refused(ValueError, "model is quantised already"):
    quantize_weights(once, PRESETS["W4"])
