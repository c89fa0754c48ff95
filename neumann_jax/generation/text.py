"""Text in, text out: prompts as strings, ends by strings, whole characters."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from neumann_jax.generation.decoding import Generated
from neumann_jax.generation.job import check_counts, prepare
from neumann_jax.generation.looks import looks, run
from neumann_jax.generation.sampling_spec import SamplingSpec
from neumann_jax.generation.tokenizer import Tokenizer
from neumann_jax.model.language_model import LanguageModel

# Ends a text whose last character is not whole yet.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Texts(NamedTuple):
  """What was written after each of B prompts.

  Attributes:
    texts: without the prompts, and up to the first stop string.
    found: the same in tokens, a stop string's included.
  """

  texts: tuple[str, ...]
  found: Generated


def generate_text(
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  max_new_tokens: int,
  stop: Sequence[str] = (),
  spec: SamplingSpec | Sequence[SamplingSpec] = SamplingSpec(),  # noqa: B008
  key: jax.Array | None = None,
  **options: Any,
) -> Texts:
  """`generate` for text.

  Args:
    model: as for `generate`.
    tokenizer: of the model, from `load_tokenizer`; its stop tokens end a text.
    prompts: B texts; those of chats are made by `Tokenizer.chat`.
    max_new_tokens: N.
    stop: texts that end a row, and are cut off. The host then looks at every
      token: a row ends with the token that completes one, in its cache too.
      Special tokens leave no text: those that end a row are `stop_tokens`.
    spec: how a token is drawn.
    key: for the draws.
    **options: others of `generate`: `cache`, `capacity`, `prefill_chunk`, ...

  Returns:
    The texts, and their tokens.

  Raises:
    TypeError: as `generate`.
    ValueError: as `generate`, and for an empty stop string.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import generation
    >>> config = nj.ModelConfig(hidden_size=32, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> tokenizer = generation.load_tokenizer(None, config.vocab_size)
    >>> found = generation.generate_text(
    ...   model,
    ...   tokenizer,
    ...   ["one", "three"],
    ...   max_new_tokens=4,
    ...   spec=nj.SamplingSpec(temperature=0),
    ... )
    >>> len(found.texts), found.found.tokens.shape
    (2, (2, 4))
  """
  *_, last = stream_text(
    model,
    tokenizer,
    prompts,
    every=max_new_tokens,
    max_new_tokens=max_new_tokens,
    stop=stop,
    spec=spec,
    key=key,
    **options,
  )
  return last


def stream_text(
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  every: int,
  max_new_tokens: int,
  stop: Sequence[str] = (),
  spec: SamplingSpec | Sequence[SamplingSpec] = SamplingSpec(),  # noqa: B008
  key: jax.Array | None = None,
  **options: Any,
) -> Iterator[Texts]:
  """`generate_text`, with a look at what there is so far.

  Args:
    model: as for `generate_text`, like all that follows `every`.
    tokenizer: of the model.
    prompts: B texts.
    every: tokens between two looks.
    max_new_tokens: N.
    stop: texts that end a row.
    spec: how a token is drawn.
    key: for the draws.
    **options: others of `generate`.

  Yields:
    Texts that the next ones begin with: characters that are not whole, and what
    may be the start of a stop string, wait for the next look or the end.

  Raises:
    TypeError: as for `generate_text`, at the call.
    ValueError: as for `generate_text`, at the call.
  """
  check_counts(max_new_tokens=max_new_tokens, every=every)
  if isinstance(stop, str) or not all(isinstance(x, str) and x for x in stop):
    raise ValueError(
      f"stop must be texts of at least one character, got {stop!r}"
    )
  if isinstance(prompts, str):
    raise TypeError("prompts must be a sequence of texts, got one text")
  defaults: dict[str, Any] = {
    "stop_tokens": tokenizer.stop_tokens,
    "pad_token": 0,
    "prefill_chunk": None,
    "cache": None,
    "context": None,
    "capacity": None,
    "sharding": None,
  }
  for name in options:
    if name not in defaults:
      raise TypeError(f"options are {', '.join(defaults)}, got {name}")
  job = prepare(
    model,
    [tokenizer.encode(prompt) for prompt in prompts],
    max_new_tokens=max_new_tokens,
    spec=spec,
    key=key,
    **(defaults | options),
  )
  return _texts(tokenizer, job, tuple(stop), looks(max_new_tokens, every))


def _texts(
  tokenizer: Tokenizer, job: Any, stop: tuple[str, ...], shown: list[int]
) -> Iterator[Texts]:

  def ends(found: Generated) -> np.ndarray:
    texts = _decoded(tokenizer, found)
    return np.array([_first(text, stop) >= 0 for text in texts])

  # A state cannot forget a token: where a text may end at any, every one is
  # looked at before the next is read.
  limits = range(1, shown[-1] + 1) if stop else shown
  wanted = set(shown)
  for found in run(job, limits, ends=ends if stop else None):
    done = found.cache is not None
    if done or int(found.lengths.max()) in wanted:
      texts = tuple(
        _shown(text, stop, done or bool(end))
        for text, end in zip(_decoded(tokenizer, found), found.finished)
      )
      yield Texts(texts, found)


def _decoded(tokenizer: Tokenizer, found: Generated) -> list[str]:
  rows = zip(found.tokens, found.lengths)
  return [tokenizer.decode(tokens[:length]) for tokens, length in rows]


def _first(text: str, stop: Sequence[str]) -> int:
  """Where the first stop string begins, -1 if there is none."""
  places = [place for x in stop if (place := text.find(x)) >= 0]
  return min(places, default=-1)


def _shown(text: str, stop: Sequence[str], done: bool) -> str:
  """What of a row's text no later token changes."""
  place = _first(text, stop)
  if place >= 0:
    return text[:place]
  if done:
    return text
  text = text.rstrip(UNFINISHED)
  held = max(
    (n for x in stop for n in range(1, len(x)) if text.endswith(x[:n])),
    default=0,
  )
  return text[: len(text) - held]
