"""The compiled parts of generation: pieces of prompts, and the token loop.

A program knows the model's graph and shapes. What a request asks for is data:
how rows are drawn, what ends them, how many tokens there may be.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from neumann_jax.generation import sampling
from neumann_jax.generation.sampling import Draws
from neumann_jax.layers.caches.cache import ModelCache, extended

# Of `Written.seen`.
PROMPT, GENERATED = 1, 2


class Generated(NamedTuple):
  """What was generated after each prompt, N = max_new_tokens.

  Attributes:
    tokens: [B, N] int32; pad_token after a row's last.
    logprobs: [B, N] float32, log-probability of each token under the model
      itself, at temperature 1, without penalties and uncut; 0 after a row's
      last.
    lengths: [B] int32, tokens of each row; a stop token counts.
    finished: [B] bool, whether the row ended with a stop token.
    cache: the model's after all tokens of a row, the prompt's and its
      `lengths` generated ones, for a call that goes on; None where a stream
      goes on itself.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  lengths: np.ndarray
  finished: np.ndarray
  cache: ModelCache | None = None


class Written(NamedTuple):
  """What the loop has written so far, with room for W >= N tokens.

  Attributes:
    tokens: [B, W] int32, 0 after a row's last.
    logprobs: [B, W] float32, 0 after a row's last.
    lengths: [B] int32.
    finished: [B] bool.
    seen: [B, V] int8, PROMPT for tokens of the prompt, GENERATED for others
      that were generated too, 0 for the rest.
  """

  tokens: jax.Array | np.ndarray
  logprobs: jax.Array | np.ndarray
  lengths: jax.Array | np.ndarray
  finished: jax.Array | np.ndarray
  seen: jax.Array | np.ndarray


class Request(NamedTuple):
  """What a call asks for.

  Attributes:
    draws: how each row is drawn.
    stops: [V] bool, tokens that end a row.
    key: for the draws.
    limit: [] int32, tokens of each row after which the loop ends.
  """

  draws: Draws
  stops: np.ndarray
  key: jax.Array
  limit: np.ndarray | np.integer


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def start(
  graph: nnx.GraphDef, params: nnx.State, batch: int, capacity: int
) -> tuple[ModelCache, jax.Array]:
  """The empty cache, and [B, hidden] for the prompts' last tokens."""
  model = nnx.merge(graph, params)
  last = jnp.zeros((batch, model.config.hidden_size), model.execution.dtype)
  return model.init_cache(batch, capacity), last


# Nothing is donated: the caller may go on from this cache again.
@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def resume(
  graph: nnx.GraphDef,
  params: nnx.State,
  batch: int,
  capacity: int,
  cache: ModelCache,
) -> tuple[ModelCache, jax.Array]:
  """`start` with a copy of a cache of one row or of B."""
  empty, last = start(graph, params, batch, capacity)
  scanned = nnx.merge(graph, params).execution.scan_layers
  return extended(cache, empty, scanned=scanned), last


# The cache is donated: it is as large as all that was read, and every piece
# and step replaces it.
@functools.partial(jax.jit, static_argnums=0, donate_argnames="cache")
def prefill(
  graph: nnx.GraphDef,
  params: nnx.State,
  cache: ModelCache,
  last: jax.Array,
  tokens: jax.Array,
  mask: jax.Array,
) -> tuple[ModelCache, jax.Array]:
  """A piece of the prompts; no logits, which only the last token needs."""
  model = nnx.merge(graph, params)
  hidden, cache = model.hidden_states(tokens, cache=cache, mask=mask)
  end = jnp.sum(mask, axis=1, dtype=jnp.int32)[:, None]  # [B, 1], 0: no token
  newest = jnp.take_along_axis(
    hidden, jnp.maximum(end - 1, 0)[..., None], axis=1
  )[:, 0]  # [B, hidden]
  # A row whose prompt ended in an earlier piece keeps what that one left.
  return cache, jnp.where(end > 0, newest.astype(last.dtype), last)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="cache")
def decode(
  graph: nnx.GraphDef,
  params: nnx.State,
  cache: ModelCache,
  last: jax.Array,
  written: Written,
  request: Request,
) -> tuple[ModelCache, jax.Array, Written]:
  """Tokens up to the limit for each row, or fewer if all end."""
  model = nnx.merge(graph, params)

  def going(carry: tuple[ModelCache, jax.Array, Written]) -> jax.Array:
    written = carry[2]
    short = jnp.max(written.lengths) < request.limit
    return short & ~jnp.all(written.finished)

  def step(
    carry: tuple[ModelCache, jax.Array, Written],
  ) -> tuple[ModelCache, jax.Array, Written]:
    cache, last, written = carry
    live = ~written.finished
    written, token = _append(written, model.logits(last), request)
    # The token that a row ends with is read as well: whoever goes on from this
    # cache then has all of the text. A row alone ends the loop, and needs no
    # mask.
    hidden, cache = model.hidden_states(
      token[:, None],
      cache=cache,
      mask=None if len(live) == 1 else live[:, None],
    )
    return cache, hidden[:, 0].astype(last.dtype), written

  return lax.while_loop(going, step, (cache, last, written))


def _append(
  written: Written, logits: jax.Array, request: Request
) -> tuple[Written, jax.Array]:
  """Draws one token from logits [B, V] for every row that has not ended."""
  tokens, logprobs, lengths, finished, seen = map(jnp.asarray, written)
  step = jnp.max(lengths)  # some row has not ended: it has them all
  live = ~finished
  # By the number of the token, not by splitting: a block's size, `every`, then
  # changes no draw.
  key = jax.random.fold_in(request.key, step)
  weights = sampling.penalised(logits, seen, request.draws)
  token = jnp.where(live, sampling.draw(weights, key, request.draws), 0)  # [B]
  logprob = jnp.take_along_axis(
    jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1
  )[:, 0]  # [B]
  row = jnp.arange(len(live))
  # Rows that have ended write where nothing is.
  place = jnp.where(live, token, logits.shape[1])
  new = Written(
    tokens.at[:, step].set(token),
    logprobs.at[:, step].set(jnp.where(live, logprob, 0)),
    lengths + live.astype(jnp.int32),
    finished | (live & jnp.asarray(request.stops)[token]),
    seen.at[row, place].set(GENERATED, mode="drop"),
  )
  return new, token
