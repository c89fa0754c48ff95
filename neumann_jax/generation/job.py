"""A call of `generate`: what is checked, and what its programs read."""

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neumann_jax.generation import sampling
from neumann_jax.generation.decoding import PROMPT, Request, Written
from neumann_jax.generation.prompts import Prompt, check_prompts, widths
from neumann_jax.generation.sampling_spec import SamplingSpec, check_draws
from neumann_jax.layers.caches.cache import (
  ENDLESS,
  ModelCache,
  check_model_cache,
)
from neumann_jax.model.language_model import LanguageModel

# A cache has room for so many tokens over all rows where less is needed: 80 MB
# of the largest published text models, and prompts of 1 to 2000 tokens then
# share their programs.
_SHARED_ROOM = 4096


class Job(NamedTuple):
  """A call that was checked.

  Attributes:
    model: the model.
    rows: B prompts.
    widths: of the pieces.
    cache: to go on from, or None.
    capacity: of the cache.
    request: with the limit N.
    written: nothing yet.
    pad_token: what fills rows that have ended.
    sharding: of the tokens, or None.
  """

  model: LanguageModel
  rows: list[np.ndarray]
  widths: list[int]
  cache: ModelCache | None
  capacity: int
  request: Request
  written: Written
  pad_token: int
  sharding: jax.sharding.Sharding | None


def prepare(
  model: LanguageModel,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  spec: SamplingSpec | Sequence[SamplingSpec],
  stop_tokens: Collection[int],
  key: jax.Array | None,
  pad_token: int,
  prefill_chunk: int | None,
  cache: ModelCache | None,
  context: Sequence[Prompt] | None,
  capacity: int | None,
  sharding: jax.sharding.Sharding | None,
) -> Job:
  """Checks a call and lays out what its programs read.

  Args:
    model: this and what follows as for `generate`.
    prompts: B sequences.
    max_new_tokens: N.
    spec: how a token is drawn.
    stop_tokens: a row ends with the first of these.
    key: for the draws, or None.
    pad_token: what fills rows that have ended.
    prefill_chunk: tokens of a piece, or None.
    cache: to go on from, or None.
    context: tokens that stand in it, or None.
    capacity: of the cache, or None.
    sharding: of the tokens, or None.

  Raises:
    TypeError: as `generate`.
    ValueError: as `generate`.
  """
  check_counts(max_new_tokens=max_new_tokens)
  max_new_tokens = int(max_new_tokens)  # NumPy's have no bit_length
  if prefill_chunk is not None:
    check_counts(prefill_chunk=prefill_chunk)
  _check_model(model)
  vocab_size = model.config.vocab_size
  specs = _as_list(spec, len(prompts))
  for one in specs:
    check_draws(one, key, vocab_size)
  stop_tokens = _as_tokens(stop_tokens)
  _check_ids(vocab_size, stop_tokens=stop_tokens, pad_token=[pad_token])
  rows = check_prompts(prompts, vocab_size)
  longest = max(map(len, rows))
  pieces = widths(longest, prefill_chunk)
  _check_sharding(sharding, (len(rows), longest), pieces)
  capacity = _room(model, rows, max_new_tokens, cache, capacity)
  request = Request(
    sampling.as_draws(specs, vocab_size),
    _as_stops(stop_tokens, vocab_size),
    sampling.unused_key() if key is None else _as_key(key),
    np.int32(max_new_tokens),
  )
  known = rows
  if context is not None:
    known = _with_context(rows, context, vocab_size)
  width = _bucket(max_new_tokens, len(rows))
  written = _nothing(known, vocab_size, width)
  return Job(
    model, rows, pieces, cache, capacity, request, written, pad_token, sharding
  )


def _as_list(
  spec: SamplingSpec | Sequence[SamplingSpec], count: int
) -> list[SamplingSpec]:
  """One spec for each prompt."""
  if isinstance(spec, SamplingSpec):
    return [spec] * max(count, 1)
  if not isinstance(spec, Sequence) or not all(
    isinstance(one, SamplingSpec) for one in spec
  ):
    raise TypeError(
      f"spec must be a SamplingSpec or one for each prompt, got {spec!r}"
    )
  if len(spec) != count:
    raise ValueError(
      f"spec must be one SamplingSpec or {count}, as there are prompts, got "
      f"{len(spec)}"
    )
  return list(spec)


