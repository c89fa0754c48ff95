"""What is timed: a training step, a prefill, steps of decoding.

Each gives seconds of its repetitions, after one that compiles.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.harness.speed import timing
from experiments.model_speed import shapes
from neumann_jax import (
  Execution,
  LanguageModel,
  ModelConfig,
  SamplingSpec,
  tuning,
)
from neumann_jax.generation import decoding, sampling
from neumann_jax.generation.decoding import Request, Written


class Measured(NamedTuple):
  """One pass of one model."""

  timing: timing.Timing  # of a training step, a prefill, a step of decoding
  tokens: int  # that went through the model in it
  # what it cannot do without: operations of its products, and bytes of memory
  flops: float
  bytes: float


def train(
  config: ModelConfig,
  execution: Execution,
  *,
  tokens: int,  # of the one row
  repeats: int,
  seed: int,
) -> Measured:
  """A step of AdamW on the cross-entropy of a row."""
  model = shapes.model(config, execution, seed)
  graph, params = nnx.split(model)
  optimiser = optax.adamw(1e-5)
  carried = params, optimiser.init(params)
  text = _text(config, (1, tokens + 1), seed)
  step = jax.jit(functools.partial(_step, graph, optimiser), donate_argnums=0)
  seconds = []
  for _ in range(repeats + 2):
    start = time.perf_counter()
    carried, loss = step(carried, text)
    jax.block_until_ready((carried, loss))
    seconds.append(time.perf_counter() - start)
  # The second may still wait for the allocator.
  found = timing.of(seconds[2:], 1, seconds[0])
  return _measured(found, model, tokens, causal=True, passes=3)


def _step(graph, optimiser, carried, text):
  params, moments = carried

  def loss(params: nnx.State) -> jax.Array:
    model = nnx.merge(graph, params)
    # In blocks of words: the logits of 8192 tokens are 8 GB in float32.
    hidden, _ = model.hidden_states(text[:, :-1])
    return jnp.mean(tuning.token_losses(model, hidden, text[:, 1:]))

  value, gradient = jax.value_and_grad(loss)(params)
  # optax raises a float to the integer count of steps.
  with jax.numpy_dtype_promotion("standard"):
    updates, moments = optimiser.update(gradient, moments, params)
  return (optax.apply_updates(params, updates), moments), value


def prefill(
  config: ModelConfig,
  execution: Execution,
  *,
  tokens: int,  # of the one prompt
  repeats: int,
  seed: int,
) -> Measured:
  """A prompt into an empty cache, as `generate` reads it."""
  model = shapes.model(config, execution, seed)
  graph, params = nnx.split(model)
  text = _text(config, (1, tokens), seed)
  mask = jnp.ones(text.shape, bool)

  def once() -> float:
    empty = decoding.start(graph, params, 1, tokens)
    jax.block_until_ready(empty)
    start = time.perf_counter()
    jax.block_until_ready(decoding.prefill(graph, params, *empty, text, mask))
    return time.perf_counter() - start

  first, _ = once(), once()
  found = timing.of([once() for _ in range(repeats)], 1, first)
  return _measured(found, model, tokens, causal=True, passes=1)


def decode(
  config: ModelConfig,
  execution: Execution,
  *,
  rows: int,  # B
  tokens: int,  # written after the prompt, timed together
  prompt: int,  # tokens of each row's prompt
  capacity: int,  # tokens of a row that the cache has room for
  repeats: int,
  seed: int,
) -> Measured:
  """Greedy tokens after a prompt, by the loop of `generate`."""
  model = shapes.model(config, execution, seed)
  graph, params = nnx.split(model)
  text = _text(config, (rows, prompt), seed)
  mask = jnp.ones(text.shape, bool)
  draws = sampling.as_draws(
    [SamplingSpec(temperature=0)] * rows, config.vocab_size
  )
  nothing = np.zeros(config.vocab_size, bool)  # that ends a row
  request = Request(draws, nothing, sampling.unused_key(), np.int32(tokens))

  def once() -> float:
    empty = decoding.start(graph, params, rows, capacity)
    begun = decoding.prefill(graph, params, *empty, text, mask)
    written = _nothing(rows, tokens, config.vocab_size)
    jax.block_until_ready((begun, written))
    start = time.perf_counter()
    jax.block_until_ready(
      decoding.decode(graph, params, *begun, written, request)
    )
    return time.perf_counter() - start

  first, _ = once(), once()
  found = timing.of([once() for _ in range(repeats)], tokens, first)
  return _measured(found, model, rows, causal=False, passes=1)


PASSES: dict[str, Callable[..., Measured]] = {
  "train": train,
  "prefill": prefill,
  "decode": decode,
}


def _measured(
  found: timing.Timing,
  model: LanguageModel,
  tokens: int,  # in a pass
  *,
  causal: bool,  # whether they are a row that attends to itself
  passes: int,
) -> Measured:
  """With the least work: products with weights, and their bytes.

  Attention of a row counts; that to a cache, the rule and recomputation do not.
  """
  cost = shapes.size(model)
  config = model.config
  attended = 0.0
  if causal:  # a token of a row sees half of it on average
    full = config.layer_types.count("full_attention")
    width = config.num_attention_heads * config.head_dim
    attended = 2.0 * full * width * tokens**2
  flops = passes * (2.0 * cost.weights * tokens + attended)
  return Measured(found, tokens, flops, passes * float(cost.bytes))


def _text(config: ModelConfig, shape: tuple[int, int], seed: int) -> Any:
  key = jax.random.key(seed)
  return jax.random.randint(key, shape, 0, config.vocab_size, jnp.int32)


def _nothing(rows: int, tokens: int, vocabulary: int) -> Written:
  return Written(
    jnp.zeros((rows, tokens), jnp.int32),
    jnp.zeros((rows, tokens), jnp.float32),
    jnp.zeros(rows, jnp.int32),
    jnp.zeros(rows, bool),
    jnp.zeros((rows, vocabulary), jnp.int8),
  )
