"""The vocabulary's two matrices: from tokens to vectors, and to logits.

A model holds them under their names in a checkpoint, `embed_tokens` and, where
it is not the same array, `lm_head`.
"""

from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from neumann_jax.execution import Execution
from neumann_jax.layers import placement
from neumann_jax.layers.linear import linear, wide_product
from neumann_jax.model import logical_axes
from neumann_jax.model_config import ModelConfig

if TYPE_CHECKING:
  from neumann_jax.model.language_model import LanguageModel


def embedding(
  config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
) -> nnx.Embed:
  """The matrix [V, hidden] whose rows tokens look up."""
  return nnx.Embed(
    config.vocab_size,
    config.hidden_size,
    dtype=execution.dtype,
    param_dtype=execution.param_dtype,
    embedding_init=nnx.initializers.normal(config.initializer_range),
    rngs=rngs,
  )


def output_matrix(
  config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
) -> nnx.Linear:
  """The matrix [hidden, V] of a model whose embedding is not tied to it."""
  return linear(
    config.hidden_size,
    config.vocab_size,
    std=config.initializer_range,
    dtype=execution.dtype,
    param_dtype=execution.param_dtype,
    wide=True,
    rngs=rngs,
  )


def embedded(model: "LanguageModel", tokens: jax.Array) -> jax.Array:
  """[B, T] -> [B, T, hidden]."""
  # A lookup needs a row for each token, and not the whole vocabulary.
  found = _gathered(model, "embed_tokens", tokens, model.config.vocab_size)
  return found(tokens)


def logits(model: "LanguageModel", hidden: jax.Array) -> jax.Array:
  """[..., hidden] -> [..., V] float32."""
  # Sums stay float32: tokens that compete differ by less than bfloat16 shows.
  hidden = placement.by_rows(hidden, model.execution.rule.batch_axes)
  width = model.config.hidden_size
  if not model.config.tie_word_embeddings:
    return _gathered(model, "lm_head", hidden[..., 0], width)(hidden)
  tied = _gathered(model, "embed_tokens", hidden[..., 0], width).embedding
  return wide_product(hidden, tied[...].astype(hidden.dtype), 1)


def _gathered(
  model: "LanguageModel", name: str, tokens: jax.Array, least: int
) -> Any:
  """A matrix of the vocabulary for so many tokens, see `placement`."""
  return placement.gathered(
    getattr(model, name),
    lambda path: logical_axes.of_model((name, *path), model.layers),
    tokens=tokens.size,
    least=least,
    dtype=model.execution.dtype,
  )