def _with_context(
  rows: list[np.ndarray], context: Sequence[Prompt], vocab_size: int
) -> list[np.ndarray]:
  """The tokens of each row, those of the cache and those of the prompt."""
  before = check_prompts(context, vocab_size, name="context")
  if len(before) != len(rows):
    raise ValueError(
      f"context must have {len(rows)} rows, as there are prompts, got "
      f"{len(before)}"
    )
  return [np.concatenate(pair) for pair in zip(before, rows)]


def _as_tokens(stop_tokens: Collection[int]) -> list[int]:
  """Stop tokens of any collection, a set too."""
  if not isinstance(stop_tokens, Iterable):
    raise TypeError(
      "stop_tokens must be a sequence or a set of integers, () for none, got "
      f"{stop_tokens!r}"
    )
  return list(stop_tokens)


def _as_stops(stop_tokens: list[int], vocab_size: int) -> np.ndarray:
  """[V] bool: the number of stop tokens is no shape, and costs no step."""
  stops = np.zeros(vocab_size, bool)
  stops[stop_tokens] = True
  return stops


def _as_key(key: jax.Array) -> jax.Array:
  """A typed key: one of `jax.random.PRNGKey` is another type to a program."""
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key)


def _nothing(rows: list[np.ndarray], vocab_size: int, width: int) -> Written:
  """What is written before the first token."""
  seen = np.zeros((len(rows), vocab_size), np.int8)
  for mark, row in zip(seen, rows):
    mark[row] = PROMPT
  shape = len(rows), width
  return Written(
    np.zeros(shape, np.int32),
    np.zeros(shape, np.float32),
    np.zeros(len(rows), np.int32),
    np.zeros(len(rows), bool),
    seen,
  )


def _power_above(n: int) -> int:
  """The smallest power of two that is at least n >= 1."""
  return 1 << (n - 1).bit_length()


def _bucket(tokens: int, rows: int) -> int:
  """Room for so many tokens a row, of a size that many calls share."""
  share = 1 << (max(_SHARED_ROOM // rows, 1).bit_length() - 1)
  return max(_power_above(tokens), share)


def _room(
  model: LanguageModel,
  rows: list[np.ndarray],
  max_new_tokens: int,
  cache: ModelCache | None,
  capacity: int | None,
) -> int:
  """Capacity of the cache of a call, at least that of the cache given."""
  stored = np.zeros(1, np.int32)
  if cache is not None:
    _check_cache(model, cache, len(rows))
    stored = np.asarray(cache.stored)  # [B] or [1]
  lengths = np.array([len(row) for row in rows])
  # Padding takes no room: only the longest row counts.
  needed = int((stored + lengths).max()) + max_new_tokens
  if capacity is None:
    capacity = _bucket(needed, len(rows))
  check_counts(capacity=capacity)
  if capacity < needed:
    raise ValueError(
      f"capacity must be at least {needed}, what the cache holds, the longest "
      f"prompt and max_new_tokens together, got {capacity}"
    )
  if cache is None or cache.capacity == ENDLESS:
    return capacity
  return max(capacity, cache.capacity)


def _check_cache(model: LanguageModel, cache: ModelCache, rows: int) -> None:
  if isinstance(cache, ModelCache) and cache.stored.shape[0] == 1:
    rows = 1  # one prefix for all rows
  check_model_cache(cache, functools.partial(model.init_cache, rows))


def check_counts(**counts: int) -> None:
  """Raises unless all are integers of at least 1."""
  for name, value in counts.items():
    _check_integer(name, value)
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")


def _check_integer(name: str, value: int) -> None:
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f"{name} must be an integer, got {value!r}")


def _check_sharding(
  sharding: jax.sharding.Sharding | None,
  shape: tuple[int, int],
  pieces: list[int],
) -> None:
  if sharding is None:
    return
  try:
    for width in set(pieces):
      sharding.shard_shape((shape[0], width))
  except ValueError as error:
    raise ValueError(
      f"sharding must split prompts of shape {shape} evenly, got {sharding}"
    ) from error


def _check_model(model: LanguageModel) -> None:
  if not isinstance(model, LanguageModel):
    raise TypeError(
      f"model must be a LanguageModel, got {type(model).__name__}"
    )
  axis = model.execution.sequence_axis
  if axis is not None:
    raise ValueError(
      f"model must have sequence_axis None to generate, got {axis!r}"
    )


def _check_ids(vocab_size: int, **named: Sequence[int]) -> None:
  for name, ids in named.items():
    for token in ids:
      _check_integer(name, token)
      if not 0 <= token < vocab_size:
        raise ValueError(f"{name} must lie in [0, {vocab_size}), got {token}")
