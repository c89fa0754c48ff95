"""Text to tokens and back, from a checkpoint's files or as bytes."""

import json
import sys

import numpy as np
import pytest

from neumann_jax import generation
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
    tokenizer = generation.load_tokenizer(checkpoint, 256)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, list(text.encode()))
    assert tokenizer.decode(ids) == text
    assert tokenizer.stop_tokens == ()


def test_what_is_no_text_is_marked():
  tokenizer = generation.load_tokenizer(None, 1000)
  assert tokenizer.decode([65, 999, 66]) == "A\N{REPLACEMENT CHARACTER}B"
  assert tokenizer.decode(np.array([0xC3])) == "\N{REPLACEMENT CHARACTER}"


def test_half_a_character_is_no_text(words):
  """JSON can hold one, and a command line that is no UTF-8."""
  for folder, size in ((None, 256), (words, 8)):
    encode = generation.load_tokenizer(folder, size).encode
    with oracles.refused(ValueError, "but character 1 is half a surrogate"):
      encode("a\ud800b")


def test_a_tokenizer_file_is_read(words):
  tokenizer = generation.load_tokenizer(words, len(WORDS))
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
  tokenizer = generation.load_tokenizer(_write(tmp_path, **files), 256)
  assert tokenizer.stop_tokens == stops


# As transformers writes them for Qwen2 to Qwen3-Next, and since Qwen3.5.
CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEW_CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
  r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Marks (a combining tilde, Devanagari vowels) are where the two differ.
SAMPLE = "I'll re-read 123 naïve words:\n\n  a\u0303b हिन्दी 漢字! <|end|> \t."


def byte_level(cut):
  """BPE over bytes, trained on the sample, that cuts words so."""
  tokenizers = pytest.importorskip("tokenizers")
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.normalizer = tokenizers.normalizers.NFC()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(cut), "isolated"),
      tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
      ),
    ]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  made.train_from_iterator([SAMPLE] * 3, trainer)
  return made


@pytest.mark.parametrize(
  "kind, cut", [("qwen3_next", CUT), ("qwen3_5", NEW_CUT)]
)
@pytest.mark.parametrize("added", ["tokenizer_config", "added_tokens"])
def test_vocabulary_and_merges_are_read(kind, cut, added, tmp_path):
  truth = byte_level(cut)
  truth.model.save(str(tmp_path))
  number = truth.get_vocab_size()
  truth.add_special_tokens(["<|end|>"])
  token = {"content": "<|end|>", "special": True}
  files = {
    "config": {"model_type": kind},
    "tokenizer_config": {"added_tokens_decoder": {str(number): token}},
    "added_tokens": {"<|end|>": number},
  }
  _write(tmp_path, **{name: files[name] for name in ("config", added)})
  found = generation.load_tokenizer(tmp_path, 500)
  ids = truth.encode(SAMPLE, add_special_tokens=False).ids
  assert number in ids and len(ids) < len(SAMPLE.encode())
  np.testing.assert_array_equal(found.encode(SAMPLE), ids)
  assert found.decode(ids) == truth.decode(ids)
  assert found.name == "vocab.json"
  other = byte_level(NEW_CUT if cut == CUT else CUT)  # the cuts do differ
  assert other.encode(SAMPLE).tokens != truth.encode(SAMPLE).tokens


def test_a_folder_without_a_tokenizer_is_not_read_as_bytes(tmp_path):
  with oracles.refused(ValueError, "no tokenizer .* vocab_size is 257, not th"):
    generation.load_tokenizer(tmp_path, 257)
  byte_level(CUT).model.save(str(tmp_path))
  (tmp_path / "merges.txt").unlink()
  with oracles.refused(ValueError, "both vocab.json and merges.txt, but .* vo"):
    generation.load_tokenizer(tmp_path, 256)


@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("token", ["<end>", {"content": "<end>"}])
def test_the_end_of_an_answer_stops(words, file, token):
  """A tuned model ends with a token that only its tokenizer may name."""
  load = lambda: generation.load_tokenizer(words, 8).stop_tokens  # noqa: E731
  _write(words, **{file: {"eos_token": token}})
  assert load() == (3,)
  _write(words, config={"eos_token_id": 7})
  assert load() == (7, 3)
  _write(words, generation_config={"eos_token_id": [3, 6]})
  assert load() == (3, 6)
  _write(words, **{file: {"eos_token": "<gone>"}})
  with oracles.refused(ValueError, "eos_token of .* be a token, got '<gone>'"):
    load()


