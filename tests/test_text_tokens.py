"""Text to tokens and back, from a checkpoint's files or as bytes."""

import json
import sys

import numpy as np
import pytest

from experiments.data import text_tokens
from tests import oracles

WORDS = {"the": 0, "cat": 1, "sat": 2, "<end>": 3, "<unknown>": 4}


def _write(path, **files):
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (path / f"{name}.json").write_text(text)
  return path


@pytest.fixture
def words(tmp_path):
  tokenizers = pytest.importorskip("tokenizers")
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(WORDS, unk_token="<unknown>")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(["<end>"])
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<end> $A", special_tokens=[("<end>", 3)]
  )
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  return tmp_path


@pytest.mark.parametrize(
  "text", ["", "plain", "naïve 漢字 \N{GRINNING FACE}\0"]
)
def test_bytes_round_trip(text, tmp_path):
  for checkpoint in (None, tmp_path):
    tokenizer = text_tokens.load_tokenizer(checkpoint, 256)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, list(text.encode()))
    assert tokenizer.decode(ids) == text
    assert tokenizer.stop_tokens == ()


def test_what_is_no_text_is_marked():
  tokenizer = text_tokens.load_tokenizer(None, 1000)
  assert tokenizer.decode([65, 999, 66]) == "A\N{REPLACEMENT CHARACTER}B"
  assert tokenizer.decode(np.array([0xC3])) == "\N{REPLACEMENT CHARACTER}"


def test_a_tokenizer_file_is_read(words):
  tokenizer = text_tokens.load_tokenizer(words, len(WORDS))
  ids = tokenizer.encode("the cat flew")
  np.testing.assert_array_equal(ids, [0, 1, 4])  # nothing put in front
  assert ids.dtype == np.int32
  assert tokenizer.decode(np.array([0, 1, 3])) == "the cat"


@pytest.mark.parametrize(
  ("files", "stops"),
  [
    ({}, ()),
    ({"config": {"eos_token_id": None}}, ()),
    ({"config": {"eos_token_id": 7}}, (7,)),
    ({"config": {"text_config": {"eos_token_id": 9}}}, (9,)),
    ({"config": {"eos_token_id": 7}, "generation_config": {}}, (7,)),
    (
      {
        "config": {"eos_token_id": 7},
        "generation_config": {"eos_token_id": [1, 2]},
      },
      (1, 2),
    ),
  ],
)
def test_stop_tokens(files, stops, tmp_path):
  tokenizer = text_tokens.load_tokenizer(_write(tmp_path, **files), 256)
  assert tokenizer.stop_tokens == stops


def test_refusals(tmp_path):
  load = text_tokens.load_tokenizer
  with oracles.refused(ValueError, "vocab_size must be at least 256, got 255"):
    load(None, 255)
  with oracles.refused(ValueError, "vocab_size must be at least 1, got 0"):
    load(None, 0)
  with oracles.refused(ValueError, "nowhere' is not a directory"):
    load(tmp_path / "nowhere", 256)
  for content, pattern in (
    ("{", "config.json' is no readable JSON"),
    ([1], "config.json' must hold a JSON object"),
    ({"eos_token_id": [3, 256]}, r"integers in \[0, 256\), got 256"),
    ({"eos_token_id": "</s>"}, r"integers in \[0, 256\), got '</s>'"),
  ):
    with oracles.refused(ValueError, pattern):
      load(_write(tmp_path, config=content), 256)


def test_tokenizer_file_refusals(words, monkeypatch):
  with oracles.refused(ValueError, "tokens up to 4, but .* vocab_size is 4"):
    text_tokens.load_tokenizer(words, 4)
  _write(words, tokenizer='{"version": "1.0", "model"')
  with oracles.refused(ValueError, "tokenizer.json' is no readable tokenizer"):
    text_tokens.load_tokenizer(words, 256)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with oracles.refused(ImportError, r"needs the package tokenizers: pip"):
    text_tokens.load_tokenizer(words, 256)
