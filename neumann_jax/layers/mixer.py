"""What the first half of a decoder layer provides: a token mixer.

A layer of another linear attention (KDA, Gated DeltaNet-2, ...) is a class
with what `Mixer` lists, and one row in `model.decoder.MIXERS`. Decoder, scan,
cache, generation, quantisation, sharding and checkpoints then take it as it is.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import jax

from neumann_jax.delta_rule.chunks.chunk_matrix import ChunkMatrices
from neumann_jax.execution import Execution
from neumann_jax.layers.caches.cache import LayerCache
from neumann_jax.layers.positions import Positions

# Logical axes of a parameter, as `sharding.RULES` names them; None: whole.
Axes = tuple[str | None, ...]


C = TypeVar("C", bound=LayerCache)


class Tokens(NamedTuple):
  """What every mixer is told of the tokens of a call, by these names.

  Attributes:
    positions: their places.
    segment_ids: [B, T] or None.
    mask: [B, T] bool or None.
  """

  positions: Positions
  segment_ids: jax.Array | None
  mask: jax.Array | None


class Mixer(Protocol[C]):
  """An `nnx.Module` that mixes tokens, [B, T, hidden] -> [B, T, hidden].

  It is made by `Class(config, execution, rngs=rngs)`, from a `ModelConfig`, an
  `Execution` and an `nnx.Rngs`. C is the kind of its cache. Under `scan_layers`
  or `remat` what a call changes in it is lost: an `nnx.Dropout` that keeps its
  stream draws the same mask in every call.

  Attributes:
    logical_axes: of its parameters by their path in the mixer, as
      "in_proj_qkv/kernel"; parameters that are not named are whole everywhere.
  """

  logical_axes: ClassVar[Mapping[str, Axes]]

  def set_execution(self, execution: Execution) -> None:
    """Takes what it reads of the options, at the start and on a change.

    It keeps nothing else: options are part of a compiled program, and one that
    the mixer does not read must not have it compiled anew.

    Raises:
      ValueError: if it cannot be computed so.
    """

  def init_cache(self, batch: int, capacity: int) -> C:
    """The cache of B rows before the first token; S tokens a row at most."""

  def __call__(
    self,
    x: jax.Array,
    *,
    positions: Positions,
    cache: C | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, C | None]:
    """Mixes T tokens with each other and with what the cache holds.

    Args:
      x: [B, T, hidden]; padding may hold anything finite.
      positions: places of the tokens, which know documents and padding too.
      cache: from the call before, or None at a start.
      segment_ids: [B, T] integers or None: documents that see nothing of each
        other. The cache enters the first and leaves the last; one of B M rows
        has a row for each of M documents.
      mask: [B, T] bool or None, True at tokens. Padding changes no cache.

    Returns:
      [B, T, hidden], and the cache after the tokens; without a cache whatever
      is at hand.
    """

  def chunk_matrices(
    self,
    x: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> ChunkMatrices | None:
    """The chunk matrices that it inverts for x, or None if it inverts none.

    Their gates are those that it decays and writes by, see `gates.Gates`.
    """
