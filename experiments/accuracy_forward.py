"""A language model layer by layer, so that an inverse costs one compilation.

The layers of a kind are one program: under another inverse only that of Gated
DeltaNet is compiled anew, once for all of them. A whole model would take as
long for every inverse as its depth.
"""

import functools
from collections.abc import Iterator

import jax
from flax import nnx

from neumann_jax import ChunkMatrices, LanguageModel
from neumann_jax.decoder import DecoderLayer, Tokens
from neumann_jax.positions import positions


def hidden_states(model: LanguageModel, tokens: jax.Array) -> jax.Array:
  """What the output matrix reads.

  Args:
    model: of separate layers.
    tokens: [B, W].

  Returns:
    [B, W, hidden], as `LanguageModel.hidden_states` without a cache.
  """
  known = Tokens(positions(*tokens.shape), None, None)
  x = model.embed_tokens(tokens)
  for layer in model.layers:
    x = _layer(*nnx.split(layer), x, known)
  return model.norm(x)


def chunk_matrices(
  model: LanguageModel, tokens: jax.Array
) -> Iterator[ChunkMatrices]:
  """The matrices that every Gated DeltaNet layer inverts, layer by layer.

  Args:
    model: of separate layers; its own inverse and chunk size count.
    tokens: [B, W].

  Yields:
    a [B, Hv, N, C, C] and its gates [B, Hv, N, C].
  """
  known = Tokens(positions(*tokens.shape), None, None)
  x = model.embed_tokens(tokens)
  for layer in model.layers:
    parts = nnx.split(layer)
    if layer.is_linear:
      yield _matrices(*parts, x)
    x = _layer(*parts, x, known)


def count_linear(model: LanguageModel) -> int:
  """How many of its layers are Gated DeltaNet."""
  return len(_linear(model))


def _linear(model: LanguageModel) -> list[DecoderLayer]:
  return [layer for layer in model.layers if layer.is_linear]


@functools.partial(jax.jit, static_argnums=0)
def _layer(
  graph: nnx.GraphDef, state: nnx.State, x: jax.Array, known: Tokens
) -> jax.Array:
  return nnx.merge(graph, state)(x, known)[0]


@functools.partial(jax.jit, static_argnums=0)
def _matrices(
  graph: nnx.GraphDef, state: nnx.State, x: jax.Array
) -> ChunkMatrices:
  layer = nnx.merge(graph, state)
  return layer.linear_attn.chunk_matrices(layer.input_layernorm(x))
