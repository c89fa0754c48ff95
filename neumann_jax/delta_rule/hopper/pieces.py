"""A row of chunks cut into pieces that a card runs side by side, exactly.

Few rows of heads leave most of a card idle. A piece of a row can begin before
anything of the chunks in front of it is known, as long as it begins so early
that what it does not know has decayed below rounding by its own first chunk;
the gates alone say where. Where nothing decays, a piece begins with the row.
"""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from neumann_jax.delta_rule.hopper.tiles import CHUNK, HALF, WIDTH, parted

# What has decayed by 2^-30 is below the rounding of float32 sums, 2^-24, even
# where it was 64 times larger than what it is added to.
_FORGOTTEN = 30.0
# Programs that fill a card: one for each multiprocessor of an H100 or H200.
_PROGRAMS = 132
# Chunks a piece of a row, at least: starting early costs about five.
_PIECE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """What a program of a grid (b, h, p) does, as a warpgroup of it reads it.

  Chunks are counted down on the way back.
  """

  row: Any
  head: Any  # of values
  key_head: Any
  column: Any  # first of its 128 columns of values
  run: Any  # chunk at which it begins, of `starts` or `stops`
  write: Any  # chunk from which it writes
  end: Any  # of both
  halves: Any  # of its columns that it carries
  group: Any  # warpgroup

  @classmethod
  def read(cls, cut: Any, heads: int, blocks: int) -> Self:
    """Of a table by `starts` or `stops`, for one program.

    Args:
      cut: [B, Hv, P, 4] int32, a reference.
      heads: value heads a key head.
      blocks: of 128 columns of values, each a program.
    """
    row, piece = lax.axis_index("b"), lax.axis_index("p")
    head, block = parted(lax.axis_index("h"), blocks)
    run, write, end, halves = (cut[row, head, piece, n] for n in range(4))
    return cls(
      row=row,
      head=head,
      key_head=lax.div(head, heads),
      column=block * WIDTH,
      run=run,
      write=write,
      end=end,
      halves=halves,
      group=lax.axis_index("warpgroup"),
    )

  def columns(self, half: Any) -> Any:
    """A half of the columns of values."""
    return pl.ds(self.column + half * HALF, HALF)

  @property
  def carried(self) -> Any:
    """Whether this warpgroup carries its half: 1, or 0 if another program."""
    return lax.rem(lax.div(self.halves, self.group + 1), 2)


@functools.partial(jax.jit, static_argnums=1)
def starts(gates: jax.Array, blocks: int = 1) -> jax.Array:
  """What each piece of a row does: [B, Hv, P, 4].

  A head of values wider than 128 is as many programs as it has `blocks`.

  The chunks at which it begins to run and to write, the end of both, and which
  halves of the columns of values it carries: 1 the first, 2 the second, 3 both.

  A piece runs from the latest chunk from which everything before has decayed
  by 2^-30 when its own first chunk comes, else from 0, where the initial state
  is known: the rule's own transition never makes a state larger for |k| <= 1
  and beta <= 2. Of pieces that run from 0, the last does the work of all.
  """
  total, begin, end = _pieces(gates, blocks)
  before, at = total[..., None, :], total[..., begin, None]
  first = jnp.sum(before >= at + _FORGOTTEN, -1, dtype=jnp.int32) - 1
  first = jnp.maximum(first, 0)  # [B, Hv, P]
  piece = jnp.arange(len(begin), dtype=jnp.int32)
  last = jnp.sum(first == 0, -1, keepdims=True, dtype=jnp.int32) - 1
  own = jnp.where(piece == last, 0, begin)
  return _shared_out(piece < last, first, own, end)


@functools.partial(jax.jit, static_argnums=1)
def stops(gates: jax.Array, blocks: int = 1) -> jax.Array:
  """What each piece does on the way back, likewise: chunks are counted down."""
  total, begin, end = _pieces(gates, blocks)
  before, at = total[..., None, :-1], total[..., end, None]
  stop = jnp.sum(before > at - _FORGOTTEN, -1, dtype=jnp.int32)
  piece, count = jnp.arange(len(begin), dtype=jnp.int32), end[-1]
  first = jnp.sum(stop < count, -1, keepdims=True, dtype=jnp.int32)
  own = jnp.where(piece == first, count, end)
  return _shared_out(piece > first, stop, own, begin)


@functools.partial(jax.jit, static_argnums=1)
def to_the_end(gates: jax.Array, blocks: int = 1) -> jax.Array:
  """What the state after the row depends on: [B, Hv, P, 4], writing no chunk.

  As of `starts`: it runs from the latest chunk from which everything before has
  decayed when the row ends.
  """
  total = _totals(gates)
  count = total.shape[-1] - 1
  forgotten = total >= total[..., -1:] + _FORGOTTEN
  run = jnp.maximum(jnp.sum(forgotten, -1, dtype=jnp.int32) - 1, 0)
  return _alone(run, count, blocks)


@functools.partial(jax.jit, static_argnums=1)
def to_the_start(gates: jax.Array, blocks: int = 1) -> jax.Array:
  """What the cotangent before the row depends on, as of `stops`."""
  seen = _totals(gates)[..., :-1] > -_FORGOTTEN
  return _alone(jnp.sum(seen, -1, dtype=jnp.int32), 0, blocks)


def _alone(run, end, blocks):
  """One piece, or two of half of its columns where a card has room for both."""
  programs = run.shape[0] * run.shape[1] * blocks
  end = np.int32(end)
  halves = np.array([1, 2] if 2 * programs <= _PROGRAMS else [3], np.int32)
  parts = jnp.broadcast_arrays(run[..., None], end, end, halves)
  return jnp.stack(parts, axis=-1).astype(jnp.int32)


def _shared_out(idle, run, write, end):
  """[B, Hv, P, 4]; an idle piece takes half of another's columns.

  Pieces that run from afar take longest, and are those at the far end of the
  row: each idle one takes the piece as far from the other end.
  """
  end = jnp.broadcast_to(end, run.shape)
  other = jnp.flip(idle, -1)
  helps, helped = idle & ~other, other & ~idle
  run = jnp.where(idle, end, run)
  parts = (
    jnp.where(helps, jnp.flip(x, -1), x)
    for x in (run, jnp.broadcast_to(write, run.shape), end)
  )
  halves = jnp.where(helps, 1, jnp.where(helped, 2, 3))
  return jnp.stack([*parts, halves], axis=-1).astype(jnp.int32)


def _pieces(gates, blocks):
  """Decay before every chunk and after the last, and pieces' ends, static."""
  b, hv, length = gates.shape
  count = length // CHUNK
  pieces = max(1, min(_PROGRAMS // (b * hv * blocks), count // _PIECE))
  size = -(-count // pieces)
  # Not of 64 bits, which they would be under x64.
  begin = np.arange(0, count, size, dtype=np.int32)
  return _totals(gates), begin, np.append(begin[1:], np.int32(count))


def _totals(gates):
  """Decay before every chunk, and after the last: [B, Hv, N + 1]."""
  total = jnp.cumsum(gates[..., CHUNK - 1 :: CHUNK], axis=-1)
  return jnp.pad(total, ((0, 0), (0, 0), (1, 0)))
