"""Docstrings are plain text; this extension of Griffe makes Markdown of them.

Indented formulas become code blocks, array shapes such as [B, T, V] become code
instead of links, a `<` stays what it is, and examples become code of their own.
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?):\s*$")
# With what stands right before the bracket: E[x0 | x], sigma[N].
_SHAPE = re.compile(r"(?<![\w`])((?:[\w.]*\[[^\[\]`]+\])+)(?!\()")


class Plain(griffe.Extension):
  """Rewrites every docstring once, before it is parsed."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """Called by Griffe with each module, class, function and attribute."""
    if obj.docstring is not None:
      obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
  """Markdown of a plain docstring, its sections left in place.

  Args:
    text: with the common indentation taken away.

  Returns:
    Text that reads the same after Markdown.
  """
  paragraphs, described = [], False
  text = re.sub(r"(?m)^Example:$", "Examples:", text)  # what Griffe reads
  for paragraph in text.split("\n\n"):
    if ">>> " in paragraph:
      paragraphs.append(paragraph)
      continue
    described = described or bool(_SECTION.match(paragraph.split("\n")[0]))
    formula = paragraph.startswith("  ") and not described
    paragraphs.append(_code(paragraph) if formula else _prose(paragraph))
  return "\n\n".join(paragraphs)


def _code(paragraph: str) -> str:
  return "\n".join("    " + line for line in paragraph.split("\n"))


def _prose(paragraph: str) -> str:
  """Outside of backticks, shapes as code and no tags."""
  parts = paragraph.split("`")
  parts[::2] = [
    _SHAPE.sub(r"`\1`", part).replace("<", "&lt;") for part in parts[::2]
  ]
  return "`".join(parts)
