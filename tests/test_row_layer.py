"""A layer's step of one row as one kernel, its body in interpret mode.

On a card see `experiments.model_speed`.
"""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import backends, sharding
from neumann_jax.layers.caches.cache import Cache, KeyValueCache
from neumann_jax.layers.kernels import (
  layer_gpu,
  layer_plan,
  layer_weights,
  stages,
)
from neumann_jax.layers.one_kernel import row_weights
from neumann_jax.layers.positions import Positions
from neumann_jax.model.decoder import DecoderLayer, Tokens
from tests import kernel_bodies, models, oracles

CONFIG = neumann_jax.ModelConfig(
  vocab_size=64,
  hidden_size=256,
  num_hidden_layers=1,
  layer_types=("linear_attention",),
  intermediate_size=256,
  head_dim=64,
  num_attention_heads=2,
  num_key_value_heads=1,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=128,
  linear_value_head_dim=128,
  allow_neg_eigval=True,
)
LARGER = dataclasses.replace(
  CONFIG,
  hidden_size=512,
  intermediate_size=768,
  linear_num_key_heads=2,
  linear_num_value_heads=4,
)
IN_XLA = neumann_jax.Execution(
  dtype="bfloat16",
  param_dtype="bfloat16",
  rule=neumann_jax.RuleOptions(implementation="xla"),
)
AUTO = neumann_jax.RuleOptions()
NO_TOKENS = Tokens(None, None, None)
# Between two forms that round to 8 bits at the same places.
LIMIT = 1e-2


