"""Which tokens of a conversation are the assistant's."""

import numpy as np
import pytest

from neumann_jax import generation
from neumann_jax.generation import chat_turns
from neumann_jax.generation.chat_template import render_marked
from tests import oracles

pytest.importorskip("jinja2")

BYTES = generation.load_tokenizer(None, 256)
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Marks its answers, as templates made for training do.
MARKED = (
  "{% for m in messages %}[{{ m.role }}]"
  "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!"
  "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
# As Qwen3.5's: a thought opens every answer asked for, and is written of the
# answers after the last question alone.
THINKING = (
  "{% set ns = namespace(last=0) %}{% for m in messages %}"
  "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
  "{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
  "<think>\n{{ m.thought or '' }}\n</think>\n\n{% endif %}"
  "{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
MESSAGES = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "One?"},
  {"role": "assistant", "content": "Yes."},
  {"role": "user", "content": "Two?"},
  {"role": "assistant", "content": "<b>No."},
]


def tokenizer(template, eos="<|im_end|>"):
  special = {"eos_token": eos} if eos else {}
  return BYTES._replace(template=template, special=special)


def answers(known):
  """The parts of the text that are answers, one string for each run of them."""
  edges = np.flatnonzero(np.diff(np.pad(known.answers.astype(int), 1)))
  return [
    BYTES.decode(known.tokens[a:b]) for a, b in zip(edges[::2], edges[1::2])
  ]


@pytest.mark.parametrize(
  "template, eos, want",
  [
    (CHATML, "<|im_end|>", ["Yes.<|im_end|>", "<b>No.<|im_end|>"]),
    # Without an eos_token in the template, to the end of the message.
    (CHATML, "", ["Yes.<|im_end|>\n", "<b>No.<|im_end|>\n"]),
    (CHATML, "<|endoftext|>", ["Yes.<|im_end|>\n", "<b>No.<|im_end|>\n"]),
    (MARKED, "", ["Yes.!", "<b>No.!"]),
    # The thought that the prompt opens is not the model's to write.
    (
      THINKING,
      "<|im_end|>",
      ["Yes.<|im_end|>", "\n</think>\n\n<b>No.<|im_end|>"],
    ),
  ],
)
def test_answers(template, eos, want):
  own = tokenizer(template, eos)
  known = generation.chat_tokens(own, MESSAGES)
  assert answers(known) == want
  assert known.tokens.dtype == np.int32 and known.answers.dtype == bool
  text = own.chat(MESSAGES, add_generation_prompt=False)
  assert BYTES.decode(known.tokens) == text
  last = generation.chat_tokens(own, MESSAGES, turns="last")
  assert answers(last) == want[-1:]
  np.testing.assert_array_equal(last.tokens, known.tokens)


def test_prompts_and_answers_are_cut_into_tokens_apart():
  """As in generation: no token lies in both."""
  cut = []

  def encode(text):
    cut.append(text)
    return BYTES.encode(text)

  own = tokenizer(CHATML)._replace(encode=encode)
  generation.chat_tokens(own, MESSAGES)
  assert cut[1::2] == ["Yes.<|im_end|>", "<b>No.<|im_end|>"]


def test_marks_of_a_template():
  text, spans = render_marked(MARKED, messages=MESSAGES[:3])
  assert text == "[system]Be brief.[user]One?[assistant]Yes.!"
  assert [text[a:b] for a, b in spans] == ["Yes.!"]
  assert render_marked("{{ messages }}", messages="mark-")[1] == []


CHANGING = (
  "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
  "template, messages, options, words",
  [
    (CHATML, MESSAGES[:2], {}, "messages must have a turn of the assistant"),
    (CHATML, MESSAGES, {"turns": "some"}, "turns must be 'all' or 'last'"),
    (
      CHATML,
      [*MESSAGES[:2], {"role": "assistant", "content": "a<|im_end|>b"}],
      {},
      "message 2 must not hold '<|im_end|>', which ends it",
    ),
    (CHANGING, MESSAGES, {}, "writes the first 2 messages otherwise"),
    (None, MESSAGES, {}, "has no chat template"),
  ],
)
def test_refusals(template, messages, options, words):
  words = words.replace("|", r"\|")
  with oracles.refused(ValueError, words):
    generation.chat_tokens(tokenizer(template), messages, **options)


UNENDED = (
  "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}"
  "{{ '\n' if m.role == 'assistant' else '<end>' }}{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("after", ["Two?", " x ", "", "Yes.", None])
def test_an_answer_does_not_run_into_the_next_turn(after):
  messages = [*MESSAGES[:3], {"role": "user", "content": after}]
  with oracles.refused(ValueError, "no '<end>' between messages 2 and 3"):
    generation.chat_tokens(tokenizer(UNENDED, "<end>"), messages)
  known = generation.chat_tokens(tokenizer(CHATML), messages)
  assert answers(known) == ["Yes.<|im_end|>"]


def test_answers_that_overlap_are_refused(monkeypatch):
  monkeypatch.setattr(chat_turns, "_span", lambda *a: (0, 9))
  with oracles.refused(ValueError, "an answer begin before the one before it"):
    generation.chat_tokens(tokenizer(CHATML), MESSAGES)
