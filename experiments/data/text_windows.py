"""A text as tokens, cut into windows that see nothing of each other."""

import pathlib
import sysconfig
from typing import NamedTuple

import numpy as np

from neumann_jax.generation.tokenizer import Tokenizer

# What is read where no text is named.
FILES = ("argparse.py", "difflib.py", "heapq.py", "textwrap.py")


class Text(NamedTuple):
  """A text as tokens."""

  name: str  # of its file
  tokens: np.ndarray  # [n] int32
  bytes: int  # of these tokens, as UTF-8


class Windows(NamedTuple):
  """Independent windows of a text, padded on the right."""

  tokens: np.ndarray  # [N, W] int32; 0 at padding
  mask: np.ndarray  # [N, W] bool, True at tokens of the text


def files(path: str) -> list[str]:
  """The files that make up a text; see `read_text`."""
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  return [path] if path else [str(folder / file) for file in FILES]


def read_text(path: str, tokenizer: Tokenizer, max_tokens: int) -> Text:
  """The first `max_tokens` of a UTF-8 file; 0 means all, "" our default FILES.

  ValueError if the file is missing, not UTF-8, or of fewer than two tokens.
  """
  name = pathlib.Path(path).name
  if not path:
    name = f"{', '.join(FILES)} of the Python standard library"
  words = "".join(map(_read, files(path)))
  tokens = tokenizer.encode(words)
  if len(tokens) < 2:
    raise ValueError(f"text must have at least 2 tokens, got {len(tokens)}")
  size = len(words.encode())
  if max_tokens and max_tokens < len(tokens):
    tokens = tokens[:max_tokens]
    size = max_tokens
    if tokenizer.name != "bytes":
      size = len(tokenizer.decode(tokens).encode())
  return Text(name, tokens, size)


def windows(text: Text, width: int) -> Windows:
  """Cuts a text into windows of `width` tokens.

  A last window of a single token, which predicts nothing, is left out.
  """
  tokens = text.tokens
  if len(tokens) % width == 1:
    tokens = tokens[:-1]
  pad = -len(tokens) % width
  mask = np.arange(len(tokens) + pad) < len(tokens)
  tokens = np.pad(tokens, (0, pad)).astype(np.int32)
  return Windows(tokens.reshape(-1, width), mask.reshape(-1, width))


def _read(path: str) -> str:
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"text {path!r} names no readable file") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"text {path!r} is not UTF-8") from error
