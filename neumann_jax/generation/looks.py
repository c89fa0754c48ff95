"""The host's side of generation: pieces, blocks of tokens, looks at them."""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from neumann_jax.generation import decoding
from neumann_jax.generation.decoding import Generated, Written
from neumann_jax.generation.job import Job
from neumann_jax.generation.prompts import padded


def run(
  job: Job,
  limits: Iterable[int],
  *,
  ends: Callable[[Generated], np.ndarray] | None = None,
) -> Iterator[Generated]:
  """Looks at what there is after so many tokens.

  Args:
    job: a call that was checked.
    limits: tokens of each row at every look; the last is N.
    ends: from a look, [B] bool, rows that end with it; None: none does.

  Yields:
    What there is; the last one has the cache.
  """
  # Split once: the compiled parts know the model by its graph, which is hashed,
  # and take the parameters as arguments.
  graph, params = nnx.split(job.model)
  put = functools.partial(jax.device_put, device=job.sharding)
  count, capacity = len(job.rows), job.capacity
  if job.cache is None:
    cache, last = decoding.start(graph, params, count, capacity)
  else:
    cache, last = decoding.resume(graph, params, count, capacity, job.cache)
  tokens, mask = padded(job.rows, sum(job.widths))
  stops = np.cumsum(job.widths)
  for start, end in zip(stops - job.widths, stops):
    cache, last = decoding.prefill(
      graph,
      params,
      cache,
      last,
      put(tokens[:, start:end]),
      put(mask[:, start:end]),
    )
  written = job.written
  for limit in limits:
    request = job.request._replace(limit=np.int32(limit))
    cache, last, written = decoding.decode(
      graph, params, cache, last, written, request
    )
    # The loop on the device ends early when all rows have; this one asks
    # between blocks, which costs the host a transfer a block and not a token.
    found = _look(job, written)
    if ends is not None:
      found = found._replace(finished=found.finished | ends(found))
      written = written._replace(finished=found.finished)
    if found.finished.all() or limit == job.request.limit:
      yield found._replace(cache=cache)
      return
    yield found


def _look(job: Job, written: Written) -> Generated:
  """What was written, on the host: N tokens a row."""
  width = int(job.request.limit)
  # Copies: views would show what the next block writes, on a CPU.
  tokens, logprobs, lengths, finished = (
    np.array(x) for x in jax.device_get(written[:4])
  )
  past = np.arange(width) >= lengths[:, None]  # [B, N]
  tokens = np.where(past, np.int32(job.pad_token), tokens[:, :width])
  return Generated(tokens, logprobs[:, :width], lengths, finished)


def looks(max_new_tokens: int, every: int) -> list[int]:
  """Tokens at each look: one, so that a text begins at once, and so on."""
  return [*range(1, max_new_tokens, every), max_new_tokens]