@models.drawn_by_numpy()
def layer_of(config, execution=IN_XLA):
  """With norms that do something."""
  layer = DecoderLayer(config, execution, 0, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for norm in (layer.input_layernorm, layer.post_attention_layernorm):
    size = norm.weight[...].shape
    norm.weight[...] = jnp.asarray(
      0.3 * rng.standard_normal(size), jnp.bfloat16
    )
  # Else the sum of the second half is the input but for rounding.
  for name in ("gate", "up", "down"):
    kernel = getattr(layer.mlp, f"{name}_proj").kernel
    kernel[...] = 4 * kernel[...]
  return layer


def operands_of_second(layer):
  return layer_weights.FeedForward(
    layer.post_attention_layernorm.weight[...],
    *(
      getattr(layer.mlp, f"{n}_proj").kernel[...]
      for n in ("gate", "up", "down")
    ),
  )


def operands(layer):
  mixer, weights = layer.mixer, operands_of_second(layer)
  projections = [
    getattr(mixer, f"in_proj_{n}").kernel[...] for n in ("qkv", "z", "b", "a")
  ]
  first = layer_weights.Mixer(
    layer.input_layernorm.weight[...],
    *projections,
    *mixer.between(),
    mixer.out_proj.kernel[...],
  )
  return weights, first


def drawn(layer):
  rng = np.random.default_rng(1)
  normal = lambda like: jnp.asarray(rng.standard_normal(like.shape), like.dtype)  # noqa: E731
  x = normal(jnp.zeros(layer.mixer.config.hidden_size, jnp.bfloat16))
  return x, Cache(*map(normal, layer.mixer.init_cache(1)))


def static(config):
  linear = "linear_attention" in config.layer_types
  return layer_weights.Static(
    config.linear_num_key_heads if linear else 0,
    2.0 if config.allow_neg_eigval else 1.0,
    config.rms_norm_eps,
  )


def given(x, weights, first, *kept):
  return layer_weights.Operands(x, weights, first, kept)


def launched(config, *arrays):
  call = lambda *arrays: layer_gpu.launched(  # noqa: E731
    static(config), given(*arrays), interpret=True
  )
  return jax.jit(call)(*arrays)


def check_waits(counters, unused=()):
  """Every program found exactly what it waited for, and all counts are used."""
  assert counters[stages.WRONG] == 0
  found = counters.reshape(-1, stages._LINE)[:, 0]
  assert set(np.flatnonzero(found == 0)) == set(unused)


@pytest.mark.parametrize(
  "config", [CONFIG, pytest.param(LARGER, marks=pytest.mark.slow)]
)
def test_the_kernel_is_the_layer(config):
  layer = layer_of(config)
  x, cache = drawn(layer)
  y, counters, history, state, *_ = launched(
    config, x, *operands(layer), *cache
  )
  run = nnx.jit(lambda layer, x, cache: layer(x, NO_TOKENS, cache))
  want, new = run(layer, x[None, None], cache)
  oracles.assert_close(np.float32(y)[None], np.float32(want[0]), LIMIT)
  # Columns are rounded after sums whose order differs.
  oracles.assert_close(np.float32(history), np.float32(new.conv_state), LIMIT)
  np.testing.assert_array_equal(history[..., :-1], cache.conv_state[..., 1:])
  oracles.assert_close(state, new.recurrent_state, LIMIT)
  check_waits(counters)


def test_the_kernel_is_the_second_half():
  layer = layer_of(CONFIG)
  weights, first = operands(layer)
  x, _ = drawn(layer)
  row = jnp.asarray(
    np.random.default_rng(2).standard_normal(first.out.shape[0]), jnp.bfloat16
  )
  left = layer_weights.Mixed(row, first.out)
  y, counters, *_ = launched(CONFIG, x, weights, left)
  middle = x[None] + row[None] @ first.out
  want = middle + layer.mlp(layer.post_attention_layernorm(middle))
  oracles.assert_close(np.float32(y)[None], np.float32(want), LIMIT)
  check_waits(counters, unused=[1])  # nothing is projected


ATTENTION = dataclasses.replace(
  CONFIG,
  layer_types=("full_attention",),
  head_dim=128,
  num_attention_heads=4,
  num_key_value_heads=2,
)


def token_at(slot, first):
  places = (jnp.full((1, 1), n, jnp.int32) for n in (slot, first, slot - first))
  return NO_TOKENS._replace(positions=Positions(*places))


def attention_operands(layer, tokens):
  half = row_weights.first_half(
    layer.mixer, layer.input_layernorm, layer.mixer.init_cache(1, 8), tokens
  )
  return operands_of_second(layer), half.weights()


@pytest.mark.parametrize(
  "slot, first, room, dim",
  [
    (75, 3, 100, 128),
    (0, 0, 8, 128),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in ((40, 35, 41, 128), (8, 0, 8, 128), (40, 3, 41, 256))
    ),
  ],
)
def test_the_kernel_is_a_layer_of_attention(
  slot, first, room, dim, monkeypatch
):
  """Several blocks a program, documents, an empty cache and a full one.

  A head of 256 is two of the tiles that follow attention.
  """
  monkeypatch.setattr(layer_plan, "_SPLITS", 2)
  heads = 512 // dim
  config = dataclasses.replace(
    ATTENTION,
    head_dim=dim,
    num_attention_heads=heads,
    num_key_value_heads=heads // 2,
  )
  layer = layer_of(config)
  for norm in (layer.mixer.q_norm, layer.mixer.k_norm):
    norm.weight[...] = jnp.linspace(-0.5, 2.0, dim, dtype=jnp.bfloat16)
  rng = np.random.default_rng(1)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)  # noqa: E731
  x, like = normal(256), layer.mixer.init_cache(1, room)
  cache = KeyValueCache(*(normal(*array.shape) for array in like))
  tokens = token_at(slot, first)
  halves = attention_operands(layer, tokens.positions)
  y, counters, keys, values, *_ = launched(config, x, *halves, *cache)
  run = nnx.jit(lambda layer, x, cache: layer(x, tokens, cache))
  want, new = run(layer, x[None, None], cache)
  oracles.assert_close(np.float32(y)[None], np.float32(want[0]), LIMIT)
  for found, whole, old in zip((keys, values), new, cache):
    oracles.assert_close(
      np.float32(found).reshape(1, -1), np.float32(whole).reshape(1, -1), LIMIT
    )
    kept = np.arange(room) != slot
    np.testing.assert_array_equal(found[:, kept], old[:, kept])
  check_waits(counters)


def test_the_kernel_has_no_numbers_of_64_bits():
  layer = layer_of(CONFIG)
  x, cache = drawn(layer)
  weights, first = operands(layer)
  step = functools.partial(layer_gpu.step, static(CONFIG))
  with jax.enable_x64(True):
    made = jax.make_jaxpr(step)(given(x, weights, first, *cache))
  assert kernel_bodies.wide(made.jaxpr) == set()


