"""Losses and divergences of a language model's predictions, token by token."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

# Logits of so many tokens are held at a time: [B, BLOCK, V] twice, and V is
# 248,320 for Qwen3.5.
BLOCK = 128


class Scores(NamedTuple):
  """Of the prediction of every token but the first of its row, [B, W - 1]."""

  loss: jax.Array  # negative log-likelihood, in nats
  divergence: jax.Array  # KL(reference || model), in nats
  correct: jax.Array  # whether the likeliest token is the one that comes


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
  """What the output matrix reads, [B, W, hidden]: prefill without a cache."""
  return nnx.merge(graph, state).hidden_states(tokens, mask=mask)[0]


@functools.partial(jax.jit, static_argnums=0)
def scores(
  graph: nnx.GraphDef,  # of the model
  state: nnx.State,  # of the model
  hidden: jax.Array,  # [B, W, hidden], of the model
  # [B, W, hidden], of the one it is compared with, which has the same output
  # matrix
  reference: jax.Array,
  tokens: jax.Array,  # [B, W]
) -> Scores:
  """Scores of every prediction, BLOCK tokens of a row at a time."""
  model = nnx.merge(graph, state)

  def of_token(parts: tuple[jax.Array, jax.Array, jax.Array]) -> Scores:
    hidden, reference, target = parts  # [B, hidden] twice, [B]
    found = jax.nn.log_softmax(model.logits(hidden))  # [B, V]
    truth = jax.nn.log_softmax(model.logits(reference))
    picked = jnp.take_along_axis(found, target[:, None], axis=-1)[:, 0]
    return Scores(
      -picked,
      jnp.sum(jnp.exp(truth) * (truth - found), axis=-1),
      jnp.argmax(found, axis=-1) == target,
    )

  parts = hidden[:, :-1], reference[:, :-1], tokens[:, 1:]
  by_token = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), parts)
  found = lax.map(of_token, by_token, batch_size=BLOCK)  # [W - 1, B] each
  return jax.tree.map(jnp.transpose, found)


def totals(
  found: Scores,  # scores [B, W - 1]
  # [B, W] bool, True at tokens that count if one is before them
  mask: np.ndarray,
) -> dict[str, Any]:
  """Tokens that count, the sums of their loss and divergence, the largest."""
  real = np.asarray(mask)[:, 1:]
  loss, divergence = (np.asarray(x, np.float64)[real] for x in found[:2])
  return {
    "tokens": len(loss),
    "loss": float(loss.sum()),
    "divergence": float(divergence.sum()),
    "largest": float(divergence.max()),
  }
