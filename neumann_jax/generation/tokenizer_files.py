"""What the files of a Hugging Face directory say of its tokenizer."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from neumann_jax.foreign_files import json_file
from neumann_jax.foreign_files.folder import own_file
from neumann_jax.foreign_files.folder import read as read_bytes
from neumann_jax.foreign_files.messages import clean, shown
from neumann_jax.generation.turn_end import turn_end

TOKENIZER = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
OPTIONS = "tokenizer_config.json"
# Where a checkpoint says which tokens end a text; the first that does counts.
STOPS = ("generation_config.json", "config.json")
_TEMPLATE = "chat_template.jinja"
_TEMPLATE_JSON = "chat_template.json"  # beside processors of pictures
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# How Qwen's tokenizers cut a text before they merge, from Qwen2 on, and since
# Qwen3.5 with marks (\p{M}) as parts of words.
_CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?WORD+|\p{N}|"
  r" ?[^\s\p{L}OTHER\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
  "Qwen2Tokenizer": _CUT.replace("WORD", r"\p{L}").replace("OTHER", ""),
  "Qwen3_5Tokenizer": _CUT.replace("WORD", r"[\p{L}\p{M}]").replace(
    "OTHER", r"\p{M}"
  ),
}
# The largest tokenizer of published models has 33 MB.
_MOST_BYTES = 64 << 20


class Found(NamedTuple):
  """A tokenizer and the file it came from."""

  tokenizer: Any
  name: str


def read_tokenizer(folder: pathlib.Path) -> Found | None:
  """The tokenizer of a directory, or None if no file of it holds one.

  Raises:
    ImportError: there is one, but no `tokenizers` package.
    ValueError: a file cannot be read, or of two that belong together one is
      missing.
  """
  if (folder / TOKENIZER).exists():
    path = own_file(folder, TOKENIZER)
    read = _package(path).Tokenizer.from_buffer
    return Found(
      _tried(path, lambda: read(read_bytes(path, most=_MOST_BYTES))), TOKENIZER
    )
  held = [name for name in (VOCAB, MERGES) if (folder / name).exists()]
  if not held:
    return None
  if len(held) == 1:
    raise ValueError(
      f"a tokenizer needs both {VOCAB} and {MERGES}, but {str(folder)!r} has "
      f"{held[0]} alone"
    )
  path = own_file(folder, VOCAB)
  return Found(_tried(path, lambda: _from_merges(folder)), VOCAB)


def _from_merges(folder: pathlib.Path) -> Any:
  """Byte-level BPE as transformers makes it of the same files."""
  package = _package(folder / VOCAB)
  split, bytes_level = (
    package.pre_tokenizers.Split,
    package.pre_tokenizers.ByteLevel,
  )
  files = [own_file(folder, name) for name in (VOCAB, MERGES)]
  for path in files:  # the package reads whatever size there is
    read_bytes(path, most=_MOST_BYTES)
  model = package.models.BPE.from_file(*map(str, files))
  tokenizer = package.Tokenizer(model)
  tokenizer.normalizer = package.normalizers.NFC()
  cut = package.Regex(_CUTS[_class(folder)])
  tokenizer.pre_tokenizer = package.pre_tokenizers.Sequence(
    [
      split(cut, behavior="isolated"),
      bytes_level(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = package.decoders.ByteLevel()
  for number, token in _added(folder):
    added = package.AddedToken(**token)
    tokenizer.add_tokens([added])
    if tokenizer.token_to_id(token["content"]) != number:
      said = shown(token["content"])
      raise ValueError(f"token {said} cannot have id {number}")
  return tokenizer


def _class(folder: pathlib.Path) -> str:
  """Which of Qwen's tokenizers the files belong to."""
  named = read_json(folder / OPTIONS).get("tokenizer_class")
  named = str(named).removesuffix("Fast")
  if named in _CUTS:
    return named
  kind = str(read_json(folder / "config.json").get("model_type"))
  newer = kind.startswith("qwen3_5")
  return "Qwen3_5Tokenizer" if newer else "Qwen2Tokenizer"


