"""What a grid step of the TPU kernels holds, and where it stands in arrays.

A grid step holds some chunks of some key heads and of their value heads. Two
value heads share the lanes of a register: see `packs`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax.chunk_inverse.kernels import tpu

CHUNK = 64
LANES = 128
# Value heads a grid step: a token has three numbers of each in its lanes.
MOST_VALUES = LANES // 3
# Chunks of value heads a grid step, at most: 16 packs are one group of the
# ladder.
_CHUNKS = 32


class Plan(NamedTuple):
  """What a grid step holds.

  Attributes:
    chunks: of every head.
    keys: key heads.
    ratio: value heads a key head.
  """

  chunks: int
  keys: int
  ratio: int

  @property
  def values(self) -> int:
    """Value heads."""
    return self.keys * self.ratio

  @property
  def tokens(self) -> int:
    """Of every head."""
    return self.chunks * CHUNK

  @property
  def pairs(self) -> list[tuple[int, int]]:
    """The value heads of a chunk's packs; an odd last one is there twice."""
    last = self.values - 1
    return [(h, min(h + 1, last)) for h in range(0, self.values, 2)]

  @property
  def packs(self) -> int:
    """Of all chunks."""
    return self.chunks * len(self.pairs)

  @property
  def kept_every(self) -> int:
    """Chunks a state that is kept for the backward pass, and its grid step."""
    return 1 if self.chunks % 2 else 2

  @property
  def parts(self) -> int:
    """Runs of tokens whose gates' cotangents share the rows of a register.

    A token has two numbers of each value head; a run is whole registers.
    """
    fits = (n for n in (8, 4, 2) if 2 * self.values * n <= LANES)
    return next(fits, 1)

  def bytes(self, itemsize: int) -> int:
    """Of the blocks of a grid step of the backward pass, the larger one.

    Args:
      itemsize: of an operand.
    """
    chunk = CHUNK * LANES
    keys, values = self.chunks * self.keys, self.chunks * self.values
    operands = (4 * keys + 3 * values + self.packs) * chunk
    operands += values * LANES * LANES
    wide = 2 * self.values * LANES * LANES + 2 * self.chunks * chunk
    # What the second chunk of a step finds in scratch, see `backward_kernel`.
    again = self.values * (3 * CHUNK * 4 + LANES * itemsize) * LANES
    # Everything twice: the next step's comes while this one's is worked on.
    return 2 * (operands * itemsize + wide * 4) + again

  def places(self) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """The number of every pack, its chunk and its pair of heads, in order."""
    for chunk in range(self.chunks):
      for i, pair in enumerate(self.pairs):
        yield chunk * len(self.pairs) + i, chunk, pair


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Where the blocks of a grid step stand in the arrays of the rule.

  Attributes:
    how: what a grid step holds.
    batch: B.
    length: T.
    key_heads: Hk.
    back: whether steps go from the end of a row to its beginning.
  """

  how: Plan
  batch: int
  length: int
  key_heads: int
  back: bool = False

  @property
  def grid(self) -> tuple[int, int, int]:
    """Rows, groups of heads and steps along a row."""
    steps = self.length // self.how.tokens
    return self.batch, self.key_heads // self.how.keys, steps

  def _spec(self, block: tuple[int, ...], place: Callable) -> pl.BlockSpec:
    last = self.grid[2] - 1

    def index(b, h, n):
      return place(b, h, last - n if self.back else n)

    return pl.BlockSpec(block, index)

  def tokens(self, heads: int) -> pl.BlockSpec:
    """Of [B, T, heads 128]: heads side by side in the lanes."""
    block = (1, self.how.tokens, heads * LANES)
    return self._spec(block, lambda b, h, n: (b, n, h))

  def gates(self) -> pl.BlockSpec:
    """Of [B, groups, T, 128]."""
    block = (1, 1, self.how.tokens, LANES)
    return self._spec(block, lambda b, h, n: (b, h, n, 0))

  def state(self) -> pl.BlockSpec:
    """Of [B, Hv, 128, 128]: the same for all steps of a row."""
    block = (1, self.how.values, LANES, LANES)
    return self._spec(block, lambda b, h, n: (b, h, 0, 0))

  def states_shape(self, value_heads: int) -> tuple[int, ...]:
    """All states that are kept, [B, N / kept_every, Hv, 128, 128]."""
    count = self.length // (CHUNK * self.how.kept_every)
    return self.batch, count, value_heads, LANES, LANES

  def states(self) -> pl.BlockSpec:
    """Of [B, N / kept_every, Hv, 128, 128]."""
    kept = self.how.chunks // self.how.kept_every
    block = (1, kept, self.how.values, LANES, LANES)
    return self._spec(block, lambda b, h, n: (b, n, h, 0, 0))

  @property
  def packs_shape(self) -> tuple[int, ...]:
    """All packs: [B, groups, packs, C, 2 C]."""
    b, groups, steps = self.grid
    return b, groups, steps * self.how.packs, CHUNK, LANES

  def packs(self) -> pl.BlockSpec:
    """Of arrays of `packs_shape`."""
    block = (1, 1, self.how.packs, CHUNK, LANES)
    return self._spec(block, lambda b, h, n: (b, h, n, 0, 0))

  @property
  def columns_shape(self) -> tuple[int, ...]:
    """`Plan.parts` runs of a chunk's tokens, each in lanes of its own."""
    b, groups, _ = self.grid
    return b, groups, self.length // self.how.parts, LANES

  def columns(self) -> pl.BlockSpec:
    """Of arrays of `columns_shape`."""
    block = (1, 1, self.how.tokens // self.how.parts, LANES)
    return self._spec(block, lambda b, h, n: (b, h, n, 0))

  @property
  def rows_shape(self) -> tuple[int, ...]:
    """A row of every pack: [B, groups, steps, packs of a step, 2 C]."""
    return *self.grid, self.how.packs, LANES

  def rows(self) -> pl.BlockSpec:
    """Of arrays of `rows_shape`."""
    block = (1, 1, 1, self.how.packs, LANES)
    return self._spec(block, lambda b, h, n: (b, h, n, 0, 0))

  @property
  def compiler_params(self) -> pltpu.CompilerParams:
    """Steps along a row follow each other: the state stays in its block."""
    return pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=tpu.vmem_limit(),
    )


def plan(length: int, key_heads: int, value_heads: int) -> Plan:
  """Chunks and heads that fill a grid step, as far as there are any.

  Args:
    length: T.
    key_heads: Hk.
    value_heads: Hv, at most MOST_VALUES a key head.
  """
  ratio = value_heads // key_heads
  # Two chunks a step hide the latency of one chunk's state behind the other.
  most = max(1, _CHUNKS // 2 // ratio)
  keys = max(n for n in range(1, most + 1) if key_heads % n == 0)
  count = -(-length // CHUNK)
  steps = -(-count // max(1, _CHUNKS // (keys * ratio)))
  return Plan(-(-count // steps), keys, ratio)