@pytest.mark.parametrize(
  "kind, dim",
  [
    ("linear_attention", 64),
    pytest.param("full_attention", 64, marks=pytest.mark.slow),
    ("full_attention", 128),
  ],
)
def test_a_layer_of_one_row_is_one_kernel_on_cuda(kind, dim):
  """And on a CPU what it is in XLA, but for where fusions round."""
  config = dataclasses.replace(CONFIG, layer_types=(kind,), head_dim=dim)
  execution = dataclasses.replace(IN_XLA, rule=AUTO)
  with models.drawn_by_numpy():
    model, plain = (
      neumann_jax.LanguageModel(config, how, rngs=nnx.Rngs(0))
      for how in (execution, IN_XLA)
    )
  graph, state = nnx.split(model)
  xla = nnx.graphdef(plain)
  token = jnp.ones((1, 1), jnp.int32)
  cache = model.init_cache(1, 8)

  def step(graph, state, token, cache):
    return nnx.merge(graph, state)(token, cache=cache)

  auto = lambda *args: step(graph, *args)  # noqa: E731
  found = jax.jit(auto)(state, token, cache)
  want = jax.jit(lambda *args: step(xla, *args))(state, token, cache)
  wide = lambda tree: jax.tree.map(np.float32, tree)  # noqa: E731
  oracles.assert_close(wide(found), wide(want), LIMIT)
  whole = kind == "linear_attention" or dim == 128
  name = "neumann_layer" if whole else "neumann_feed_forward"
  module = oracles.exported(auto, "cuda", state, token, cache).mlir_module()
  assert module.count(f'name = "{name}"') == 1
  # Rows that are no single one, and layers with other parts, keep theirs.
  two = jnp.ones((2, 1), jnp.int32), model.init_cache(2, 8)
  module = oracles.exported(auto, "cuda", state, *two).mlir_module()
  assert name not in module


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (lambda x, w, m, h, s: (jnp.stack([x, x]), w, m, h, s), "one row, got 2"),
    (
      lambda x, w, m, h, s: (x.astype(jnp.float32), w, m, h, s),
      "bfloat16 and float16, got float32",
    ),
    (
      lambda x, w, m, h, s: (
        x,
        w._replace(up=w.up.astype(jnp.float32)),
        m,
        h,
        s,
      ),
      "weights must be bfloat16",
    ),
    (
      lambda x, w, m, h, s: (x, w._replace(down=w.down[:200]), m, h, s),
      "200 rows are not a multiple of 128",
    ),
    (
      lambda x, w, m, h, s: (
        x,
        w._replace(
          gate=jax.ShapeDtypeStruct((2560, 9216), x.dtype),
          up=jax.ShapeDtypeStruct((2560, 9216), x.dtype),
        ),
        m,
        h,
        s,
      ),
      "5760 programs of a stage are more than 1100",
    ),
    (
      lambda x, w, m, h, s: (x, w, m, h, s[..., :64]),
      "values must have 128 entries, got 64",
    ),
    (
      lambda x, w, m, h, s: (
        x,
        w,
        layer_weights.Mixed(x.astype(jnp.float32), m.out),
        None,
        None,
      ),
      "what a mixer left must be bfloat16, got float32",
    ),
  ],
)
def test_what_the_kernel_refuses(change, sentence):
  layer = layer_of(CONFIG)
  x, cache = drawn(layer)
  wrong = given(*change(x, *operands(layer), *cache))
  found = layer_plan.refusal(static(CONFIG), wrong)
  assert found is not None
  assert sentence in found


@pytest.mark.parametrize(
  "change, sentence",
  [
    (
      lambda k: k.astype(jnp.float32),
      "cached keys must be bfloat16, got float",
    ),
    (lambda k: k[..., :64], "head_dim must be 128 or 256, got 64"),
    (
      lambda k: jnp.broadcast_to(k[:, :1], (1, 4353, *k.shape[2:])),
      "at most 4352 slots for one kernel, got 4353",
    ),
    (lambda k: k, None),
  ],
)
def test_what_the_kernel_refuses_of_attention(change, sentence):
  layer = layer_of(ATTENTION)
  keys = change(layer.mixer.init_cache(1, 8).keys)
  x = jnp.zeros(ATTENTION.hidden_size, jnp.bfloat16)
  halves = attention_operands(layer, token_at(3, 0).positions)
  step = given(x, *halves, keys, keys)
  found = layer_plan.refusal(static(ATTENTION), step)
  assert found is None if sentence is None else sentence in found


def test_key_heads_need_as_many_programs():
  layer = layer_of(CONFIG)
  x, cache = drawn(layer)
  many = static(CONFIG)._replace(key_heads=9)
  found = layer_plan.refusal(many, given(x, *operands(layer), *cache))
  assert found == "16 programs are too few for 9 key heads"