def _added(folder: pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
  """Tokens beside the vocabulary by their ids, lowest first."""
  options = ("content", "lstrip", "rstrip", "normalized", "single_word")
  decoder = read_json(folder / OPTIONS).get("added_tokens_decoder") or {}
  found = {
    int(number): {
      name: token[name] for name in (*options, "special") if name in token
    }
    for number, token in decoder.items()
  }
  for content, number in read_json(folder / "added_tokens.json").items():
    found.setdefault(number, {"content": content, "special": True})
  return sorted(found.items())


def special_tokens(folder: pathlib.Path) -> dict[str, str]:
  """Texts of eos_token and the like that a directory names."""
  found = {}
  for file in ("special_tokens_map.json", OPTIONS):
    fields = read_json(folder / file)
    for name in _SPECIAL:
      token = fields.get(name)
      text = token.get("content") if isinstance(token, dict) else token
      if isinstance(text, str):
        found[name] = text
  return found


def template(folder: pathlib.Path) -> str | None:
  """The chat template of a directory, or None."""
  path = folder / _TEMPLATE
  if path.is_file():
    return _text(path)
  for file in (_TEMPLATE_JSON, OPTIONS):
    given = read_json(folder / file).get("chat_template")
    if isinstance(given, list):  # several by their names
      named = [x for x in given if isinstance(x, dict)]
      given = {x.get("name"): x.get("template") for x in named}.get("default")
    if isinstance(given, str):
      return given
  return None


def stop_tokens(
  folder: pathlib.Path, vocab_size: int, tokenizer: Any
) -> tuple[int, ...]:
  """Ids that end a text.

  Args:
    folder: the directory.
    vocab_size: V.
    tokenizer: of the directory, which knows the id of its eos_token, or None.

  Returns:
    Those of the first of `STOPS` that names any; then the eos_token, with which
    a tuned model ends its answers, and which often only the tokenizer names;
    then the token with which the chat template ends an answer.

  Raises:
    ValueError: for what is no token.
  """
  found: list[int] = []
  for path in (folder / name for name in STOPS):
    ids = _eos(path)
    if ids is not None:
      found = list(ids) if isinstance(ids, list) else [ids]
      _check_ids(path, found, vocab_size)
      break
  if tokenizer is not None:
    found += _named(folder, tokenizer)
  return tuple(dict.fromkeys(found))


def _named(folder: pathlib.Path, tokenizer: Any) -> list[int]:
  """The eos_token, and what the chat template ends an answer with."""
  special, found = special_tokens(folder), []
  eos = special.get("eos_token")
  if eos is not None:
    found.append(tokenizer.token_to_id(eos))
    if found == [None]:
      raise ValueError(
        f"eos_token of {str(folder)!r} must be a token, got {shown(eos)}"
      )
  text = template(folder)
  if text is not None:
    found.append(turn_end(text, special, tokenizer))
  return [number for number in found if number is not None]


def _check_ids(path: pathlib.Path, ids: list[Any], vocab_size: int) -> None:
  for i in ids:
    whole = isinstance(i, int) and not isinstance(i, bool)
    if not whole or not 0 <= i < vocab_size:
      raise ValueError(
        f"eos_token_id in {str(path)!r} must be integers in "
        f"[0, {vocab_size}), got {shown(i)}"
      )


def _eos(path: pathlib.Path) -> Any:
  fields = read_json(path)
  text = fields.get("text_config")  # of a vision-language model
  if isinstance(text, dict) and text.get("eos_token_id") is not None:
    return text["eos_token_id"]
  return fields.get("eos_token_id")


def read_json(path: pathlib.Path) -> Mapping[str, Any]:
  """The object that a file holds; an empty one if there is no file.

  Raises:
    ValueError: if it holds anything else.
  """
  path = own_file(path.parent, path.name)
  if not path.exists():
    return {}
  try:
    fields = json_file.read(path)
  except (OSError, ValueError) as error:
    reason = clean(str(error))
    raise ValueError(f"{str(path)!r} is no readable JSON ({reason})") from None
  if not isinstance(fields, dict):
    raise ValueError(f"{str(path)!r} must hold a JSON object")
  return fields


def _text(path: pathlib.Path) -> str:
  try:
    path = own_file(path.parent, path.name)
    return read_bytes(path, most=_MOST_BYTES).decode()
  except (OSError, ValueError) as error:
    reason = clean(str(error))
    raise ValueError(f"{str(path)!r} is no readable text ({reason})") from None


def _package(path: pathlib.Path) -> Any:
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      f"reading {str(path)!r} needs the package tokenizers: pip install "
      "'neumann-posterior[hf]'"
    ) from error
  return tokenizers


def _tried(path: pathlib.Path, read: Any) -> Any:
  try:
    return read()
  except (ImportError, KeyboardInterrupt, SystemExit):
    raise
  # Bare Exceptions, and where its Rust panics, a BaseException.
  except BaseException as error:
    reason = clean(str(error)).rstrip(".")
    raise ValueError(
      f"{str(path)!r} is no readable tokenizer ({reason})"
    ) from None
