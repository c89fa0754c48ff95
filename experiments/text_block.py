"""The matrices a Gated DeltaNet block inverts when it reads real text.

The text is the Python standard library's own sources, byte by byte; every byte
value has a fixed random embedding and the block has fixed random weights, so
nothing here is trained. Its decay is set slow (`decay_init="slow"`), because a
block at the published start mostly forgets, which makes every inverse easy.
"""

import pathlib
import sysconfig
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import neumann_jax
from experiments.inverse_study import Group, InverseSettings

FILES = ("argparse.py", "difflib.py", "heapq.py", "textwrap.py")
HIDDEN = 256
FAMILY = "GDN block"


class Difficulty(NamedTuple):
  """How hard the block's matrices are.

  Attributes:
    matrices: how many.
    cosine: mean |<k_i, k_j>| of the chunk's pairs, from A and the gates.
    row_sum: largest row sum of |A|.
    decay: median log decay of a token, negated.
  """

  matrices: int
  cosine: float
  row_sum: float
  decay: float


def text_bytes(length: int) -> np.ndarray:
  """The first bytes of each source file: [len(FILES), length] uint8.

  Raises:
    ValueError: if a file is shorter than `length`.
  """
  rows = []
  for name, data in zip(FILES, _sources()):
    if len(data) < length:
      raise ValueError(f"{name} has {len(data)} bytes, fewer than {length}")
    rows.append(np.frombuffer(data[:length], np.uint8))
  return np.stack(rows)


def source_text() -> str:
  """All of the source files, one after another."""
  return "".join(data.decode() for data in _sources())


def _sources() -> list[bytes]:
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  return [(folder / name).read_bytes() for name in FILES]


def block_group(settings: InverseSettings) -> tuple[Group, Difficulty]:
  """Feeds the text to a block.

  Args:
    settings: seed, bytes of each file, chunk size.

  Returns:
    The matrices of all chunks and heads, and how hard they are.
  """
  text = text_bytes(settings.tokens)  # [4, T]
  embedding = jax.random.normal(
    jax.random.key(settings.seed), (256, HIDDEN), jnp.float32
  )
  block = neumann_jax.GatedDeltaNet(
    HIDDEN,
    num_key_heads=2,
    num_value_heads=4,
    key_head_dim=64,
    value_head_dim=64,
    decay_init="slow",
    chunk_size=settings.chunk_size,
    rngs=nnx.Rngs(settings.seed),
  )
  x = embedding[text]  # [4, T, HIDDEN]
  matrices = nnx.jit(lambda block, x: block.chunk_matrices(x))(block, x)
  group = _group(matrices)
  return group, _difficulty(group, matrices)


def _group(matrices: neumann_jax.ChunkMatrices) -> Group:
  size = matrices.a.shape[-1]
  envelope = neumann_jax.envelope(matrices.beta, matrices.log_decay)
  decay = -np.asarray(matrices.log_decay)
  beta = np.asarray(matrices.beta)
  return Group(
    FAMILY,
    f"{beta.min():.2g} to {beta.max():.2g}",
    f"{decay.min():.2g} to {decay.max():.2g}",
    np.asarray(matrices.a).reshape(-1, size, size),
    np.asarray(envelope).reshape(-1, size, size),
  )


def _difficulty(
  group: Group, matrices: neumann_jax.ChunkMatrices
) -> Difficulty:
  lower = np.tril_indices(group.a.shape[-1], -1)
  ratio = np.abs(group.a / np.maximum(group.envelope, 1e-30))
  return Difficulty(
    len(group.a),
    float(ratio[:, *lower].mean()),
    float(np.abs(group.a).sum(-1).max()),
    float(-np.median(np.asarray(matrices.log_decay))),
  )