# --- Who names the kernel is told where it does not run -----------------------

LEFT = {
  "float32": "one kernel takes bfloat16 and float16, got float32",
  "bias": "dense projections without bias or adapters",
  "eps": "its norms must have one eps",
  "large": "programs of a stage are more than 15",
  "mesh": "it runs on one device, and there is a mesh",
  "attention": "attention='xla' is asked for",
}


def left(case, kind, name, monkeypatch):
  """A step of one row that is several kernels, as far as it is traced."""
  config = dataclasses.replace(CONFIG, layer_types=(kind,))
  rule = neumann_jax.RuleOptions(implementation=name)
  execution = dataclasses.replace(IN_XLA, rule=rule)
  if case == "attention":
    execution = dataclasses.replace(execution, attention="xla")
  if case == "float32":
    execution = dataclasses.replace(execution, dtype=case, param_dtype=case)
  with models.drawn_by_numpy():
    layer = DecoderLayer(config, execution, 0, rngs=nnx.Rngs(0))
  x = jax.ShapeDtypeStruct((1, 1, CONFIG.hidden_size), execution.dtype)
  if case == "bias":
    kinds = {"dtype": x.dtype, "param_dtype": x.dtype}
    layer.mlp.up_proj = nnx.Linear(256, 256, **kinds, rngs=nnx.Rngs(0))
  if case == "eps":
    layer.post_attention_layernorm.eps = 1e-3
  if case == "large":
    monkeypatch.setattr(layer_plan, "_MOST", 15)
  if case == "mesh":
    where = jax.NamedSharding(sharding.make_mesh(tensor=2), P())
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  cache = jax.eval_shape(lambda: layer.mixer.init_cache(1, 8))
  first = Positions(*[jnp.zeros((1, 1), jnp.int32)] * 3)
  tokens = NO_TOKENS._replace(positions=first)
  jax.jit(lambda x, cache: layer(x, tokens, cache)[0]).trace(x, cache)


@pytest.mark.parametrize(
  "case, kind, name, level",
  [
    *(
      (case, "linear_attention", "gpu", "WARNING")
      for case in LEFT
      if case != "attention"
    ),
    ("attention", "full_attention", "gpu", "WARNING"),
    ("attention", "full_attention", "auto", "INFO"),
    ("large", "linear_attention", "auto", "INFO"),
    ("large", "linear_attention", "xla", None),
    ("large", "full_attention", "gpu", "WARNING"),
    ("bias", "full_attention", "gpu", "WARNING"),
    ("bias", "full_attention", "xla", None),
  ],
)
def test_a_step_of_several_kernels_is_said(
  case, kind, name, level, caplog, monkeypatch
):
  backends.say_fallback.cache_clear()
  with caplog.at_level(logging.INFO, logger="absl"):
    left(case, kind, name, monkeypatch)
  said = [r for r in caplog.records if LEFT[case] in r.getMessage()]
  assert [r.levelname for r in said] == ([level] if level else []), caplog.text
  begins = f"implementation {name!r} takes kernels of a layer's parts on a gpu"
  assert all(r.getMessage().startswith(begins) for r in said)


def test_rows_that_are_no_single_one_are_not_spoken_of(caplog, monkeypatch):
  backends.say_fallback.cache_clear()
  rule = neumann_jax.RuleOptions(implementation="gpu")
  layer = layer_of(CONFIG, dataclasses.replace(IN_XLA, rule=rule))
  monkeypatch.setattr(layer_plan, "_MOST", 15)
  cache = jax.eval_shape(lambda: layer.mixer.init_cache(2))
  for shape in ((2, 1), (2, 3)):
    x = jax.ShapeDtypeStruct((*shape, CONFIG.hidden_size), jnp.bfloat16)
    with caplog.at_level(logging.INFO, logger="absl"):
      jax.jit(lambda x, cache: layer(x, NO_TOKENS, cache)[0]).trace(x, cache)
  assert "a layer's parts" not in caplog.text


def test_a_cache_of_another_layer_is_refused():
  """Before a kernel that goes by its shapes, on any platform."""
  layer = layer_of(CONFIG, dataclasses.replace(IN_XLA, rule=AUTO))
  x, cache = drawn(layer)
  wrong = cache._replace(conv_state=cache.conv_state[:, :-1])
  with pytest.raises(ValueError, match=r"cache\.conv_state must be"):
    layer(x[None, None], NO_TOKENS, wrong)
