"""Generation through the cache against the whole sequence run each time."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import neumann_jax
from neumann_jax import (
  Execution,
  LanguageModel,
  ModelConfig,
  RuleOptions,
  generation,
)
from neumann_jax.generation import decoding
from neumann_jax.generation.job import prepare
from neumann_jax.generation.sampling import SamplingSpec
from tests import models, oracles

pytestmark = pytest.mark.usefixtures("quick_compilation")

GREEDY = SamplingSpec(temperature=0)
VOCAB = 61
CONFIG = {
  "vocab_size": VOCAB,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 16,
  "linear_num_key_heads": 1,
  "linear_num_value_heads": 2,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 8,
  "initializer_range": 0.3,  # logits far enough apart to have one argmax
}
SPARSE = {
  "num_experts": 4,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 16,
  "shared_expert_intermediate_size": 16,
}
PROMPTS = ([7, 3, 9, 1, 60, 0, 12], [5], [2, 2, 8, 11])  # longest 7, shortest 1
NEW = 6
LENGTH = 16  # of the oracle, above every prompt and its answer


@functools.cache
def model_of(scanned=False, sparse=False, dtype="float32"):
  """A small model that forgets slowly, so that every state matters."""
  kinds = ("linear_attention", "full_attention") * (2 if scanned else 1)
  depth = {"num_hidden_layers": len(kinds), "layer_types": kinds}
  config = ModelConfig(**CONFIG, **depth, **(SPARSE if sparse else {}))
  execution = Execution(
    dtype=jnp.dtype(dtype),
    rule=RuleOptions(chunk_size=8),
    scan_layers=scanned,
  )
  with models.drawn_by_numpy():
    model = LanguageModel(config, execution, rngs=nnx.Rngs(0))
  for path, rate in nnx.to_flat_state(nnx.state(model)):
    if path[-1] == "A_log":
      slow = np.linspace(-7, -4, rate[...].size).reshape(rate[...].shape)
      rate[...] = jnp.asarray(slow, jnp.float32)
  return model


@functools.partial(oracles.quick_jit, static_argnums=0)
def _call(graph, params, tokens, cache, mask):
  return nnx.merge(graph, params)(tokens, cache=cache, mask=mask)


def call(model, tokens, cache=None, mask=None):
  return _call(*nnx.split(model), tokens, cache, mask)


def generate(model, prompts=PROMPTS, **options):
  options = {"max_new_tokens": NEW, "spec": GREEDY} | options
  return jax.device_get(generation.generate(model, prompts, **options))


def job_of(model, prompts=PROMPTS, **options):
  """What `generate` prepares, with its own defaults."""
  given = inspect.signature(generation.generate).parameters.values()
  defaults = {x.name: x.default for x in given if x.default is not x.empty}
  return prepare(model, prompts, **defaults | options)


def oracle(model, prompts=PROMPTS, count=NEW):
  """Greedy tokens, their log probabilities and margins, without any cache.

  The model is causal: what stands right of a token does not reach it.
  """
  tokens = np.zeros((len(prompts), LENGTH), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
  found, logprobs, margin = [], [], np.inf
  for step in range(count):
    logits = np.asarray(call(model, tokens)[0], np.float64)
    ends = [len(prompt) + step for prompt in prompts]
    last = np.stack([row[end - 1] for row, end in zip(logits, ends)])
    newest = last.argmax(axis=1)
    best, second = -np.sort(-last, axis=1)[:, :2].T
    margin = min(margin, (best - second).min())
    mass = np.log(np.exp(last - best[:, None]).sum(axis=1))
    found.append(newest)
    logprobs.append(-mass)
    for row, end, token in zip(tokens, ends, newest):
      row[end] = token
  return np.stack(found, 1), np.stack(logprobs, 1), margin


def check_greedy(model, **options):
  found = generate(model, **options)
  tokens, logprobs, margin = oracle(model)
  assert margin > 1e-3  # far above what rounding can turn around
  np.testing.assert_array_equal(found.tokens, tokens)
  np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)
  assert (found.lengths == NEW).all() and not found.finished.any()
  assert found.tokens.dtype == np.int32


# --- Values ------------------------------------------------------------------


@pytest.mark.parametrize(
  "scanned, piece",
  [
    (True, 3),
    pytest.param(False, None, marks=pytest.mark.slow),
    pytest.param(False, 9, marks=pytest.mark.slow),
  ],
)
def test_greedy_is_the_argmax_of_the_whole_sequence(scanned, piece):
  check_greedy(model_of(scanned), prefill_chunk=piece)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("piece", [None, 1, 2, 5, 7])
def test_greedy_in_every_form(scanned, sparse, piece):
  check_greedy(model_of(scanned, sparse), prefill_chunk=piece, capacity=20)


@pytest.mark.parametrize(
  "sparse", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_prompt_split_at_any_point_gives_the_same_logits(sparse):
  """Split by masks of one shape, with padding on either side of the split."""
  model = model_of(sparse=sparse)
  tokens = np.random.default_rng(2).integers(0, VOCAB, (2, 12), np.int32)
  truth, whole = call(model, tokens, model.init_cache(2, 12))
  for split in range(1, 12):
    before = np.broadcast_to(np.arange(12) < split, tokens.shape)
    first, cache = call(model, tokens, model.init_cache(2, 12), before)
    second, cache = call(model, tokens, cache, ~before)
    logits = jnp.where(before[..., None], first, second)
    oracles.assert_close(logits, truth, 1e-5)
    oracles.assert_close(cache.layers, whole.layers, 1e-5)
    np.testing.assert_array_equal(cache.stored, 12)


@pytest.mark.parametrize(
  "sparse, length",
  [
    (False, 9),
    pytest.param(False, 40, marks=pytest.mark.slow),
    pytest.param(True, 40, marks=pytest.mark.slow),
  ],
)
def test_prefill_is_as_many_decode_steps(sparse, length):
  model = model_of(sparse=sparse)
  tokens = np.random.default_rng(3).integers(0, VOCAB, (2, length), np.int32)
  truth, whole = call(model, tokens, model.init_cache(2, length))
  cache, steps = model.init_cache(2, length), []
  for t in range(length):
    logits, cache = call(model, tokens[:, t : t + 1], cache)
    steps.append(logits)
  oracles.assert_close(jnp.concatenate(steps, axis=1), truth, 1e-4)
  oracles.assert_close(cache.layers, whole.layers, 1e-4)


def test_a_row_does_not_depend_on_its_neighbours():
  model = model_of()
  found = generate(model)
  others = generate(model, [PROMPTS[0], [60, 59, 58, 57, 56, 55, 54], [1, 1]])
  np.testing.assert_array_equal(found.tokens[0], others.tokens[0])
  np.testing.assert_allclose(found.logprobs[0], others.logprobs[0], atol=1e-6)
  assert (found.tokens[1:] != others.tokens[1:]).any()


def test_the_states_of_the_prompt_matter():
  """The first tokens of the long prompt, far from its end, change its text."""
  changed = [[8, 4, *PROMPTS[0][2:]], *PROMPTS[1:]]
  found, other = generate(model_of()), generate(model_of(), changed)
  assert np.abs(found.logprobs[0] - other.logprobs[0]).max() > 1e-2
  np.testing.assert_array_equal(found.tokens[1:], other.tokens[1:])


# --- Ends --------------------------------------------------------------------


def test_rows_end_with_a_stop_token():
  model = model_of()
  whole = generate(model)
  stops = (whole.tokens[0, 2],)
  found = generate(model, stop_tokens=set(stops), pad_token=60)
  for row, tokens in enumerate(whole.tokens):
    hits = np.flatnonzero(np.isin(tokens, stops))
    length = hits[0] + 1 if hits.size else NEW
    assert found.lengths[row] == length
    assert found.finished[row] == bool(hits.size)
    np.testing.assert_array_equal(found.tokens[row, :length], tokens[:length])
    assert (found.tokens[row, length:] == 60).all()
    assert (found.logprobs[row, length:] == 0).all()
  assert found.finished[0] and not found.finished.all()  # both were seen


def test_all_rows_ended_end_the_loop():
  model = model_of()
  first = generate(model, max_new_tokens=1)
  assert first.tokens.shape == (3, 1)
  blocks = list(
    generation.stream(
      model,
      PROMPTS,
      every=1,
      max_new_tokens=1000,
      spec=GREEDY,
      stop_tokens=[*first.tokens[:, 0], 3],
    )
  )
  assert len(blocks) == 1
  np.testing.assert_array_equal(blocks[0].lengths, 1)
  assert np.asarray(blocks[0].finished).all()


# --- Draws -------------------------------------------------------------------


def test_the_same_key_draws_the_same_tokens():
  spec = SamplingSpec(temperature=1e6)  # noise decides, not the model
  draw = functools.partial(generate, model_of(), spec=spec)
  found = draw(key=jax.random.key(4))
  chex.assert_trees_all_equal(found, draw(key=jax.random.key(4)))
  assert (found.tokens != draw(key=jax.random.key(5)).tokens).any()
  for drawn in (*found.tokens, *found.tokens.T):  # each step and row its own
    assert len(set(drawn)) > 1
  assert (found.tokens != generate(model_of()).tokens).any()
  shown = list(
    generation.stream(
      model_of(),
      PROMPTS,
      every=2,
      max_new_tokens=NEW,
      spec=spec,
      key=jax.random.key(4),
    )
  )
  counts = [int(np.max(block.lengths)) for block in shown]
  assert counts == [1, 3, 5, 6]
  for block, count in zip(shown, counts):  # earlier looks stay readable
    np.testing.assert_array_equal(
      block.tokens[:, :count], found.tokens[:, :count]
    )
  np.testing.assert_array_equal(shown[-1].tokens, found.tokens)


# --- Compilation -------------------------------------------------------------


def test_new_prompts_compile_nothing(monkeypatch):
  chex.clear_trace_counter()
  for function in (decoding.prefill, decoding.decode):
    function.clear_cache()
  traced = chex.assert_max_traces(LanguageModel.hidden_states, n=2)
  monkeypatch.setattr(LanguageModel, "hidden_states", traced)
  model = model_of()
  # Two traces: a piece of the prompts, a step of the loop. Length, number of
  # pieces and values change nothing.
  rows = (PROMPTS, [[1] * 9, [2], [3] * 4], [[4, 5, 6]] * 3, [[4], [5], [6]])
  for prompts in rows:
    generate(model, prompts, prefill_chunk=3, capacity=24)
  assert decoding.prefill._cache_size() == 1
  assert decoding.decode._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.filterwarnings("error")  # a cache that could not be reused
def test_on_a_mesh(scanned, spread):
  model = model_of(scanned)
  prompts = [*PROMPTS, [9, 8, 7]]
  truth = generate(model, prompts, prefill_chunk=3)
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor")
  )

  def put(x):
    axes = [None] * x.ndim
    if x.ndim > 1 and x.shape[-1] % 2 == 0:
      axes[-1] = "tensor"
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

  graph, params = nnx.split(model)
  found = generate(
    nnx.merge(graph, jax.tree.map(put, params)),
    prompts,
    prefill_chunk=3,
    sharding=NamedSharding(mesh, PartitionSpec("data")) if spread else None,
  )
  np.testing.assert_array_equal(found.tokens, truth.tokens)
  np.testing.assert_allclose(found.logprobs, truth.logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
def test_bfloat16(scanned):
  """Eight bits: each log probability near that of the whole sequence."""
  model = model_of(scanned, dtype="bfloat16")
  found = generate(model, prefill_chunk=3)
  for row, prompt in enumerate(PROMPTS):
    tokens = np.zeros((1, LENGTH), np.int32)
    text = [*prompt, *found.tokens[row]]
    tokens[0, : len(text)] = text
    logits = np.asarray(call(model, tokens)[0][0], np.float64)
    logits = logits[len(prompt) - 1 : len(text) - 1]
    chosen = logits[np.arange(NEW), found.tokens[row]]
    scale = np.abs(logits).max()
    assert (logits.max(axis=1) - chosen).max() < 0.05 * scale
    mass = np.log(np.exp(logits).sum(axis=1))
    assert np.abs(chosen - mass - found.logprobs[row]).max() < 0.05 * scale


# --- Refusals ----------------------------------------------------------------


FOUR = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))


@pytest.mark.parametrize(
  "changes, kind, pattern",
  [
    ({"prompts": []}, ValueError, "prompts must hold at least one prompt"),
    (
      {"prompts": [[1], []]},
      ValueError,
      r"prompts\[1\] must have at least one token, got none",
    ),
    (
      {"prompts": [[1], [61]]},
      ValueError,
      r"prompts\[1\] must lie in \[0, 61\), got 61",
    ),
    (
      {"prompts": [[1, -1]]},
      ValueError,
      r"prompts\[0\] must lie in \[0, 61\), got -1",
    ),
    ({"prompts": [[0.5]]}, TypeError, r"prompts\[0\] must be an integer array"),
    ({"prompts": ["text"]}, TypeError, r"prompts\[0\] must be an integer"),
    ({"prompts": [1, 2]}, ValueError, r"prompts\[0\] must be a sequence of to"),
    ({"prompts": [[[1]]]}, ValueError, r"sequence of tokens, got shape \(1, 1"),
    (
      {"max_new_tokens": 0},
      ValueError,
      "max_new_tokens must be at least 1, go",
    ),
    (
      {"stop_tokens": (3, 61)},
      ValueError,
      r"stop_tokens must lie in .* got 61",
    ),
    ({"pad_token": -1}, ValueError, r"pad_token must lie in \[0, 61\), got -1"),
    ({"spec": SamplingSpec()}, ValueError, "key must be given unless"),
    ({"spec": SamplingSpec(top_k=62), "key": 0}, ValueError, "at most the 61"),
    ({"spec": SamplingSpec(), "key": 3}, TypeError, "key must be one key of"),
    ({"prefill_chunk": 0}, ValueError, "prefill_chunk must be at least 1, got"),
    (
      {"prefill_chunk": 2.0},
      TypeError,
      "prefill_chunk must be an integer, g",
    ),
    ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens must be an integer"),
    ({"stop_tokens": 5}, TypeError, "stop_tokens must be a sequence or a set"),
    ({"stop_tokens": None}, TypeError, "set of integers, .* got None"),
    ({"spec": None}, TypeError, "spec must be a SamplingSpec .* got None"),
    ({"stop_tokens": (1.0,)}, TypeError, "stop_tokens must be an integer, got"),
    (
      {"sharding": NamedSharding(FOUR, PartitionSpec("data"))},
      ValueError,
      r"sharding must split prompts of shape \(3, 7\) evenly, got Named",
    ),
    ({"capacity": 12}, ValueError, "capacity must be at least 13, .* got 12"),
  ],
)
def test_refusals(changes, kind, pattern, monkeypatch):
  monkeypatch.setattr(decoding, "start", None)  # nothing is begun
  options = {"prompts": PROMPTS, "max_new_tokens": NEW, "spec": GREEDY}
  with oracles.refused(kind, pattern):
    neumann_jax.generate(model_of(), **(options | changes))


def test_a_number_of_tokens_may_be_one_of_numpy(monkeypatch):
  """Ended in a traceback: NumPy's integers have no bit_length."""
  jobs = []
  monkeypatch.setattr(
    "neumann_jax.generation.api.run", lambda job, looks: jobs.append(job)
  )
  for count in (NEW, np.int64(NEW)):
    generation.stream(
      model_of(), PROMPTS, every=1, max_new_tokens=count, spec=GREEDY
    )
  chex.assert_trees_all_equal(*(job.written for job in jobs))
  assert jobs[0].capacity == jobs[1].capacity


def test_what_generates_is_a_model():
  with oracles.refused(TypeError, "model must be a LanguageModel, got dict"):
    neumann_jax.generate({}, PROMPTS, max_new_tokens=1, spec=GREEDY)


def test_stream_refuses_at_the_call():
  with oracles.refused(ValueError, "every must be at least 1, got 0"):
    generation.stream(
      model_of(), PROMPTS, every=0, max_new_tokens=1, spec=GREEDY
    )
  split = model_of().with_execution(sequence_axis="sequence")
  with oracles.refused(ValueError, "sequence_axis None to generate, got 'seq"):
    generation.stream(split, PROMPTS, every=1, max_new_tokens=1, spec=GREEDY)
