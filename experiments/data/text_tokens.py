"""Text to tokens and back: a checkpoint's own tokenizer, or plain bytes."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from foreign_files import folder, json_file
from foreign_files.messages import clean, shown

TOKENIZER = "tokenizer.json"
# The largest of published models has 33 MB.
MOST_BYTES = 64 << 20
# Where a checkpoint says which tokens end a text; the first that does counts.
STOPS = ("generation_config.json", "config.json")


class Tokenizer(NamedTuple):
  """Text to token ids and back."""

  name: str  # what rows and reports call it
  # text -> [T] int32 ids, nothing put before or after the text
  encode: Callable[[str], np.ndarray]
  # ids -> text; special tokens give none, and bytes that are not whole
  # characters give U+FFFD
  decode: Callable[[Sequence[int] | np.ndarray], str]
  stop_tokens: tuple[int, ...]  # ids after which a text is finished; often none


def load_tokenizer(
  # a directory as Hugging Face writes it, or None
  checkpoint: pathlib.Path | None,
  vocab_size: int,  # V of the model
) -> Tokenizer:
  """The tokenizer of a checkpoint's directory, with its stop tokens.

  Where the directory has no `tokenizer.json`, or there is no directory, tokens
  are the bytes of the text in UTF-8: ids 0 to 255, so that a model of at least
  256 tokens can be fed without one. `generation_config.json`, else
  `config.json`, names stop tokens.

  Raises:
    ImportError: there is a `tokenizer.json`, but no `tokenizers` package.
    ValueError: the directory is none, a file in it cannot be read, or it and
      the model do not fit.
  """
  if vocab_size < 1:
    raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
  if checkpoint is None:
    return _of_bytes(vocab_size, ())
  if not checkpoint.is_dir():
    raise ValueError(f"checkpoint {str(checkpoint)!r} is not a directory")
  stops = _stop_tokens(checkpoint, vocab_size)
  path = folder.own_file(checkpoint, TOKENIZER)
  if path.exists():
    return _of_file(path, vocab_size, stops)
  return _of_bytes(vocab_size, stops)


def _of_bytes(vocab_size: int, stops: tuple[int, ...]) -> Tokenizer:
  if vocab_size < 256:
    raise ValueError(
      f"without a {TOKENIZER} tokens are bytes, for which vocab_size must be "
      f"at least 256, got {vocab_size}"
    )

  def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    # 0xff is no byte of UTF-8: what is no byte at all becomes one U+FFFD.
    whole = bytes(i if 0 <= i < 256 else 0xFF for i in np.asarray(ids).tolist())
    return whole.decode(errors="replace")

  return Tokenizer("bytes", encode, decode, stops)


def _of_file(
  path: pathlib.Path, vocab_size: int, stops: tuple[int, ...]
) -> Tokenizer:
  tokenizer = _read(path)
  largest = max(tokenizer.get_vocab().values(), default=0)
  if largest >= vocab_size:
    raise ValueError(
      f"{str(path)!r} has tokens up to {largest}, but the model's vocab_size "
      f"is {vocab_size}"
    )

  def encode(text: str) -> np.ndarray:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.asarray(ids, np.int32)

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    return tokenizer.decode(np.asarray(ids).tolist())

  return Tokenizer(TOKENIZER, encode, decode, stops)


def _read(path: pathlib.Path) -> Any:
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      f"reading {str(path)!r} needs the package tokenizers: pip install "
      "'neumann-posterior[hf]'"
    ) from error
  try:
    return tokenizers.Tokenizer.from_buffer(folder.read(path, most=MOST_BYTES))
  except (KeyboardInterrupt, SystemExit):
    raise
  # Bare Exceptions, and where its Rust panics, a BaseException.
  except BaseException as error:
    reason = clean(str(error)).rstrip(".")
    raise ValueError(
      f"{str(path)!r} is no readable tokenizer ({reason})"
    ) from None


def _stop_tokens(checkpoint: pathlib.Path, vocab_size: int) -> tuple[int, ...]:
  for path in (folder.own_file(checkpoint, name) for name in STOPS):
    found = _eos(path) if path.exists() else None
    if found is None:
      continue
    ids = tuple(found) if isinstance(found, list) else (found,)
    for i in ids:
      whole = isinstance(i, int) and not isinstance(i, bool)
      if not whole or not 0 <= i < vocab_size:
        raise ValueError(
          f"eos_token_id in {str(path)!r} must be integers in "
          f"[0, {vocab_size}), got {shown(i)}"
        )
    return ids
  return ()


def _eos(path: pathlib.Path) -> Any:
  try:
    fields = json_file.read(path)
  except (OSError, ValueError) as error:
    reason = clean(str(error))
    raise ValueError(f"{str(path)!r} is no readable JSON ({reason})") from None
  if not isinstance(fields, dict):
    raise ValueError(f"{str(path)!r} must hold a JSON object")
  text = fields.get("text_config")  # of a vision-language model
  if isinstance(text, dict) and text.get("eos_token_id") is not None:
    return text["eos_token_id"]
  return fields.get("eos_token_id")
