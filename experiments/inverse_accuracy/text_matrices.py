"""The matrices the shipped byte model inverts when it reads held-out text.

The text is the first bytes of the largest modules of the Python standard
library that the model was not trained on. Every linear layer and value head
gives a matrix for every chunk.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import neumann_jax
from experiments.data import text_data
from experiments.data.text_data import Document
from experiments.inverse_accuracy.errors import Group, InverseSettings
from neumann_jax import ChunkMatrices, Execution, RuleOptions, shipped

MODULES = 2
FAMILY = "byte model"


class Difficulty(NamedTuple):
  """How hard the model's matrices are, and where they come from."""

  modules: tuple[str, ...]  # names of the texts
  matrices: int  # how many
  cosine: float  # mean |<k_i, k_j>| of the chunk's pairs, from A and the gates
  row_sum: float  # largest row sum of |A|
  decay: float  # median log decay per token, negated


def model_group(settings: InverseSettings) -> tuple[Group, Difficulty]:
  """Feeds held-out text to the shipped model.

  The group has the matrices of all layers, heads and chunks.
  """
  documents = modules(settings.tokens)
  tokens = np.stack(
    [text_data.stream([d])[: settings.tokens] for d in documents]
  )  # [MODULES, T]
  model = shipped.language_model(
    execution=Execution(rule=RuleOptions(settings.chunk_size))
  )
  matrices = _matrices(*nnx.split(model), jnp.asarray(tokens, jnp.int32))
  group = _group(matrices)
  names = tuple(document.name for document in documents)
  return group, _difficulty(names, group, matrices)


def modules(size: int) -> Sequence[Document]:
  """The largest held-out modules, `MODULES` of them.

  ValueError if one has fewer than `size` bytes.
  """
  documents = text_data.held_out_text()
  chosen = sorted(documents, key=lambda d: -len(d.data))[:MODULES]
  if len(chosen[-1].data) < size:
    raise ValueError(
      f"tokens must be at most {len(chosen[-1].data)}, the bytes of "
      f"{chosen[-1].name}, got {size}"
    )
  return chosen


# It runs once: what optimisation would save is less than what it takes.
@functools.partial(
  jax.jit,
  static_argnums=0,
  compiler_options={"xla_backend_optimization_level": 0},
)
def _matrices(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array
) -> ChunkMatrices:
  """Of all layers, one after another: [n, C, C] and [n, C]."""
  model = nnx.merge(graph, state)
  found = model.chunk_matrices(tokens)  # of each layer [B, Hv, N, ...]
  parts = [
    jnp.concatenate([x.reshape(-1, *x.shape[3:]) for x in field])
    for field in zip(*found)
  ]
  return ChunkMatrices(*parts)


def _group(matrices: ChunkMatrices) -> Group:
  envelope = neumann_jax.envelope(
    matrices.beta, matrices.log_decay, key_norm=matrices.key_norm
  )
  beta, decay = matrices.beta, -matrices.log_decay
  return Group(
    FAMILY,
    f"{beta.min():.2g} to {beta.max():.2g}",
    f"{decay.min():.2g} to {decay.max():.2g}",
    np.asarray(matrices.a),
    np.asarray(envelope),
  )


def _difficulty(
  names: tuple[str, ...], group: Group, matrices: ChunkMatrices
) -> Difficulty:
  lower = np.tril_indices(group.a.shape[-1], -1)
  # Where decay has left nothing of A its pair of keys cannot be told.
  a, envelope = group.a[:, *lower], group.envelope[:, *lower]
  told = envelope > 1e-6
  return Difficulty(
    names,
    len(group.a),
    float(np.abs(a[told] / envelope[told]).mean()),
    float(np.abs(group.a).sum(-1).max()),
    float(-np.median(np.asarray(matrices.log_decay))),
  )
