"""Conversations as tokens, with the assistant's own ones known.

What a model is to learn of a conversation are the tokens that it would have
written: its answers, up to the token that ends them, and not what the template
puts around them.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from neumann_jax.generation import chat_template
from neumann_jax.generation.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]  # start and end in a text
ANSWERER = "assistant"


class ChatTokens(NamedTuple):
  """A conversation as tokens.

  Attributes:
    tokens: [T] int32.
    answers: [T] bool, whether a token is the assistant's.
  """

  tokens: np.ndarray
  answers: np.ndarray


def chat_tokens(
  tokenizer: Tokenizer,
  messages: Messages,
  *,
  turns: Literal["all", "last"] = "all",
  **variables: Any,
) -> ChatTokens:
  """A conversation in a checkpoint's template, and which tokens answer.

  Where the template marks answers by `{% generation %}`, its marks count.
  Elsewhere an answer begins where the template, asked for the beginning of one,
  ends, and goes up to the eos_token, itself included; without an eos_token, to
  the end of the message. Prompts and answers are cut into tokens apart, as they
  are when text is generated.

  Args:
    tokenizer: of a checkpoint with a chat template.
    messages: of "role" and "content", as for `Tokenizer.chat`.
    turns: whether all answers count, or only the last.
    **variables: others of the template.

  Raises:
    ImportError: if there is no package jinja2.
    ValueError: if there is no template, no answer, or one cannot be told from
      what is around it, as one without an end before the next message.
  """
  if turns not in ("all", "last"):
    raise ValueError(f"turns must be 'all' or 'last', got {turns!r}")
  if tokenizer.template is None:
    tokenizer.chat(messages)  # refuses, and says what is missing
  text, spans = chat_template.render_marked(
    tokenizer.template or "",
    messages=list(messages),
    add_generation_prompt=False,
    **{**tokenizer.special, **variables},
  )
  places = [i for i, m in enumerate(messages) if m.get("role") == ANSWERER]
  if not places:
    raise ValueError(f"messages must have a turn of the {ANSWERER}, got none")
  if turns == "last":
    spans, places = spans[-1:], places[-1:]
  if not spans:
    spans = [_span(tokenizer, messages, i, text, variables) for i in places]
  for (_, end), (start, _) in itertools.pairwise(spans):
    if start < end:
      raise ValueError(
        "the chat template has an answer begin before the one before it ends: "
        "give turns='last', and a conversation for each answer"
      )
  return _cut(tokenizer, text, spans)


def _span(
  tokenizer: Tokenizer,
  messages: Messages,
  place: int,
  text: str,
  variables: Mapping[str, Any],
) -> Span:
  """Where the answer that is message `place` stands in the text."""
  before, opened = (
    tokenizer.chat(messages[:place], add_generation_prompt=open_, **variables)
    for open_ in (False, True)
  )
  # Templates that leave out the reasoning of turns before the last question
  # write a conversation otherwise when it goes on.
  if not text.startswith(before):
    raise ValueError(
      f"the chat template writes the first {place} messages otherwise when "
      "others follow: give turns='last', and a conversation for each answer"
    )
  start = _alike(text, opened)
  if start < len(opened):
    # Asked for an answer, it opens a thought which this answer has not: what
    # both begin with is the line before.
    start = max(text.rfind("\n", 0, start) + 1, len(before))
  eos = tokenizer.special.get("eos_token")
  if eos and eos in str(messages[place].get("content")):
    raise ValueError(f"message {place} must not hold {eos!r}, which ends it")
  if eos and (end := text.find(eos, start)) >= 0:
    if end >= _next_content(tokenizer, messages, place, text, variables):
      raise ValueError(
        f"the chat template writes no {eos!r} between messages {place} and "
        f"{place + 1}, so that nothing says where the answer ends: give a "
        "tokenizer whose eos_token ends a turn, or turns='last'"
      )
    return start, end + len(eos)
  after = tokenizer.chat(
    messages[: place + 1], add_generation_prompt=False, **variables
  )
  if not text.startswith(after):
    raise ValueError(
      f"the chat template writes message {place} otherwise when others follow, "
      "and no eos_token says where it ends: give turns='last'"
    )
  return start, len(after)


def _next_content(
  tokenizer: Tokenizer,
  messages: Messages,
  place: int,
  text: str,
  variables: Mapping[str, Any],
) -> int:
  """Where the message after `place` says something; the text's length if none.

  It stands where the text changes with it. The change is made in its middle,
  because templates look at how a message begins and ends.
  """
  if place + 1 == len(messages):
    return len(text)
  content = str(messages[place + 1].get("content") or "").strip()
  half = len(content) // 2
  other = "y" if content[half : half + 1] == "x" else "x"
  changed = dict(messages[place + 1])
  changed["content"] = content[:half] + other + content[half:]
  found = tokenizer.chat(
    [*messages[: place + 1], changed, *messages[place + 2 :]],
    add_generation_prompt=False,
    **variables,
  )
  return _alike(text, found) - half


def _alike(text: str, other: str) -> int:
  """How many characters both begin with."""
  pairs = zip(text, other)
  return sum(1 for _ in itertools.takewhile(lambda x: x[0] == x[1], pairs))


def _cut(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> ChatTokens:
  """Tokens of the text, those within a span being answers."""
  tokens, answers, done = [], [], 0
  for start, end in spans:
    for part, answer in ((text[done:start], False), (text[start:end], True)):
      tokens.append(tokenizer.encode(part))
      answers.append(np.full(len(tokens[-1]), answer))
    done = end
  tokens.append(tokenizer.encode(text[done:]))
  answers.append(np.full(len(tokens[-1]), False))
  return ChatTokens(
    np.concatenate(tokens).astype(np.int32), np.concatenate(answers)
  )
