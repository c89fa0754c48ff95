"""Text in and out: whole characters, and ends by strings."""

import itertools

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
from neumann_jax.generation import text
from tests import models, oracles
from tests.faults.server import CONFIG

BYTES = generation.load_tokenizer(None, 256)
PROMPTS = ["one", "and another"]
NEW = 24
ROOM = {"prefill_chunk": 16, "capacity": 64}


@pytest.fixture(scope="module")
def model():
  config = ModelConfig(**vars(CONFIG) | {"vocab_size": 256})
  execution = Execution(rule=RuleOptions(chunk_size=16))
  with models.drawn_by_numpy():
    return LanguageModel(config, execution, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def letters(model):
  """A tokenizer whose every token is a letter, so that any text can stop."""
  alphabet = "".join(chr(0x100 + i) for i in range(256))
  return BYTES._replace(
    decode=lambda ids: "".join(alphabet[i] for i in np.asarray(ids)),
    encode=lambda text: np.frombuffer(text.encode(), np.uint8),
  )


def write(model, tokenizer, prompts=PROMPTS, **options):
  options = {"spec": SamplingSpec(0)} | ROOM | options
  return generation.generate_text(
    model, tokenizer, prompts, max_new_tokens=NEW, **options
  )


def test_text_is_what_the_tokens_say(model):
  found = write(model, BYTES)
  truth = generation.generate(
    model,
    [list(prompt.encode()) for prompt in PROMPTS],
    max_new_tokens=NEW,
    spec=SamplingSpec(0),
    **ROOM,
  )
  np.testing.assert_array_equal(found.found.tokens, truth.tokens)
  assert found.texts == tuple(
    bytes(row.tolist()).decode(errors="replace") for row in truth.tokens
  )


def test_a_row_ends_with_the_token_that_completes_a_stop_string(model, letters):
  plain = write(model, letters)
  stop = plain.texts[0][7:10]
  places = [row.find(stop) for row in plain.texts]
  assert 0 <= places[0] <= 7 and places[1] < 0
  found = write(model, letters, stop=["never", stop])
  ended, other = found.texts
  assert ended == plain.texts[0][: places[0]] and other == plain.texts[1]
  assert found.found.lengths.tolist() == [places[0] + 3, NEW]
  assert found.found.finished.tolist() == [True, False]
  # The cache holds the text up to there and nothing after it.
  lengths = [len(prompt) for prompt in PROMPTS]
  np.testing.assert_array_equal(
    found.found.cache.stored, lengths + found.found.lengths
  )
  cache = found.found.cache
  more = write(model, letters, ["x", "y"], cache=cache)
  text = [prompt.encode() for prompt in PROMPTS]
  tokens = found.found.tokens
  history = [
    [*row, *ids[:n], ord(new)]
    for row, ids, n, new in zip(text, tokens, found.found.lengths, "xy")
  ]
  truth = generation.generate(
    model, history, max_new_tokens=NEW, spec=SamplingSpec(0), **ROOM
  )
  np.testing.assert_array_equal(more.found.tokens, truth.tokens)


def test_looks_begin_with_those_before(model, letters):
  plain = write(model, letters)
  stop = [plain.texts[0][9:13]]
  looks = list(
    generation.stream_text(
      model,
      letters,
      PROMPTS,
      every=4,
      max_new_tokens=NEW,
      stop=stop,
      spec=SamplingSpec(0),
      **ROOM,
    )
  )
  counts = [int(look.found.lengths.max()) for look in looks]
  assert counts == [1, 5, 9, 13, 17, 21, 24]
  for before, after in itertools.pairwise(looks):
    for old, new in zip(before.texts, after.texts):
      assert new.startswith(old)
  assert looks[-1].texts == write(model, letters, stop=stop).texts


@pytest.mark.parametrize(
  "whole, stop, done, shown",
  [
    ("abc", ["bc"], False, "a"),
    ("abc", ["cx"], False, "ab"),
    ("abc", ["cx"], True, "abc"),
    ("abcx", ["xyz", "cxy"], False, "ab"),
    ("ab\N{REPLACEMENT CHARACTER}", [], False, "ab"),
    ("ab\N{REPLACEMENT CHARACTER}", [], True, "ab\N{REPLACEMENT CHARACTER}"),
    ("a b", ["b", "a"], True, ""),
  ],
)
def test_what_may_be_shown(whole, stop, done, shown):
  assert text._shown(whole, stop, done) == shown


def test_refusals(model):
  for stop in ("end", [""], [3]):
    with oracles.refused(ValueError, "stop must be texts of at least one char"):
      write(model, BYTES, stop=stop)
  with oracles.refused(TypeError, "options are stop_tokens, .*, got top_k"):
    write(model, BYTES, top_k=3)
  with oracles.refused(ValueError, r"prompts\[0\] must have at least one tok"):
    write(model, BYTES, [""])
  with oracles.refused(ValueError, "key must be given unless temperature"):
    write(model, BYTES, spec=SamplingSpec())
