"""The token with which a checkpoint's chat template ends an answer.

Some checkpoints name only the token that ends a document, although turns of
their conversations end with another: the model then writes its answer, and goes
on with a turn of the user.
"""

from collections.abc import Mapping
from typing import Any

from neumann_jax.generation import chat_template

# What no template holds, so that it is found where the answer is.
_ANSWER = "An answer of neumann_jax."
_MESSAGES = (
  {"role": "user", "content": "A question."},
  {"role": "assistant", "content": _ANSWER},
)


def turn_end(
  template: str, special: Mapping[str, str], tokenizer: Any
) -> int | None:
  """The special token that follows an answer.

  Args:
    template: of chats, as `chat_template.render` takes it.
    special: texts of "eos_token" and the like, which it may use.
    tokenizer: of the package `tokenizers`.

  Returns:
    Its id; None where anything but a special token follows, the template
    refuses a question with its answer, or there is no package jinja2.
  """
  try:
    text = chat_template.render(
      template,
      messages=[dict(message) for message in _MESSAGES],
      add_generation_prompt=False,
      **special,
    )
  # A tokenizer serves without chats: `Tokenizer.chat` says what is wrong.
  except (ImportError, ValueError):
    return None
  _, found, rest = text.rpartition(_ANSWER)
  if not found:
    return None
  ends = {
    token.content: number
    for number, token in tokenizer.get_added_tokens_decoder().items()
    if token.special and rest.startswith(token.content)
  }
  # One token's text may begin another's.
  return ends[max(ends, key=len)] if ends else None
