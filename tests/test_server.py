"""A server's life: programs, memory and maps over calls of every kind."""

import contextlib
import gc
import pathlib
import resource

import jax
import numpy as np
import pytest
from flax import nnx

from neumann_jax import (
  Execution,
  LanguageModel,
  ModelConfig,
  RuleOptions,
  SamplingSpec,
  generation,
)
from neumann_jax.generation import decoding

pytestmark = pytest.mark.usefixtures("quick_compilation")

COMPILED = "/jax/core/compile/backend_compile_duration"
CONFIG = ModelConfig(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=16,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=8,
  linear_value_head_dim=8,
  initializer_range=0.3,
)


@nnx.jit
def fresh():
  execution = Execution(rule=RuleOptions(chunk_size=8))
  return LanguageModel(CONFIG, execution, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def model():
  return fresh()


@contextlib.contextmanager
def counting():
  """A list that grows by one with every program that XLA compiles."""
  programs, listening = [], True

  def heard(event, seconds, **_):
    if listening and event == COMPILED:
      programs.append(seconds)

  # There is no public way to take one listener back: it is told to be deaf.
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    yield programs
  finally:
    listening = False


def forget():
  for part in (decoding.start, decoding.resume, decoding.prefill):
    part.clear_cache()
  decoding.decode.clear_cache()


def requests(count, longest, seed=0):
  """Prompts of any length, and other parameters for each."""
  rng = np.random.default_rng(seed)
  keys = [jax.random.key(i) for i in range(3)]
  for i in range(count):
    temperature = float(rng.choice([0.0, rng.uniform(0.1, 2)]))
    cuts = {}
    if temperature:
      cuts = {
        "top_k": [None, int(rng.integers(1, 61))][rng.integers(2)],
        "top_p": [None, float(rng.uniform(0.1, 1))][rng.integers(2)],
        "min_p": [0.0, 0.05][rng.integers(2)],
      }
    yield {
      "prompts": [rng.integers(0, 61, rng.integers(1, longest + 1))],
      "max_new_tokens": int(rng.integers(1, 40)),
      "spec": SamplingSpec(
        temperature,
        **cuts,
        repetition_penalty=float(rng.uniform(1, 1.3)),
        presence_penalty=float(rng.uniform(0, 1)),
      ),
      "stop_tokens": rng.integers(0, 61, rng.integers(0, 4)).tolist(),
      "key": keys[i % 3] if temperature else None,
    }


def test_a_server_compiles_three_programs(model):
  """With pieces and a capacity of its own; the defaults are the slow twin."""
  forget()
  asked = list(requests(12, 20))  # whose keys are programs of their own
  room = {"prefill_chunk": 8, "capacity": 64}
  counts = []
  with counting() as programs:
    for request in asked:
      generation.generate(model, **request, **room)
      counts.append(len(programs))
  assert counts == [3] * 12


def test_an_equal_model_meets_the_same_programs(model):
  room = {"prefill_chunk": 8, "capacity": 64}
  request = next(requests(1, 20)) | room
  truth = generation.generate(model, **request)
  again = fresh()
  with counting() as programs:
    found = generation.generate(again, **request)
  assert not programs
  np.testing.assert_array_equal(found.tokens, truth.tokens)


def resident_bytes():
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


def maps():
  return len(pathlib.Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.slow
def test_200_prompts_compile_at_most_four_programs(model):
  forget()
  asked = list(requests(200, 2000))
  with counting() as programs:
    for request in asked:
      generation.generate(model, **request)
  assert len(programs) <= 4


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/maps").exists(), reason="Linux counts maps"
)
def test_500_calls_of_a_server(model):
  """Plain calls and turns of chats; programs, memory and maps stay flat."""
  forget()
  seen, cache, asked = [], None, list(requests(500, 2000))
  with counting() as programs:
    for i, request in enumerate(asked):
      if i % 5 == 4:  # a turn after the last call
        cut = {"prompts": [request["prompts"][0][:100]], "cache": cache}
        request = request | cut
      cache = generation.generate(model, **request).cache
      gc.collect()
      seen.append((len(programs), maps(), resident_bytes()))
  count, mapped, resident = np.array(seen).T
  assert count[-1] <= 8
  assert count[50] == count[-1]
  assert mapped[-1] - mapped[50] <= 8  # of some 2000; a program takes dozens
  assert resident[-1] - resident[50] < 50e6
