"""Generation that goes on: turns of chats, shared prefixes, room of caches."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax.generation import decoding
from neumann_jax.generation.prompts import widths
from neumann_jax.generation.sampling import SamplingSpec
from neumann_jax.layers.caches import cached_keys
from neumann_jax.layers.caches.cache import KeyValueCache
from neumann_jax.layers.causal_attention import causal_attention
from neumann_jax.layers.positions import Positions
from tests import oracles
from tests.test_generate import GREEDY, PROMPTS, call, generate, model_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

TURNS = 5
# One set of programs for each number of rows in this file.
ROOM = {"prefill_chunk": 8, "capacity": 128}


def conversation(rows, seed=0):
  """What is said in each turn, of other lengths in each row."""
  rng = np.random.default_rng(seed)
  return [
    [rng.integers(0, 61, rng.integers(1, 9)).tolist() for _ in range(rows)]
    for _ in range(TURNS)
  ]


@pytest.mark.slow
@pytest.mark.parametrize("scanned, rows", [(False, 3), (False, 1), (True, 3)])
def test_five_turns_are_one_long_call(scanned, rows):
  model, cache = model_of(scanned), None
  turns = conversation(rows)
  # What its first row writes: it ends early, others go on.
  stop = int(generate(model, turns[0], **ROOM).tokens[0, 2])
  options = ROOM | {"stop_tokens": [stop]}
  history = [[] for _ in range(rows)]
  ended = 0
  for turn in turns:
    found = generate(model, turn, cache=cache, **options)
    history = [old + new for old, new in zip(history, turn)]
    whole = generate(model, history, **options)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_array_equal(found.lengths, whole.lengths)
    np.testing.assert_allclose(found.logprobs, whole.logprobs, atol=1e-4)
    for row, tokens, length in zip(history, found.tokens, found.lengths):
      row += tokens[:length].tolist()
    np.testing.assert_array_equal(
      found.cache.stored, [len(row) for row in history]
    )
    oracles.assert_close(found.cache, whole.cache, 1e-4)
    cache, ended = found.cache, ended + found.finished.sum()
  assert ended  # rows of other lengths were carried over


def test_a_prefix_is_read_once_and_serves_many(monkeypatch):
  """One row for a batch, twice; its tokens are not read again."""
  model = model_of()
  prefix = np.random.default_rng(4).integers(0, 61, 40).tolist()
  first = generate(model, [prefix], max_new_tokens=1, **ROOM)
  prefix = [*prefix, int(first.tokens[0, 0])]
  read, whole = [], decoding.prefill

  def prefill(graph, params, cache, last, tokens, mask):
    read.append(int(np.sum(mask)))
    return whole(graph, params, cache, last, tokens, mask)

  monkeypatch.setattr(decoding, "prefill", prefill)
  for _ in range(2):
    found = generate(model, cache=first.cache, **ROOM)
    assert sum(read) == sum(map(len, PROMPTS))
    read.clear()
  monkeypatch.undo()
  truth = generate(model, [prefix + list(row) for row in PROMPTS], **ROOM)
  np.testing.assert_array_equal(found.tokens, truth.tokens)
  np.testing.assert_allclose(found.logprobs, truth.logprobs, atol=1e-4)


def test_a_cache_of_the_model_will_do():
  """What a call of the model itself returned."""
  model = model_of()
  _, cache = call(model, np.array([PROMPTS[0]]), model.init_cache(1, 7))
  found = generate(model, [[4, 2]], cache=cache, **ROOM)
  truth = generate(model, [[*PROMPTS[0], 4, 2]], **ROOM)
  np.testing.assert_array_equal(found.tokens, truth.tokens)
  np.testing.assert_array_equal(cache.stored, 7)  # and stays as it is


@pytest.fixture(
  scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)]
)
def short_prefixes(request):
  """A row with room for 9, read up to slot 4, 8 or 9."""
  graph, params = nnx.split(model_of(request.param))

  @oracles.quick_jit
  def call(params, tokens, cache, mask):
    # What a GPU reads of a single token, 4096 slots, is not read here.
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(cached_keys, "_FIRST_PREFIX", 4)
      patch.setattr(cached_keys, "_PREFIX_RATIO", 2)
      return nnx.merge(graph, params)(tokens, cache=cache, mask=mask)

  return model_of(request.param), functools.partial(call, params)


TOKENS = np.random.default_rng(5).integers(0, 61, (1, 9), np.int32)
ONE = np.ones((1, 1), bool)


def read(short_prefixes, stored):
  """The cache after so many of the tokens."""
  model, call = short_prefixes
  mask = np.arange(9)[None] < stored
  return call(TOKENS, model.init_cache(1, 9), mask)[1]


def test_a_step_reads_the_slots_in_use_and_no_others(short_prefixes):
  """Where nothing was written there may be anything, NaN included."""

  def spoiled(layer):
    if not isinstance(layer, KeyValueCache):
      return layer
    return KeyValueCache(*(x.at[..., 4:, :, :].set(jnp.nan) for x in layer))

  _, step = short_prefixes
  cache = read(short_prefixes, 3)
  bad = cache._replace(layers=tuple(map(spoiled, cache.layers)))
  truth, _ = step(TOKENS[:, :1], cache, ONE)
  found, _ = step(TOKENS[:, :1], bad, ONE)
  np.testing.assert_array_equal(found, truth)


def test_every_prefix_of_a_cache_is_seen(short_prefixes):
  """The first token is seen, and the newest, on both sides of each size."""
  model, step = short_prefixes
  truth, _ = call(model, TOKENS)
  for stored in (3, 4, 5, 7, 8):
    new = TOKENS[:, stored : stored + 1]
    found, _ = step(new, read(short_prefixes, stored), ONE)
    oracles.assert_close(found[:, 0], truth[:, stored], 1e-4)


@pytest.mark.parametrize(
  "platform, capacity, sizes",
  [
    ("cpu", 4096, {256, 1024, 4096}),
    ("cuda", 4096, {4096}),
    ("cuda", 16384, {4096, 16384}),
  ],
)
def test_prefixes_of_a_token_by_platform(platform, capacity, sizes):
  """On a GPU a branch costs more than the reads of 4096 slots."""
  keys, q = (
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((1, capacity, 2, 16), (1, 1, 4, 16))
  )
  slot = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  attend = functools.partial(causal_attention, query_block=64)
  run = functools.partial(cached_keys.over_slots_in_use, attend)
  traced = jax.jit(run).trace(
    q, KeyValueCache(keys, keys), Positions(slot, slot, slot)
  )
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  # The scores of two key heads with two queries each.
  found = re.findall(r"dot_general.*-> tensor<1x2x1x2x(\d+)xf32>", text)
  assert set(map(int, found)) == sizes


def copies(jaxpr, capacity):
  """Primitives that give an array of all slots, but for writes in place."""
  in_place = {"scatter", "scan", "while", "cond", "jit", "pjit", "closed_call"}
  for equation in jaxpr.eqns:
    large = any(capacity in x.aval.shape for x in equation.outvars)
    name = equation.primitive.name
    if large and name not in in_place:
      yield name
    if name == "scan":
      body = equation.params["jaxpr"]
      body = getattr(body, "jaxpr", body)
      # What is carried has the body's shape, what is stacked an axis more.
      for whole, one in zip(equation.outvars, body.outvars, strict=True):
        if capacity in whole.aval.shape and whole.aval.shape != one.aval.shape:
          yield "scan's stack"
    if name != "cond":  # of its branches one reads all slots, if they are full
      for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
        if is_jaxpr(inner):
          yield from copies(getattr(inner, "jaxpr", inner), capacity)


def is_jaxpr(x):
  return hasattr(x, "eqns")


@pytest.mark.parametrize("scanned", [False, True])
def test_a_step_copies_no_cache(scanned):
  """Its cost would grow with what the cache has room for."""
  graph, params = nnx.split(model_of(scanned))
  cache = jax.eval_shape(lambda: model_of(scanned).init_cache(1, 500))
  step = lambda params, cache: nnx.merge(graph, params)(  # noqa: E731
    jnp.ones((1, 1), jnp.int32), cache=cache
  )
  jaxpr = jax.make_jaxpr(step)(params, cache).jaxpr
  assert not list(copies(jaxpr, 500))


def test_widths():
  for longest in (1, 64, 65, 256, 257, 512, 513, 700, 2000):
    found = widths(longest, None)
    assert set(found) <= {512, 64}
    assert longest <= sum(found) < longest + max(found[-1], 256)
  assert widths(257, None) == [512] and widths(256, None) == [64] * 4
  assert widths(3, 8) == [8] and widths(17, 8) == [8, 8, 8]


def test_rows_have_their_own_specs():
  model = model_of()
  warm, cold = SamplingSpec(temperature=1e6), GREEDY
  key = jax.random.key(7)
  mixed = generate(model, **ROOM, spec=[cold, warm, cold], key=key)
  greedy, drawn = (
    generate(model, **ROOM),
    generate(model, **ROOM, spec=warm, key=key),
  )
  np.testing.assert_array_equal(mixed.tokens[::2], greedy.tokens[::2])
  np.testing.assert_array_equal(mixed.tokens[1], drawn.tokens[1])


def test_penalties_know_prompts_and_answers():
  model = model_of()
  spec = functools.partial(SamplingSpec, 0)
  plain = generate(model, **ROOM)
  assert any(len(set(row)) < len(row) for row in plain.tokens)
  # What was generated never comes again; what the prompt has may.
  found = generate(model, **ROOM, spec=spec(presence_penalty=1e4))
  for row in found.tokens:
    assert len(set(row)) == len(row)
  found = generate(model, **ROOM, spec=spec(repetition_penalty=1e6))
  for row, prompt in zip(found.tokens, PROMPTS):
    assert len({*row, *prompt}) == len(row) + len(set(prompt))


def test_penalties_know_the_context_of_a_cache():
  """Turns with a penalty are one long call with it."""
  model, spec = model_of(), SamplingSpec(0, repetition_penalty=1.5)
  options = ROOM | {"spec": spec}
  first = generate(model, [PROMPTS[0]], **options)
  history = [*PROMPTS[0], *first.tokens[0]]
  options |= {"max_new_tokens": 12}
  whole = generate(model, [[*history, 4]], **options)
  options |= {"cache": first.cache}
  found = generate(model, [[4]], context=[history], **options)
  np.testing.assert_array_equal(found.tokens, whole.tokens)
  assert (generate(model, [[4]], **options).tokens != whole.tokens).any()


def test_refusals():
  model = model_of()
  cache = generate(model, **ROOM).cache
  with oracles.refused(ValueError, "cache must have 2 rows, got 3"):
    generate(model, [[1], [2]], cache=cache)
  with oracles.refused(TypeError, "cache must be a ModelCache of init_cache"):
    generate(model, cache=3)
  with oracles.refused(ValueError, "capacity must be at least 2[0-9], .* 14"):
    generate(model, cache=cache, capacity=14)
  with oracles.refused(ValueError, "one SamplingSpec or 3, .* got 2"):
    generate(model, **ROOM, spec=[GREEDY, GREEDY])
  with oracles.refused(ValueError, "context must have 3 rows, .* got 1"):
    generate(model, cache=cache, context=[[1]])
  with oracles.refused(
    ValueError, r"context\[1\] must lie in \[0, 61\), got 61"
  ):
    generate(model, cache=cache, context=[[1], [61], [2]])
  with oracles.refused(TypeError, "spec must be a SamplingSpec or one for"):
    generate(model, **ROOM, spec=["greedy"] * 3)


@pytest.mark.parametrize(
  "left, right", [(3, 0), (0, 3), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_padding_of_a_row_alone(left, right):
  """Whatever stands there, before a cache and after one."""
  model = model_of()
  rng = np.random.default_rng(6)
  cache = model.init_cache(1, 40)
  padded_cache = cache
  for _ in range(2):
    tokens = rng.integers(0, 61, (1, 7), np.int32)
    truth, cache = call(model, tokens, cache)
    edges = ((0, 0), (left, right))
    padded = np.pad(tokens, edges, constant_values=60)
    mask = np.pad(np.ones((1, 7), bool), edges)
    found, padded_cache = call(model, padded, padded_cache, mask)
    oracles.assert_close(found[:, left : left + 7], truth, 1e-5)
    oracles.assert_close(padded_cache.layers, cache.layers, 1e-5)
    np.testing.assert_array_equal(padded_cache.stored, cache.stored)


def test_a_row_without_tokens_keeps_its_cache():
  """The others are as they were, and it can go on later."""
  graph, params = nnx.split(model_of())
  tokens = np.random.default_rng(7).integers(0, 61, (2, 3, 8), np.int32)
  mask = np.ones((3, 8), bool)

  def read(piece, cache, last):
    cache = jax.tree.map(jnp.array, cache)  # which is donated
    return decoding.prefill(graph, params, cache, last, piece, mask)

  before = read(tokens[0], *decoding.start(graph, params, 3, 128))
  truth = read(tokens[1], *before)
  mask[1] = False
  found = read(tokens[1], *before)
  # Every array of a cache leads with the rows, and so does what was read last.
  for trees in zip(*map(jax.tree.leaves, (found, truth, before))):
    have, others, kept = map(np.asarray, trees)
    np.testing.assert_array_equal(have[[0, 2]], others[[0, 2]])
    np.testing.assert_array_equal(have[1], kept[1])
