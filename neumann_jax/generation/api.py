"""`generate` and `stream`: prompts by chunks, then token by token.

Prompts of a batch may differ in length. They are padded on the right under a
mask: padding writes nothing into states and caches, whatever stands there, and
every row's tokens stay at its own places 0, 1, 2, ..., so that a row is what it
would be alone.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from neumann_jax.generation import decoding, sampling
from neumann_jax.generation.decoding import Generated, Rule
from neumann_jax.generation.prompts import Prompt, check_prompts, padded
from neumann_jax.generation.sampling import SamplingSpec
from neumann_jax.model.language_model import LanguageModel


def generate(
  model: LanguageModel,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  spec: SamplingSpec = SamplingSpec(),  # noqa: B008  (frozen)
  stop_tokens: Sequence[int] = (),
  key: jax.Array | None = None,
  pad_token: int = 0,
  prefill_chunk: int | None = None,
  capacity: int | None = None,
  sharding: jax.sharding.Sharding | None = None,
) -> Generated:
  """Goes on with a batch of prompts until all have stopped.

  New prompts of the same padded shape and capacity compile nothing. The padded
  length is that of the longest prompt, rounded up to whole pieces.

  Args:
    model: its parameters may be sharded over a mesh.
    prompts: B >= 1 sequences of integers in [0, V), one token at least each.
    max_new_tokens: N >= 1.
    spec: how a token is drawn; the default draws from the model itself.
    stop_tokens: a row ends with the first of these.
    key: for the draws, needed unless spec is greedy. What a row draws does not
      depend on the rows below it.
    pad_token: what fills rows that have ended.
    prefill_chunk: prompts go through the model in pieces of so many tokens, the
      last one padded; a multiple of the model's chunk_size wastes nothing. One
      compilation then serves every piece, and activations take memory for one
      piece. None: all at once.
    capacity: tokens that the cache holds for each row; None: for the padded
      prompts and N more. A fixed one, with prefill_chunk, lets prompts of any
      length use one compilation.
    sharding: of the tokens [B, T] on a mesh, or None.

  Returns:
    The tokens, their log-probabilities under the model, and how rows ended.

  Raises:
    TypeError: if tokens or counts are not integers, or key is no key.
    ValueError: for a value out of range, a sharding that does not fit the
      prompts, or a model that has a sequence_axis.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> config = nj.ModelConfig(hidden_size=32, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> found = nj.generate(
    ...   model,
    ...   [[5, 6, 7], [8]],
    ...   max_new_tokens=4,
    ...   spec=nj.SamplingSpec(temperature=0),
    ... )
    >>> found.tokens.shape, found.lengths.tolist()
    ((2, 4), [4, 4])
  """
  # A stream of one block: the loop on the device is not interrupted.
  blocks = stream(
    model,
    prompts,
    every=max_new_tokens,
    max_new_tokens=max_new_tokens,
    spec=spec,
    stop_tokens=stop_tokens,
    key=key,
    pad_token=pad_token,
    prefill_chunk=prefill_chunk,
    capacity=capacity,
    sharding=sharding,
  )
  *_, last = blocks
  return last


def stream(
  model: LanguageModel,
  prompts: Sequence[Prompt],
  *,
  every: int,
  max_new_tokens: int,
  spec: SamplingSpec = SamplingSpec(),  # noqa: B008  (frozen)
  stop_tokens: Sequence[int] = (),
  key: jax.Array | None = None,
  pad_token: int = 0,
  prefill_chunk: int | None = None,
  capacity: int | None = None,
  sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Generated]:
  """`generate`, with a look at what there is so far.

  Args:
    model: as for `generate`, like all that follows `every`.
    prompts: B sequences.
    every: tokens between two looks.
    max_new_tokens: N.
    spec: how a token is drawn.
    stop_tokens: a row ends with the first of these.
    key: for the draws.
    pad_token: what fills rows that have ended.
    prefill_chunk: tokens of a piece of the prompts, or None.
    capacity: tokens that the cache holds for each row, or None.
    sharding: of the tokens [B, T], or None.

  Yields:
    What there is after the prompts, one token a row, then after every `every`
    tokens and at the end. The tokens that it holds do not depend on `every`.

  Raises:
    TypeError: as for `generate`, at the call and not at the first look.
    ValueError: as for `generate`, at the call.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import generation
    >>> config = nj.ModelConfig(hidden_size=32, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> looks = generation.stream(
    ...   model,
    ...   [[5, 6, 7], [8]],
    ...   every=2,
    ...   max_new_tokens=4,
    ...   spec=nj.SamplingSpec(temperature=0),
    ... )
    >>> [look.lengths.tolist() for look in looks]
    [[1, 1], [3, 3], [4, 4]]
  """
  _check_counts(max_new_tokens=max_new_tokens, every=every)
  if prefill_chunk is not None:
    _check_counts(prefill_chunk=prefill_chunk)
  # All is checked here, in the function and not in the iterator, so that a
  # wrong call ends where it stands and not at the first look.
  _check_model(model)
  vocab_size = model.config.vocab_size
  sampling.check_draws(spec, key, vocab_size)
  _check_ids(vocab_size, stop_tokens=stop_tokens, pad_token=[pad_token])
  rows = check_prompts(prompts, vocab_size)
  tokens, mask = padded(rows, prefill_chunk)
  piece = prefill_chunk or tokens.shape[1]
  _check_sharding(sharding, (len(rows), piece))
  # Padding takes no room: only the longest prompt counts.
  needed = max(map(len, rows)) + max_new_tokens
  if capacity is None:
    capacity = tokens.shape[1] + max_new_tokens
  if capacity < needed:
    raise ValueError(
      f"capacity must be at least {needed}, the longest prompt and "
      f"max_new_tokens together, got {capacity}"
    )
  return _run(
    model,
    tokens,
    mask,
    Rule(spec, tuple(stop_tokens), pad_token, max_new_tokens),
    key=key,
    piece=piece,
    capacity=capacity,
    every=every,
    sharding=sharding,
  )


def _check_counts(**counts: int) -> None:
  for name, value in counts.items():
    _check_integer(name, value)
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")


def _check_integer(name: str, value: int) -> None:
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f"{name} must be an integer, got {value!r}")


def _check_sharding(
  sharding: jax.sharding.Sharding | None, shape: tuple[int, int]
) -> None:
  if sharding is None:
    return
  try:
    sharding.shard_shape(shape)
  except ValueError as error:
    raise ValueError(
      f"sharding must split prompts of shape {shape} evenly, got {sharding}"
    ) from error


def _check_model(model: LanguageModel) -> None:
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


def _run(
  model: LanguageModel,
  tokens: np.ndarray,
  mask: np.ndarray,
  rule: Rule,
  *,
  key: jax.Array | None,
  piece: int,
  capacity: int,
  every: int,
  sharding: jax.sharding.Sharding | None,
) -> Iterator[Generated]:
  # Split once: the compiled parts know the model by its graph, which is hashed,
  # and take the parameters as arguments.
  graph, params = nnx.split(model)
  put = functools.partial(jax.device_put, device=sharding)
  cache, last = decoding.start(graph, params, len(tokens), capacity)
  for start in range(0, tokens.shape[1], piece):
    part = np.s_[:, start : start + piece]
    cache, last = decoding.prefill(
      graph, params, cache, last, put(tokens[part]), put(mask[part])
    )
  found = decoding.first(graph, rule, params, last, key)
  yield found
  # The loop on the device ends early when all rows have; this one asks between
  # blocks, which costs the host a transfer a block and not a token.
  while found.lengths.max() < rule.max_new_tokens and not found.finished.all():
    cache, found = decoding.decode(
      graph, rule, params, cache, found, key, every
    )
    yield found
