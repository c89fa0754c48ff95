"""One's own texts and conversations, as documents of tokens.

A line of a `.jsonl` file is an object with `text`, or with `messages` and other
variables of the chat template (`tools`, ...). A `.txt` file is one text.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data import text_windows
from experiments.data.packed_rows import Document
from neumann_jax import generation
from neumann_jax.generation.tokenizer import Tokenizer

SUFFIXES = (".jsonl", ".txt")
# Names that a chat template cannot be given: arguments of `chat_tokens`, and of
# the calls below it.
RESERVED = ("add_generation_prompt", "self", "template", "tokenizer", "turns")


class Read(NamedTuple):
  """What a place holds."""

  documents: list[Document]  # none longer than a row
  texts: int  # how many were texts
  chats: int  # how many were conversations
  cut: int  # how many conversations were cut at the length of a row
  dropped: int  # how many documents had no token to be learned


def files(place: str) -> list[pathlib.Path]:
  """The files of a place: itself, or those in the folder; "" for our own.

  Our own are sources of Python's standard library: for the tests.
  """
  if not place:
    return [pathlib.Path(path) for path in text_windows.files("")]
  path = pathlib.Path(place)
  found = [path]
  if path.is_dir():
    found = sorted(x for x in path.iterdir() if x.suffix in SUFFIXES)
  if not found or any(
    not x.is_file() or x.suffix not in SUFFIXES for x in found
  ):
    raise ValueError(
      f"data must be a file that ends in {' or '.join(SUFFIXES)}, or a folder "
      f"of such, got {place!r}"
    )
  return found


def read(
  place: str,  # of `files`
  tokenizer: Tokenizer,
  *,
  length: int,  # tokens of a row
  turns: str,  # which answers of a conversation are learned, "all" or "last"
) -> Read:
  """The documents of a place.

  A text longer than a row is cut into several documents, a conversation is cut
  off. A document with no token to be learned is dropped: one that was cut
  before its first answer, or a last token of a text. ValueError, naming the
  line, for what is neither.
  """
  documents: list[Document] = []
  texts = chats = cut = 0
  for where, line in _lines(files(place)):
    try:
      if "messages" in line:
        document = _chat(dict(line), tokenizer, turns)
        cut += len(document.tokens) > length
        chats += 1
        documents.append(Document(*(x[:length] for x in document)))
      else:
        texts += 1
        documents += _texts(line["text"], tokenizer, length)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from None
  kept = [x for x in documents if x.wanted[1:].any()]
  if not kept:
    raise ValueError(f"data {place!r} has no token to be learned in {length}")
  return Read(kept, texts, chats, cut, len(documents) - len(kept))


def _chat(line: dict[str, Any], tokenizer: Tokenizer, turns: str) -> Document:
  messages = line.pop("messages")
  if not isinstance(messages, list) or not all(
    isinstance(message, dict) for message in messages
  ):
    raise ValueError("messages must be a list of objects with role and content")
  if reserved := sorted(line.keys() & set(RESERVED)):
    raise ValueError(
      f"{reserved[0]} must not be a key beside messages: it is none of the "
      "chat template's variables"
    )
  known = generation.chat_tokens(tokenizer, messages, turns=turns, **line)  # type: ignore[arg-type]
  return Document(*known)


def _texts(text: Any, tokenizer: Tokenizer, length: int) -> list[Document]:
  if not isinstance(text, str):
    raise ValueError(f"text must be a string, got {text!r:.60}")
  tokens = np.concatenate([tokenizer.encode(text), _end(tokenizer)])
  parts = np.split(tokens, range(length, len(tokens), length))
  return [
    Document(part.astype(np.int32), np.ones(len(part), bool)) for part in parts
  ]


def _end(tokenizer: Tokenizer) -> np.ndarray:
  """The eos_token, with which a text ends; nothing where there is none."""
  eos = tokenizer.special.get("eos_token")
  return tokenizer.encode(eos) if eos else np.zeros(0, np.int32)


def _lines(
  paths: Sequence[pathlib.Path],
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Where it stands, and what it says, of every line of JSON and every text."""
  for path in paths:
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"data {str(path)!r} is not UTF-8") from error
    if path.suffix != ".jsonl":
      yield str(path), {"text": text}
      continue
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        where = f"line {number} of {str(path)!r}"
        yield where, _object(where, line)


def _object(where: str, line: str) -> dict[str, Any]:
  try:
    found = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where} is no JSON ({error})") from error
  if not isinstance(found, dict) or not {"text", "messages"} & found.keys():
    raise ValueError(f"{where} must be an object with text or messages")
  return found
