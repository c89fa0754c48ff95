"""A language model layer by layer, so that an inverse costs one compilation.

The layers of a kind are one program: under another inverse only that of Gated
DeltaNet is compiled anew, once for all of them. A whole model would take as
long for every inverse as its depth.
"""

import functools
from collections.abc import Iterator

import jax
from flax import nnx

from neumann_jax import ChunkMatrices, InverseSpec, LanguageModel
from neumann_jax.layers.positions import positions
from neumann_jax.model.decoder import Tokens


def with_inverse(
  model: LanguageModel, spec: InverseSpec, chunk_size: int
) -> LanguageModel:
  """The same parameters; Gated DeltaNet layers take another inverse.

  Attention layers stay what they are, the name of the inverse that they carry
  included: `with_execution` alone would have them compiled anew.

  Args:
    model: of separate layers.
    spec: of the inverse.
    chunk_size: C.
  """
  other = model.with_execution(spec=spec, chunk_size=chunk_size)
  other.layers = nnx.List(
    new if new.is_linear else old
    for new, old in zip(other.layers, model.layers)
  )
  return other


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
