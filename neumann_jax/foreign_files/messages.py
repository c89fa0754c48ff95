"""What a message may repeat of others: little, and nothing a terminal obeys."""

import json
from typing import Any

MOST = 80  # characters of one quotation; a message has two of them at most


def clean(text: str, *, most: int = MOST) -> str:
  r"""One line of printable characters, cut.

  Args:
    text: of a file, or of a library about a file.
    most: characters to keep.

  Returns:
    Line breaks and runs of spaces as one space, other characters that cannot be
    printed as \x1b or \u202e.
  """
  # Cut first: the rest of a text of a gigabyte is not looked at.
  kept = " ".join(text[: 2 * most].split())
  kept = "".join(c if c.isprintable() else _escaped(c) for c in kept)
  cut = len(kept) > most or len(text) > 2 * most
  return f"{kept[:most]}[...]" if cut else kept


def shown(value: Any) -> str:
  """A value as Python writes it, `clean`; of a container its kind alone."""
  if isinstance(value, str):
    return clean(repr(value[: 2 * MOST]))
  if value is None or isinstance(value, bool | float):
    return repr(value)
  # Digits of a long integer take quadratic time.
  if isinstance(value, int) and abs(value) < 1 << 64:
    return repr(value)
  return f"a value of type {type(value).__name__}"


def as_json(value: Any) -> str:
  """A value that came of a JSON file as such a file writes it, `clean`."""
  if isinstance(value, str):
    return clean(json.dumps(value[: 2 * MOST], ensure_ascii=False))
  try:
    return clean(json.dumps(value))
  except (TypeError, ValueError, RecursionError):
    return f"a value of type {type(value).__name__}"


def first_line(error: Exception) -> str:
  """What an error says first; its kind where it says nothing."""
  return next(iter(str(error).splitlines()), type(error).__name__)


def _escaped(character: str) -> str:
  return character.encode("unicode_escape", "backslashreplace").decode()
