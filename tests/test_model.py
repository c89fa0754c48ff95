"""The language model against itself in other forms, and what it refuses.

Values are held to transformers in test_model_parity.py, decoding to repeated
prefill in test_generate.py.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import Execution, tuning
from neumann_jax.checkpoint import params as param_place
from neumann_jax.model import scan_layers
from neumann_jax.model.initial_keys import InitialKeys
from tests import models, oracles

LENGTH = 24


def tokens(rows=2, length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, models.VOCABULARY, (rows, length)).astype(np.int32)


@functools.partial(oracles.quick_jit, static_argnums=0)
def _call(graph, state, tokens, cache, segment_ids, mask):
  model = nnx.merge(graph, state)
  return model(tokens, cache=cache, segment_ids=segment_ids, mask=mask)


def call(model, tokens, cache=None, segment_ids=None, mask=None):
  return _call(*nnx.split(model), tokens, cache, segment_ids, mask)


@functools.partial(oracles.quick_jit, static_argnums=0)
def _gradient(graph, state, tokens):
  def loss(state):
    logits, _ = nnx.merge(graph, state)(tokens)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

  return jax.grad(loss)(state)


def close(found, want):
  oracles.assert_close(found, want, oracles.FLOAT32_MODEL)


@functools.cache
def single(kind):
  model = models.trained_like(kind)
  return model, call(model, tokens())[0]


@pytest.mark.parametrize(
  "kind",
  [
    "tied",
    pytest.param("dense", marks=pytest.mark.slow),
    pytest.param("sparse", marks=pytest.mark.slow),
  ],
)
def test_a_cache_changes_nothing(kind):
  model, want = single(kind)
  cache, found = model.init_cache(2, LENGTH), []
  for piece in np.split(tokens(), [7, 8], axis=1):
    logits, cache = call(model, piece, cache)
    found.append(logits)
  close(np.concatenate(found, axis=1), want)
  assert (np.asarray(cache.stored) == LENGTH).all()


@pytest.mark.slow
def test_documents_are_rows_of_their_own():
  model, _ = single("dense")
  ids = np.repeat([[0, 1, 1, 4]], 2, axis=0).repeat(LENGTH // 4, axis=1)
  found, _ = call(model, tokens(), segment_ids=ids)
  for document in (0, 1, 4):
    where = np.flatnonzero(ids[0] == document)
    want, _ = call(model, tokens()[:, where])
    close(found[:, where], want)


def test_a_cache_goes_on_with_the_last_document():
  model, _ = single("dense")
  ids = np.repeat([[0, 3]], 2, axis=0).repeat(LENGTH // 2, axis=1)
  want, _ = call(model, tokens(), segment_ids=ids)
  cache = model.init_cache(2, LENGTH)
  cut = LENGTH // 2 + 5
  _, cache = call(model, tokens()[:, :cut], cache, ids[:, :cut])
  found, _ = call(model, tokens()[:, cut:], cache)
  close(found, want[:, cut:])


@pytest.mark.slow
def test_no_gradient_crosses_documents(monkeypatch):
  model, _ = single("dense")
  ids = np.repeat([[0, 1]], 2, axis=0).repeat(LENGTH // 2, axis=1)
  graph, state = nnx.split(model)

  def loss(embedded):
    """Of the second document alone, in the embeddings of all tokens."""
    model = nnx.merge(graph, state)
    monkeypatch.setattr(nnx.Embed, "__call__", lambda *_: embedded)
    logits, _ = model(jnp.asarray(tokens()), segment_ids=jnp.asarray(ids))
    return jnp.sum(logits[:, LENGTH // 2 :] ** 2)

  gradient = oracles.quick_jit(jax.grad(loss))(model.embed_tokens(tokens()))
  assert (gradient[:, : LENGTH // 2] == 0).all()
  assert (gradient[:, LENGTH // 2 :] != 0).any()


@pytest.mark.parametrize(
  "left", [3] + [pytest.param(n, marks=pytest.mark.slow) for n in (0, 6)]
)
def test_padding_is_as_if_it_were_not_there(left):
  model, want = single("dense")
  padded = np.full((2, LENGTH + 6), 5, np.int32)
  mask = np.zeros(padded.shape, np.int32)
  padded[:, left : left + LENGTH] = tokens()
  mask[:, left : left + LENGTH] = 1
  found, cache = call(model, padded, model.init_cache(2, 40), None, mask)
  close(found[:, left : left + LENGTH], want)
  _, other = call(model, tokens(), model.init_cache(2, 40))
  close(cache, other)


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param({"query_block": 7}, marks=pytest.mark.slow),
    pytest.param(
      {"chunk_size": 8, "spec": neumann_jax.InverseSpec("newton")},
      marks=pytest.mark.slow,
    ),
    {"remat": "full"},
    pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
    pytest.param({"remat": "names"}, marks=pytest.mark.slow),
  ],
)
def test_execution_does_not_show(changes):
  model, want = single("dense")
  other = model.with_execution(**changes)
  close(call(other, tokens())[0], want)
  if "remat" in changes or "query_block" in changes:
    state = nnx.split(model)
    gradient = _gradient(*state, tokens())
    found = _gradient(*nnx.split(other), tokens())
    error = oracles.whole_error(found, gradient)
    assert error <= oracles.FLOAT32_SHARDED_GRADIENT


def test_an_inverse_that_is_wrong_shows():
  """So that `with_execution` reaches the layers at all."""
  model, want = single("dense")
  spec = neumann_jax.InverseSpec("banded", order=1, residual_steps=1)
  found, _ = call(model.with_execution(spec=spec), tokens())
  assert oracles.error(found, want) > 1e-2


def test_scanned_layers_are_the_separate_ones():
  separate, want = single("deep")
  scanned = scan_layers.stack_layers(separate)
  close(call(scanned, tokens())[0], want)
  cache = scanned.init_cache(2, LENGTH)
  first, cache = call(scanned, tokens()[:, :9], cache)
  second, cache = call(scanned, tokens()[:, 9:], cache)
  close(np.concatenate([first, second], axis=1), want)


def test_chunk_matrices_are_those_of_the_layers():
  model, _ = single("dense")
  graph, state = nnx.split(model)

  @oracles.quick_jit
  def found_and_wanted(state, tokens):
    model = nnx.merge(graph, state)
    layer = model.layers[0]
    x = layer.input_layernorm(model.embed_tokens(tokens))
    return model.chunk_matrices(tokens), layer.linear_attn.chunk_matrices(x)

  found, want = found_and_wanted(state, tokens())
  linear = model.config.layer_types.count("linear_attention")
  assert [m.a.shape for m in found] == [(2, 4, 2, 16, 16)] * linear
  close(found[0], want)


def test_experts_are_a_sum_over_chosen_ones():
  """Every token, expert by expert, in float64."""
  model, _ = single("sparse")
  layer = model.layers[0].mlp
  x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
  weights, chosen = layer.route(x)
  up, down = (
    np.asarray(w[...], np.float64)
    for w in (layer.experts.gate_up_proj, layer.experts.down_proj)
  )
  want = np.zeros((5, 64))
  for t in range(5):
    assert len(set(np.asarray(chosen[t]).tolist())) == 2
    for w, e in zip(np.asarray(weights[t], np.float64), chosen[t].tolist()):
      gate, value = np.split(x[t].astype(np.float64) @ up[e], 2)
      want[t] += w * ((gate / (1 + np.exp(-gate)) * value) @ down[e])
  np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-6)
  close(layer.experts(x, weights, chosen), want)


def test_a_row_that_outgrows_its_cache_is_refused_or_nan():
  model, _ = single("dense")
  cache = model.init_cache(2, LENGTH - 1)
  with pytest.raises(ValueError, match="room for 23 tokens a row, but a row"):
    model(tokens(), cache=cache)
  logits, _ = call(model, tokens(), cache)
  assert np.isnan(logits).all()


def test_same_seed_same_bits():
  model, want = single("dense")
  again = models.trained_like("dense")
  np.testing.assert_array_equal(call(again, tokens())[0], want)
  assert model is not again


def test_bfloat16_activations_keep_float32_gates_and_logits():
  execution = neumann_jax.Execution(
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
    rule=neumann_jax.RuleOptions(chunk_size=16),
  )
  model = models.trained_like("dense", execution)
  logits, cache = call(model, tokens(), model.init_cache(2, LENGTH))
  assert logits.dtype == jnp.float32
  assert cache.layers[0].recurrent_state.dtype == jnp.float32
  assert model.layers[0].linear_attn.A_log[...].dtype == jnp.float32
  wide = models.make("dense")
  parameters = jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model))
  nnx.update(wide, parameters)
  want, _ = call(wide, tokens())
  # Four layers of roundings of 2^-8, each on the whole residual stream.
  assert oracles.whole_error(logits, want) < 0.05


def other_cache(model, **changes):
  return model.init_cache(2, 50)._replace(**changes)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda m: m(tokens().astype(np.float32)), "tokens must be an integer"),
    (lambda m: m(tokens()[0]), "tokens must have shape [B >= 1, T >= 1]"),
    (lambda m: m(tokens() + 60), "tokens must lie in [0, 64)"),
    (
      lambda m: m(tokens(), cache=m.init_cache(3, 50)),
      "cache must have 2 rows, got 3",
    ),
    (
      lambda m: m(tokens(), cache=m.init_cache(2, 50).layers),
      "cache must be a ModelCache of init_cache, got tuple",
    ),
    (
      lambda m: m(tokens(), cache=other_cache(m, layers=())),
      "layers, as init_cache makes it, got 0",
    ),
    (
      lambda m: m(
        tokens(),
        cache=jax.tree.map(
          lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x,
          m.init_cache(2, 50),
        ),
      ),
      "cache.conv_state must be float32 of shape",
    ),
    (
      lambda m: m(
        tokens(),
        cache=other_cache(m, layers=m.init_cache(2, 50).layers[::-1]),
      ),
      "cache must be a Cache, got KeyValueCache",
    ),
    (
      lambda m: m(
        tokens(), segment_ids=np.zeros((2, LENGTH), int), mask=tokens()
      ),
      "segment_ids and mask exclude each other",
    ),
    (lambda m: m.init_cache(0, 5), "batch must be at least 1"),
    (lambda m: m.init_cache(1, 0), "capacity must be at least 1"),
    (lambda m: m.with_execution(dtype=jnp.bfloat16), "with_execution changes"),
    (lambda m: m.with_execution(chunk_size=48), "chunk_size"),
    (lambda m: m.with_execution(gradient="exact"), "gradient must be"),
    (
      lambda m: m.with_execution(fused=True, gradient="truncated"),
      "fused=True has the gradient of the exact inverse only",
    ),
    (
      lambda m: models.make("dense", neumann_jax.Execution(scan_layers=True)),
      "scan_layers needs layers that repeat",
    ),
    (lambda m: neumann_jax.ModelConfig(hidden_size=0), "hidden_size must be"),
    (
      lambda m: neumann_jax.ModelConfig(num_attention_heads=3),
      "num_attention_heads must be a whole multiple of num_key_value_heads",
    ),
    (
      lambda m: neumann_jax.ModelConfig(layer_types=("linear_attention",)),
      "layer_types must name all 4 layers, got 1",
    ),
    (
      lambda m: neumann_jax.ModelConfig(num_experts=4),
      "moe_intermediate_size must be at least 1",
    ),
    (
      lambda m: neumann_jax.ModelConfig(rms_norm_eps=float("nan")),
      "rms_norm_eps must be positive and finite, got nan",
    ),
    (lambda m: neumann_jax.Execution(remat="some"), "remat must be one of"),
    (
      lambda m: neumann_jax.RuleOptions(chunk_size=48),
      "chunk_size must be a po",
    ),
    (
      lambda m: neumann_jax.RuleOptions(implementation="cuda"),
      "implementation must be one of",
    ),
    (
      lambda m: neumann_jax.RuleOptions(spec="ladder"),
      "spec must be an Inverse",
    ),
    (lambda m: neumann_jax.RuleOptions(fused=1), "fused must be True or False"),
    (
      lambda m: neumann_jax.Execution(scan_layers=1),
      "scan_layers must be True",
    ),
    (lambda m: neumann_jax.Execution(rule=64), "rule must be a RuleOptions"),
    (
      lambda m: neumann_jax.RuleOptions(sequence_axis=1),
      "sequence_axis must be the name of a mesh axis or None, got 1",
    ),
    (lambda m: neumann_jax.Execution(dtype=jnp.int8), "dtype must be floating"),
    (
      lambda m: neumann_jax.Execution(param_dtype="half-float"),
      "param_dtype must be floating point, got 'half-float'",
    ),
    (
      lambda m: neumann_jax.Execution(dtype=None),
      "dtype must be floating point, got None",
    ),
  ],
)
def test_refusals(make, message):
  with pytest.raises((TypeError, ValueError), match=re.escape(message)):
    make(single("dense")[0])


def routed(counted, kind="sparse"):
  model = param_place.abstract_model(models.CONFIGS[kind], Execution())
  tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
  return nnx.eval_shape(
    lambda m, t, c: m.routed_hidden_states(t, counted=c)[1],
    model,
    tokens,
    jax.ShapeDtypeStruct((1, 16), counted),
  )


def test_routing_is_counted_in_float32():
  """A sum of a bool would be whether any token was sent there."""
  for dtype in (jnp.float32, jnp.bool_):
    assert {x.dtype for x in routed(dtype)} == {jnp.dtype(jnp.float32)}
  with oracles.refused(TypeError, "counted must be float32 or bool, got int32"):
    routed(jnp.int32)
  assert routed(jnp.bool_, "dense") is None
  with oracles.refused(ValueError, "routing must be of a model with experts"):
    tuning.balance_loss(None)


@pytest.mark.parametrize("name", ["default", "params"])
def test_initial_keys_are_those_of_flax(name):
  rngs, ours = (nnx.Rngs(**{name: 3}) for _ in range(2))
  rngs.params(), ours.params()
  keys = InitialKeys(ours)
  found = [keys.params() for _ in range(3)]
  keys.returned()
  for key in [*found, ours.params()]:
    want = jax.random.key_data(rngs.params())
    np.testing.assert_array_equal(jax.random.key_data(key), want)


def test_a_model_counts_its_draws_without_flax(monkeypatch):
  """Whose count in an array makes each draw of a trace dearer than the last."""

  def counted(self):
    raise AssertionError("a draw was counted in an array")

  make = functools.partial(models.make, "dense")
  want = jax.tree.map(lambda x: x.shape, nnx.state(make()))
  monkeypatch.setattr(nnx.RngStream, "__call__", counted)
  found = nnx.state(nnx.eval_shape(make))
  assert jax.tree.map(lambda x: x.shape, found) == want
