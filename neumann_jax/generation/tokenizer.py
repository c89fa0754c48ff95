"""Text to tokens and back: a checkpoint's own tokenizer, or plain bytes."""

import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neumann_jax.foreign_files.folder import as_path
from neumann_jax.generation import chat_template, tokenizer_files
from neumann_jax.generation.tokenizer_files import TOKENIZER

# Ids of UTF-8's bytes.
_BYTES = 256


class Tokenizer(NamedTuple):
  """Text to token ids and back.

  Attributes:
    name: what rows and reports call it.
    encode: text -> [T] int32 ids, nothing put before or after the text; special
      tokens that the text spells are those tokens.
    decode: ids -> text; special tokens give none, and bytes that are not whole
      characters give U+FFFD.
    stop_tokens: ids after which a text is finished; often none.
    template: of chats, as the checkpoint has it, or None.
    special: texts of "eos_token", "bos_token", ..., which the template may use.
  """

  name: str
  encode: Callable[[str], np.ndarray]
  decode: Callable[[Sequence[int] | np.ndarray], str]
  stop_tokens: tuple[int, ...]
  template: str | None = None
  special: Mapping[str, str] = types.MappingProxyType({})

  def chat(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
  ) -> str:
    """The text of a conversation, as the checkpoint's template writes it.

    Args:
      messages: of the keys that the template reads, "role" and "content".
      add_generation_prompt: whether the text ends where the answer begins.
      **variables: others of the template, as `tools` or `enable_thinking`.

    Raises:
      ImportError: if there is no package jinja2.
      ValueError: if the checkpoint has no template, or it cannot write these
        messages.
    """
    if self.template is None:
      raise ValueError(
        f"the tokenizer {self.name} has no chat template: its folder needs a "
        "chat_template.jinja, or a chat_template in tokenizer_config.json"
      )
    return chat_template.render(
      self.template,
      messages=list(messages),
      add_generation_prompt=add_generation_prompt,
      **{**self.special, **variables},
    )


def load_tokenizer(
  checkpoint: pathlib.Path | None, vocab_size: int
) -> Tokenizer:
  """The tokenizer of a checkpoint's directory.

  `tokenizer.json`, or `vocab.json` and `merges.txt` as Qwen's tokenizers read
  them. Without a directory, and for a directory without these files whose model
  has 256 tokens, tokens are the bytes of the text in UTF-8.

  Args:
    checkpoint: a directory as Hugging Face writes it, or None.
    vocab_size: V of the model.

  Returns:
    The tokenizer, with the stop tokens of `generation_config.json`, else of
    `config.json`, the eos_token of `tokenizer_config.json`, and the token with
    which the chat template ends an answer.

  Raises:
    TypeError: if `checkpoint` is no path.
    ImportError: there is a tokenizer, but no `tokenizers` package.
    ValueError: the directory is none or has no tokenizer, a file in it cannot
      be read, or it and the model do not fit.
  """
  if vocab_size < 1:
    raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
  if checkpoint is None:
    return _of_bytes(vocab_size, ())
  checkpoint = as_path(checkpoint, "checkpoint")
  if not checkpoint.is_dir():
    raise ValueError(f"checkpoint {str(checkpoint)!r} is not a directory")
  found = tokenizer_files.read_tokenizer(checkpoint)
  if found is None:
    return _bytes_of_folder(checkpoint, vocab_size)
  return _of_files(checkpoint, found, vocab_size)


def _bytes_of_folder(checkpoint: pathlib.Path, vocab_size: int) -> Tokenizer:
  # A larger vocabulary is that of some tokenizer: bytes would be read as its
  # first 256 tokens, and the answer would be noise.
  if vocab_size > _BYTES:
    raise ValueError(
      f"checkpoint {str(checkpoint)!r} has no tokenizer ({TOKENIZER}, or "
      "vocab.json and merges.txt), and the model's vocab_size is "
      f"{vocab_size}, not the {_BYTES} of bytes"
    )
  stops = tokenizer_files.stop_tokens(checkpoint, vocab_size, None)
  return _of_bytes(vocab_size, stops)


def _of_bytes(vocab_size: int, stops: tuple[int, ...]) -> Tokenizer:
  if vocab_size < _BYTES:
    raise ValueError(
      f"without a {TOKENIZER} tokens are bytes, for which vocab_size must be "
      f"at least {_BYTES}, got {vocab_size}"
    )

  def encode(text: str) -> np.ndarray:
    return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    # 0xff is no byte of UTF-8: what is no byte at all becomes one U+FFFD.
    whole = bytes(
      i if 0 <= i < _BYTES else 0xFF for i in np.asarray(ids).tolist()
    )
    return whole.decode(errors="replace")

  return Tokenizer("bytes", encode, decode, stops)


def _utf8(text: str) -> bytes:
  """Its bytes; ValueError for half a character, which JSON can hold."""
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"text must be of whole characters, but character {error.start} is half "
      "a surrogate pair"
    ) from None


def _of_files(
  checkpoint: pathlib.Path,
  found: tokenizer_files.Found,
  vocab_size: int,
) -> Tokenizer:
  tokenizer = found.tokenizer
  largest = max(tokenizer.get_vocab().values(), default=0)
  if largest >= vocab_size:
    raise ValueError(
      f"{str(checkpoint / found.name)!r} has tokens up to {largest}, but the "
      f"model's vocab_size is {vocab_size}"
    )

  def encode(text: str) -> np.ndarray:
    _utf8(text)  # what has none, the package calls no text
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.asarray(ids, np.int32)

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    return tokenizer.decode(np.asarray(ids).tolist())

  return Tokenizer(
    found.name,
    encode,
    decode,
    tokenizer_files.stop_tokens(checkpoint, vocab_size, tokenizer),
    tokenizer_files.template(checkpoint),
    tokenizer_files.special_tokens(checkpoint),
  )
