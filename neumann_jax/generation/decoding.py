"""The compiled parts of generation: pieces of prompts, and the token loop."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.generation import sampling
from neumann_jax.generation.sampling import SamplingSpec
from neumann_jax.layers.cache import ModelCache


class Generated(NamedTuple):
  """What was generated after each prompt, N = max_new_tokens.

  Attributes:
    tokens: [B, N] int32; pad_token after a row's last.
    logprobs: [B, N] float32, log-probability of each token under the model
      itself, at temperature 1 and uncut; 0 after a row's last.
    lengths: [B] int32, tokens of each row; a stop token counts.
    finished: [B] bool, whether the row ended with a stop token.
  """

  tokens: jax.Array
  logprobs: jax.Array
  lengths: jax.Array
  finished: jax.Array


class Rule(NamedTuple):
  """What the compiled loop depends on besides the model and shapes.

  Attributes:
    spec: how a token is drawn.
    stop_tokens: a row ends with the first of these.
    pad_token: what fills rows that have ended.
    max_new_tokens: N.
  """

  spec: SamplingSpec
  stop_tokens: tuple[int, ...]
  pad_token: int
  max_new_tokens: int


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def start(
  graph: nnx.GraphDef, params: nnx.State, batch: int, capacity: int
) -> tuple[ModelCache, jax.Array]:
  """The empty cache, and [B, hidden] for the prompts' last tokens."""
  model = nnx.merge(graph, params)
  last = jnp.zeros((batch, model.config.hidden_size), model.execution.dtype)
  return model.init_cache(batch, capacity), last


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def first(
  graph: nnx.GraphDef,
  rule: Rule,
  params: nnx.State,
  last: jax.Array,
  key: jax.Array | None,
) -> Generated:
  """The token after each prompt."""
  shape = len(last), rule.max_new_tokens
  empty = Generated(
    jnp.full(shape, rule.pad_token, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(len(last), jnp.int32),
    jnp.zeros(len(last), bool),
  )
  return _append(empty, nnx.merge(graph, params).logits(last), rule, key)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames="cache")
def decode(
  graph: nnx.GraphDef,
  rule: Rule,
  params: nnx.State,
  cache: ModelCache,
  found: Generated,
  key: jax.Array | None,
  steps: int,
) -> tuple[ModelCache, Generated]:
  """So many tokens more for each row, or fewer if all end."""
  model = nnx.merge(graph, params)
  # `steps` is traced, so that blocks of any size are one program.
  limit = jnp.minimum(jnp.max(found.lengths) + steps, rule.max_new_tokens)

  def going(carry: tuple[ModelCache, Generated]) -> jax.Array:
    _, found = carry
    return (jnp.max(found.lengths) < limit) & ~jnp.all(found.finished)

  def step(
    carry: tuple[ModelCache, Generated],
  ) -> tuple[ModelCache, Generated]:
    cache, found = carry
    newest = lax.dynamic_slice_in_dim(
      found.tokens, jnp.max(found.lengths) - 1, 1, axis=1
    )  # [B, 1]
    # Rows that have ended go on with pad_token: there is room, and nobody reads
    # their caches.
    hidden, cache = model.hidden_states(newest, cache=cache)
    return cache, _append(found, model.logits(hidden[:, 0]), rule, key)

  return lax.while_loop(going, step, (cache, found))


def _append(
  found: Generated, logits: jax.Array, rule: Rule, key: jax.Array | None
) -> Generated:
  """Draws one token from logits [B, V] for every row that has not ended."""
  step = jnp.max(found.lengths)  # some row has not ended: it has them all
  live = ~found.finished
  if key is not None:
    # By the number of the token, not by splitting: a block's size, `every`,
    # then changes no draw.
    key = jax.random.fold_in(key, step)
  token = sampling.sample(logits, key, rule.spec)
  logprob = jnp.take_along_axis(
    jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1
  )[:, 0]  # [B]
  token = jnp.where(live, token, rule.pad_token)
  stops = jnp.array(rule.stop_tokens, jnp.int32)
  return Generated(
    found.tokens.at[:, step].set(token),
    found.logprobs.at[:, step].set(jnp.where(live, logprob, 0)),
    found.lengths + live.astype(jnp.int32),
    found.finished | (live & jnp.isin(token, stops)),
  )