@pytest.mark.parametrize(
  "end, stops",
  [
    ("<end>", (7, 4, 3)),
    ("<end>\n", (7, 4, 3)),
    (" <end>", (7, 4)),  # the model would have to write the blank
    ("sat", (7, 4)),  # a word, which answers hold
    ("{{ raise_exception('no answers') }}", (7, 4)),
    ("{{ eos_token }}", (7, 4)),
  ],
)
def test_the_end_of_a_turn_stops_where_only_the_template_names_it(
  words, end, stops, monkeypatch
):
  """Small checkpoints of Qwen3.5: config and tokenizer end a document."""
  pytest.importorskip("jinja2")
  template = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    + end
    + "{% endfor %}"
  )
  _write(words, config={"eos_token_id": 7})
  options = {"eos_token": "<unknown>", "chat_template": template}
  _write(words, tokenizer_config=options)
  assert generation.load_tokenizer(words, 8).stop_tokens == stops
  monkeypatch.setitem(sys.modules, "jinja2", None)
  assert generation.load_tokenizer(words, 8).stop_tokens == (7, 4)


# --- Chats -------------------------------------------------------------------

TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == "tool" %}{{- raise_exception("no tools") }}\
{% endif %}
{{- "<" + message.role + ">" }}{% generation %}{{ message.content }}\
{% endgeneration %}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
{%- if tools is defined %}{{ tools | tojson }}{% endif %}"""
MESSAGES = [
  {"role": "user", "content": "a < b"},
  {"role": "assistant", "content": "yes"},
]
CHAT = "<user>a < b<end>\n<assistant>yes<end>\n"


@pytest.mark.parametrize("place", ["jinja", "string", "list", "json"])
def test_chats_are_written_by_the_template(words, place):
  pytest.importorskip("jinja2")
  options = {"eos_token": "<end>"}
  named = [{"name": "other", "template": "x"}]
  named.append({"name": "default", "template": TEMPLATE})
  if place == "jinja":
    (words / "chat_template.jinja").write_text(TEMPLATE)
    options["chat_template"] = "an older one"
  elif place == "json":
    _write(words, chat_template={"chat_template": TEMPLATE})
  else:
    options["chat_template"] = TEMPLATE if place == "string" else named
  _write(words, tokenizer_config=options)
  chat = generation.load_tokenizer(words, 8).chat
  assert chat(MESSAGES) == CHAT + "<assistant>"
  assert chat(MESSAGES, add_generation_prompt=False) == CHAT
  tools = [{"name": "<é>"}]
  assert chat(MESSAGES, tools=tools) == CHAT + '<assistant>[{"name": "<é>"}]'


@pytest.mark.parametrize(
  "template, sentence",
  [
    (TEMPLATE, "the chat template says: no tools"),
    ("{{ messages.__class__.__mro__ }}", "the chat template says: .*class__"),
    ("{{ messages.append(1) }}", "the chat template says: .*append"),
    ("{% for i in range(10 ** 9) %}{% endfor %}", "says: Range too big"),
    ("{% if %}", "the chat template says: Expected"),
    ("{{ messages[0].role + 1 }}", "the chat template says: .*str"),
    ("{{ 5 | dictsort }}", "the chat template says: .*items"),
    ("{{ 'abc' * 10 ** 17 }}", "the chat template says: MemoryError"),
    (
      "{% for i in [] %}" * 30 + "{% endfor %}" * 30,
      "the chat template says: too many statically nested blocks",
    ),
  ],
)
def test_a_template_does_what_it_may(words, template, sentence):
  pytest.importorskip("jinja2")
  _write(words, tokenizer_config={"chat_template": template})
  chat = generation.load_tokenizer(words, 8).chat
  with oracles.refused(ValueError, sentence):
    chat([{"role": "tool", "content": ""}])


def test_no_template_and_no_package(words, monkeypatch):
  with oracles.refused(ValueError, "tokenizer.json has no chat template: its"):
    generation.load_tokenizer(words, 8).chat(MESSAGES)
  _write(words, tokenizer_config={"chat_template": "x"})
  monkeypatch.setitem(sys.modules, "jinja2", None)
  with oracles.refused(ImportError, r"needs the package jinja2: pip"):
    generation.load_tokenizer(words, 8).chat(MESSAGES)


def test_refusals(tmp_path):
  load = generation.load_tokenizer
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
    generation.load_tokenizer(words, 4)
  _write(words, tokenizer='{"version": "1.0", "model"')
  with oracles.refused(ValueError, "tokenizer.json' is no readable tokenizer"):
    generation.load_tokenizer(words, 256)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with oracles.refused(ImportError, r"needs the package tokenizers: pip"):
    generation.load_tokenizer(words, 256)
