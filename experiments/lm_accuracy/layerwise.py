"""A language model layer by layer, so that an inverse costs one compilation.

The layers of a kind are one program, and a mixer holds only the options that it
reads: under another inverse Gated DeltaNet is compiled anew, once for all its
layers, and attention not at all. A whole model would take as long for every
inverse as its depth.
"""

import functools
from collections.abc import Iterator

import jax
from flax import nnx

from neumann_jax import ChunkMatrices, LanguageModel
from neumann_jax.layers.positions import positions
from neumann_jax.model.decoder import Tokens


def hidden_states(model: LanguageModel, tokens: jax.Array) -> jax.Array:
  """What the output matrix reads, [B, W, hidden].

  As `LanguageModel.hidden_states` without a cache.
  """
  known = Tokens(positions(*tokens.shape), None, None)
  x = model.embed_tokens(tokens)
  for layer in model.layers:
    x = _layer(*nnx.split(layer), x, known)
  return model.norm(x)


def chunk_matrices(
  # of separate layers; its own inverse and chunk size count
  model: LanguageModel,
  tokens: jax.Array,  # [B, W]
) -> Iterator[ChunkMatrices]:
  """The matrices a [B, Hv, N, C, C] that the layers invert, one by one.

  With their gates [B, Hv, N, C], under the model's own inverse and chunk size.
  """
  known = Tokens(positions(*tokens.shape), None, None)
  x = model.embed_tokens(tokens)
  for layer in model.layers:
    parts = nnx.split(layer)
    matrices = _matrices(*parts, x, known)
    if matrices is not None:
      yield matrices
    x = _layer(*parts, x, known)


@functools.partial(jax.jit, static_argnums=0)
def _layer(
  graph: nnx.GraphDef, state: nnx.State, x: jax.Array, known: Tokens
) -> jax.Array:
  return nnx.merge(graph, state)(x, known)[0]


@functools.partial(jax.jit, static_argnums=0)
def _matrices(
  graph: nnx.GraphDef, state: nnx.State, x: jax.Array, known: Tokens
) -> ChunkMatrices | None:
  return nnx.merge(graph, state).chunk_matrices(x, known)
