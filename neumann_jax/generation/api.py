"""`generate` and `stream`: prompts by pieces, then token by token.

Prompts of a batch may differ in length. They are padded on the right under a
mask: padding writes nothing into states and caches, whatever stands there, and
every row's tokens stay at its own places 0, 1, 2, ..., so that a row is what it
would be alone.
"""

from collections.abc import Collection, Iterator, Sequence

import jax

from neumann_jax.generation.decoding import Generated
from neumann_jax.generation.job import check_counts, prepare
from neumann_jax.generation.looks import looks, run
from neumann_jax.generation.prompts import Prompt
from neumann_jax.generation.sampling_spec import SamplingSpec
from neumann_jax.layers.caches.cache import ModelCache
from neumann_jax.model.language_model import LanguageModel


def generate(
  model: LanguageModel,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  spec: SamplingSpec | Sequence[SamplingSpec] = SamplingSpec(),  # noqa: B008
  stop_tokens: Collection[int] = (),
  key: jax.Array | None = None,
  pad_token: int = 0,
  prefill_chunk: int | None = None,
  cache: ModelCache | None = None,
  context: Sequence[Prompt] | None = None,
  capacity: int | None = None,
  sharding: jax.sharding.Sharding | None = None,
) -> Generated:
  """Goes on with a batch of prompts until all have stopped.

  What a call asks for is data: prompts of any length, other specs, stop tokens
  and limits meet the programs of an earlier call. New ones are compiled for
  another number of rows or another capacity, four at most for prompts: one that
  makes the cache, one or two that read pieces of prompts, one that writes; and
  one that copies a cache given.

  Args:
    model: its parameters may be sharded over a mesh.
    prompts: B >= 1 sequences of integers in [0, V), one token at least each.
    max_new_tokens: N >= 1.
    spec: how a token is drawn, one for all rows or one for each; the default
      draws from the model itself.
    stop_tokens: a row ends with the first of these.
    key: for the draws, needed unless spec is greedy. What a row draws does not
      depend on the rows below it.
    pad_token: what fills rows that have ended.
    prefill_chunk: prompts go through the model in pieces of so many tokens, the
      last one padded, and activations take memory for one piece; a multiple of
      the model's chunk_size wastes nothing. None: pieces of 512 tokens and, for
      a rest of up to 256, of 64.
    cache: of an earlier call, to go on from: `found.cache`. Prompts are then
      what follows in each row, and the cache stays as it is, so that several
      calls can follow one. A cache of one row serves a batch.
    context: B sequences, the tokens that stand in the cache: it does not know
      them, and repetition_penalty counts those of the call alone without them.
    capacity: tokens that the cache holds for each row, at least those of the
      prompt, the answer and the cache given. None: the next power of two above,
      and at least that of a cache given and 4096 over all rows. A step reads
      256 slots of each row, on a GPU or TPU 4096 over all rows, or four times
      as many until they hold all tokens, and writes one: its cost does not
      grow with the capacity.
    sharding: of the tokens [B, T] on a mesh, or None.

  Returns:
    The tokens, their log-probabilities under the model, how rows ended, and
    the cache.

  Raises:
    TypeError: if tokens or counts are not integers, spec is no SamplingSpec, or
      key is no key.
    ValueError: for a value out of range, a sharding that does not fit the
      prompts, a cache of another model, or a model that has a sequence_axis.

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
    >>> more = nj.generate(
    ...   model,
    ...   [[9], [10, 11]],
    ...   max_new_tokens=2,
    ...   spec=nj.SamplingSpec(temperature=0),
    ...   cache=found.cache,
    ... )
    >>> more.cache.stored.tolist()
    [10, 9]
  """
  job = prepare(
    model,
    prompts,
    max_new_tokens=max_new_tokens,
    spec=spec,
    stop_tokens=stop_tokens,
    key=key,
    pad_token=pad_token,
    prefill_chunk=prefill_chunk,
    cache=cache,
    context=context,
    capacity=capacity,
    sharding=sharding,
  )
  # One look: the loop on the device is not interrupted.
  (found,) = run(job, [max_new_tokens])
  return found


def stream(
  model: LanguageModel,
  prompts: Sequence[Prompt],
  *,
  every: int,
  max_new_tokens: int,
  spec: SamplingSpec | Sequence[SamplingSpec] = SamplingSpec(),  # noqa: B008
  stop_tokens: Collection[int] = (),
  key: jax.Array | None = None,
  pad_token: int = 0,
  prefill_chunk: int | None = None,
  cache: ModelCache | None = None,
  context: Sequence[Prompt] | None = None,
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
    cache: to go on from, or None.
    context: tokens that stand in it, for penalties, or None.
    capacity: tokens that the cache holds for each row, or None.
    sharding: of the tokens [B, T], or None.

  Yields:
    What there is after the prompts, one token a row, then after every `every`
    tokens and at the end, which alone has the cache. The tokens that it holds
    do not depend on `every`.

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
  check_counts(max_new_tokens=max_new_tokens, every=every)
  # All is checked here, in the function and not in the iterator, so that a
  # wrong call ends where it stands and not at the first look.
  job = prepare(
    model,
    prompts,
    max_new_tokens=max_new_tokens,
    spec=spec,
    stop_tokens=stop_tokens,
    key=key,
    pad_token=pad_token,
    prefill_chunk=prefill_chunk,
    cache=cache,
    context=context,
    capacity=capacity,
    sharding=sharding,
  )
  return run(job, looks(max_new_tokens, every))
