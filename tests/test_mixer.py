"""A mixer that the package does not know, through all that takes mixers."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import checkpoint, sharding
from neumann_jax.layers.gates import Gates
from neumann_jax.layers.linear import linear
from neumann_jax.layers.mixer import Axes
from neumann_jax.layers.positions import positions
from neumann_jax.model import decoder, layer_stack, scan_layers
from neumann_jax.model.initial_keys import InitialKeys
from neumann_jax.weight_quantization.matrix import PRESETS
from neumann_jax.weight_quantization.quantized_model import (
  QuantizedLinear,
  quantize_weights,
)
from tests import models, oracles

pytestmark = pytest.mark.usefixtures("quick_compilation")

LENGTH = 12
KINDS = ("running_sum", "full_attention") * 2


class SumCache(NamedTuple):
  """The sum [B, hidden] of the last document so far."""

  total: jax.Array

  @property
  def capacity(self) -> None:
    return None


class RunningSum(nnx.Module):
  """total_t = exp(log_decay_t) total_(t-1) + beta_t value_t, by channel."""

  logical_axes: ClassVar[Mapping[str, Axes]] = {
    "value/kernel": ("embed", "heads")
  }

  def __init__(self, config, execution, *, rngs):
    self.set_execution(execution)
    size = config.hidden_size
    make = lambda width: linear(size, width, rngs=rngs)  # noqa: E731
    self.value, self.decay, self.write = make(size), make(size), make(1)

  def set_execution(self, execution):
    self.dtype, self.rule = execution.dtype, execution.rule

  def init_cache(self, batch, capacity):
    return SumCache(jnp.zeros((batch, self.value.out_features), jnp.float32))

  def gates(self, x, mask):
    """Decays by channel: [B, T, 1, hidden] for one head."""
    log_decay = -nnx.softplus(self.decay(x))
    beta = nnx.sigmoid(self.write(x))
    if mask is not None:
      log_decay, beta = (
        jnp.where(mask[..., None], gate, 0) for gate in (log_decay, beta)
      )
    return Gates(log_decay[..., None, :], beta)

  def __call__(self, x, *, positions, cache=None, segment_ids=None, mask=None):
    gates = self.gates(x, mask)
    keep = jnp.exp(gates.log_decay[:, :, 0])  # [B, T, hidden]
    if segment_ids is not None:
      changed = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
      keep = jnp.where(changed[..., None], 0, keep)
    steps = keep, gates.beta * self.value(x)

    def step(total, part):
      total = part[0] * total + part[1]
      return total, total

    cache = self.init_cache(x.shape[0], 1) if cache is None else cache
    steps = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), steps)
    total, y = lax.scan(step, cache.total, steps)
    return jnp.swapaxes(y, 0, 1).astype(self.dtype), SumCache(total)

  def chunk_matrices(self, x, *, segment_ids=None, mask=None):
    return None


class Drawing(RunningSum):
  """Whatever else of `nnx.Rngs` the maker of a mixer may ask for."""

  def __init__(self, config, execution, *, rngs):
    super().__init__(config, execution, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.start = nnx.Param(jax.random.normal(rngs(), (config.hidden_size,)))
    self.other = nnx.Param(rngs.normal((config.hidden_size,)))
    self.forked, self.split = rngs.fork(), rngs.split(2)
    self.kept = rngs

  def __call__(self, x, **known):
    return super().__call__(self.dropout(x) + self.start[...], **known)


@pytest.fixture(autouse=True)
def known(monkeypatch):
  """The one row that a new mixer needs."""
  kind = decoder.MixerKind("summed", RunningSum)
  monkeypatch.setitem(decoder.MIXERS, "running_sum", kind)


CONFIG = dataclasses.replace(
  models.CONFIGS["dense"],
  num_hidden_layers=len(KINDS),
  layer_types=KINDS,
  initializer_range=0.3,
)


@models.drawn_by_numpy()
def model_of(**options):
  execution = neumann_jax.Execution(**options)
  return neumann_jax.LanguageModel(CONFIG, execution, rngs=nnx.Rngs(0))


def tokens(batch=2):
  rng = np.random.default_rng(1)
  return rng.integers(0, models.VOCABULARY, (batch, LENGTH), np.int32)


@functools.partial(oracles.quick_jit, static_argnums=0)
def _call(graph, state, tokens, cache, segment_ids, mask):
  model = nnx.merge(graph, state)
  return model(tokens, cache=cache, segment_ids=segment_ids, mask=mask)


def call(model, tokens, cache=None, segment_ids=None, mask=None):
  return _call(*nnx.split(model), tokens, cache, segment_ids, mask)


def close(found, want):
  oracles.assert_close(found, want, oracles.FLOAT32_MODEL)


def test_the_layer_adds_what_the_mixer_gives():
  """Token by token in float64, from the weights of the first layer."""
  layer = model_of().layers[0]
  rng = np.random.default_rng(2)
  x = rng.standard_normal((2, LENGTH, 64)).astype(np.float32)
  layer.mlp = jnp.zeros_like  # so that only the mixer is left
  places = decoder.Tokens(positions(2, LENGTH), None, None)
  found, _ = layer(x, places)
  normed = x / np.sqrt(np.mean(np.float64(x) ** 2, axis=-1, keepdims=True))
  value, decay, write = (
    normed @ np.float64(part.kernel[...])
    for part in (layer.summed.value, layer.summed.decay, layer.summed.write)
  )
  total, want = np.zeros((2, 64)), np.float64(x)
  for t in range(LENGTH):
    kept = 1 / (1 + np.exp(decay[:, t]))  # exp(-softplus)
    total = kept * total + value[:, t] / (1 + np.exp(-write[:, t]))
    want[:, t] += total
  oracles.assert_close(found, want, oracles.FLOAT32_BLOCK)


@pytest.mark.parametrize(
  "scanned", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_cache_documents_and_padding(scanned):
  model = model_of()
  want = call(model, tokens())[0]
  if scanned:
    model = scan_layers.stack_layers(model)
    assert len(model.layers) == 2
  cache, found = model.init_cache(2, LENGTH), []
  assert cache.capacity == LENGTH  # that of attention, for a sum has none
  for piece in np.split(tokens(), [7, 8], axis=1):
    logits, cache = call(model, piece, cache)
    found.append(logits)
  close(np.concatenate(found, axis=1), want)
  mask = np.arange(LENGTH + 3) >= 3
  padded = np.pad(tokens(), [(0, 0), (3, 0)])
  found, after = call(
    model, padded, model.init_cache(2, LENGTH), None, np.stack([mask] * 2)
  )
  close(found[:, 3:], want)
  close(after.layers, cache.layers)
  documents = np.concatenate([tokens()[:, 5:], tokens()], axis=1)
  ids = np.repeat([[0] * (LENGTH - 5) + [1] * LENGTH], 2, axis=0)
  found, _ = call(model, documents, None, ids.astype(np.int32))
  close(found[:, LENGTH - 5 :], want)
  if scanned:
    chex.assert_trees_all_equal(
      nnx.state(scan_layers.unstack_layers(model)), nnx.state(model_of())
    )


@pytest.mark.parametrize(
  "scanned", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_options_reach_it(scanned):
  """By the same way as every other mixer, and attention as well."""
  model = model_of(scan_layers=scanned)
  other = model.with_execution(chunk_size=16, query_block=5)
  assert {layer.mixer_name for layer in other.layers} == {"summed", "self_attn"}
  for layer in other.layers:
    if layer.mixer_name == "summed":
      assert layer.mixer.rule.chunk_size == 16
    else:
      assert layer.mixer.query_block == 5
  assert model.layers[0].mixer.rule.chunk_size == 64  # stays what it was


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
def test_generation(scanned):
  model = model_of(scan_layers=scanned)
  found = neumann_jax.generate(
    model,
    [tokens()[0, :5], tokens()[1, :2]],
    max_new_tokens=4,
    spec=neumann_jax.SamplingSpec(temperature=0),
    prefill_chunk=3,
  )
  for prompt, new in zip((tokens()[0, :5], tokens()[1, :2]), found.tokens):
    text = np.zeros((2, LENGTH), np.int32)
    whole = [*prompt, *np.asarray(new)]
    text[0, : len(whole)] = whole
    best = np.argmax(call(model, text)[0][0], axis=-1)
    np.testing.assert_array_equal(best[len(prompt) - 1 : len(whole) - 1], new)


def test_no_matrices_of_what_inverts_nothing():
  matrices = nnx.jit(lambda model, x: model.chunk_matrices(x))
  assert matrices(model_of(), tokens()) == ()


def test_checkpoints_shardings_and_codes(tmp_path):
  model = model_of()
  checkpoint.save(model, tmp_path / "model")
  again = checkpoint.load(tmp_path / "model")
  chex.assert_trees_all_equal(nnx.state(again), nnx.state(model))
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  specs = dict(nnx.to_flat_state(sharding.param_specs(model, mesh)))
  start = ("layers", 2, "summed")
  assert specs[*start, "value", "kernel"] == P("fsdp", "tensor")
  assert specs[*start, "decay", "kernel"] == P(None, None)
  codes = quantize_weights(model, PRESETS["W8"])
  assert isinstance(codes.layers[0].mixer.value, QuantizedLinear)


@pytest.fixture
def drawing(monkeypatch):
  kind = decoder.MixerKind("summed", Drawing)
  monkeypatch.setitem(decoder.MIXERS, "running_sum", kind)


@pytest.mark.parametrize("streams", [("default",), ("default", "params")])
def test_what_a_mixer_draws_is_what_flax_gives(drawing, streams):
  """Dropout, `rngs()`, `fork` and `split`, with the keys of `nnx.Rngs`."""
  ours, plain = (nnx.Rngs({s: i for i, s in enumerate(streams)}) for _ in "ab")
  counted, execution = InitialKeys(ours), neumann_jax.Execution()
  found, want = (
    layer_stack.make_layers(CONFIG, execution, rngs=rngs)
    for rngs in (counted, plain)
  )
  counted.returned()
  chex.assert_trees_all_equal(nnx.state(found), nnx.state(want))
  chex.assert_trees_all_equal(nnx.state(ours), nnx.state(plain))
  # In a compiled call, too, where what Python counts would be a constant.
  keys = [_two_keys(layers[0].mixer.kept) for layers in (found, want)]
  np.testing.assert_array_equal(*keys)


def _two_keys(rngs):
  graph, state = nnx.split(rngs)

  @jax.jit
  def draw(state):
    rngs = nnx.merge(graph, state)
    return jax.random.key_data(rngs()), nnx.state(rngs)

  key, state = draw(state)
  return np.stack([key, draw(state)[0]])


@pytest.mark.parametrize(
  "scanned", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_mixer_that_draws_is_made_and_run(drawing, scanned):
  model = model_of(scan_layers=scanned)
  drawn = [np.asarray(x.mixer.start[...]) for x in model.layers[::2]]
  drawn = np.concatenate([np.reshape(x, (-1, 64)) for x in drawn])
  assert len(np.unique(drawn)) == 2 * 64  # each layer's are its own
  found = nnx.eval_shape(lambda m, t: m(t)[0], model, tokens())
  assert found.shape == (2, LENGTH, models.VOCABULARY)


def test_another_name_is_refused():
  config = dataclasses.replace(
    models.CONFIGS["dense"], layer_types=("running_mean",) * 2
  )
  sentence = "layer_types must be of linear_attention, full_attention, runn"
  with oracles.refused(ValueError, sentence + ".* got 'running_mean'"):
    neumann_jax.LanguageModel(config, rngs=nnx.Rngs(0))
