"""Stages of one GPU kernel, of which each waits for what it reads.

A step of decoding one row is many small products in a row. As kernels, each
begins when the one before has ended, with its weights still in memory. As the
stages of one kernel, each has its first weights in registers before it waits.

Every program takes the next ticket and does what has that number, stage after
stage. Programs that wait hold larger tickets than those that they wait for,
which have begun: there is no deadlock, however few programs fit on a card.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# A tile is 16 KB of bfloat16, 128 bytes of each row. Each program reads one: on
# one H200 two of them, in half as many programs, took 1.06 times as long, and 8
# warps 1.3 times.
ROWS, COLUMNS, WARPS = 128, 64, 4
# int32 entries of a line of the cache: counters that share one wait in line.
_LINE = 32
# Where waits for a count that was not exactly reached are counted, in interpret
# mode; behind the tickets.
WRONG = 1


class Cut(NamedTuple):
  """How the programs of a stage share a product.

  Attributes:
    sizes: N of each matrix.
    starts: the first block of columns of each, and their number in all.
    shares: tiles of rows, each a program of a block.
  """

  sizes: tuple[int, ...]
  starts: tuple[int, ...]
  shares: int

  @property
  def units(self) -> int:
    """Programs of the stage."""
    return self.starts[-1] * self.shares


def cut(rows: int, sizes: Sequence[int]) -> Cut:
  """Of matrices [rows, N], for each N of sizes; rows are whole tiles."""
  starts = [0]
  for size in sizes:
    starts.append(starts[-1] + pl.cdiv(size, COLUMNS))
  return Cut(tuple(sizes), tuple(starts), rows // ROWS)


class Counters(NamedTuple):
  """Counts of what is done, in one array that starts at zero.

  Attributes:
    ref: [LINE count] int32, the first of them the tickets.
    interpret: whether programs run one after the other on a CPU.
  """

  ref: Any
  interpret: bool

  def ticket(self) -> jax.Array:
    """The next number, from 0."""
    return self._add(0, 1)

  def add(self, counter: Any) -> jax.Array:
    """Says that all the program has written so far can be read; the old count.

    Args:
      counter: its number, from 1.
    """
    # The atomic of one thread releases what the threads before a barrier wrote.
    self.barrier()
    return self._add(counter * _LINE, 1)

  def barrier(self) -> None:
    """Of the threads of a program."""
    if not self.interpret:
      triton.debug_barrier()

  def wait(self, counter: Any, count: int) -> None:
    """Until a count is reached; what was written before can then be read."""

    def look(_):
      return self._add(counter * _LINE, 0)

    if self.interpret:
      # Programs run one after the other: it is reached, or it is another.
      wrong = (look(None) != count).astype(jnp.int32)
      self._add(WRONG, wrong)
      return
    lax.while_loop(lambda found: found < count, look, look(None))

  def _add(self, place: Any, count: Any) -> jax.Array:
    # Arrays and not numbers, by which the interpreter cannot index.
    place, count = (
      x if isinstance(x, jax.Array) else lax.full((), x, jnp.int32)
      for x in (place, count)
    )
    return triton.atomic_add(self.ref, (place,), count)


def counters(count: int) -> jax.Array:
  """Zeros for the tickets and as many counters."""
  return jnp.zeros((count + 1) * _LINE, jnp.int32)


def product(
  unit: Any,
  plan: Cut,
  kernels: Sequence[Any],
  parts: Sequence[Any],
  ready: Callable[[Any], jax.Array],
  done: Callable[[Any], Any],
) -> None:
  """One program's tile of a row times some columns of one matrix.

  Args:
    unit: which of the plan's.
    plan: of the product.
    kernels: refs of [K, N].
    parts: refs of [shares N] float32, where the sums of the shares go.
    ready: told the number of a tile of the row; waits for it, and gives it
      [ROWS] float32.
    done: told the block of columns, counted in its matrix.
  """
  block, share = unit // plan.shares, unit % plan.shares
  for n, size in enumerate(plan.sizes):

    @pl.when((block >= plan.starts[n]) & (block < plan.starts[n + 1]))
    def own(n=n, size=size):
      own = block - plan.starts[n]
      column = own * COLUMNS
      at = pl.ds(share * ROWS, ROWS), pl.ds(column, COLUMNS)
      columns = column + lax.broadcasted_iota(jnp.int32, (ROWS, COLUMNS), 1)
      # Asked for before the program waits for its row.
      weights = triton.load(kernels[n].at[at], mask=columns < size, other=0.0)
      sums = jnp.sum(ready(share)[:, None] * wide(weights), axis=0)
      columns = column + lax.broadcasted_iota(jnp.int32, (COLUMNS,), 0)
      place = parts[n].at[pl.ds(share * size + column, COLUMNS)]
      triton.store(place, sums, mask=columns < size)
      done(own)


def added(part: Any, shares: int, first: Any, count: int) -> jax.Array:
  """[count] sums of all shares, always in one order.

  Args:
    part: ref of [shares N] float32.
    shares: that the product was cut into.
    first: column.
    count: of columns.
  """
  size = part.shape[0] // shares
  columns = [part[pl.ds(n * size + first, count)] for n in range(shares)]
  return sum(columns[1:], columns[0])


def normed(x: Any, weight: Any, eps: float, tile: Any) -> jax.Array:
  """A tile of the `RMSNorm` of a row, rounded to its type: [ROWS] float32.

  Args:
    x: ref of [K].
    weight: ref of [K], about 0.
    eps: added to the mean square.
    tile: its number.
  """
  size = x.shape[0]
  at = lax.broadcasted_iota(jnp.int32, (pl.next_power_of_2(size),), 0)
  whole = x.at[jnp.minimum(at, size - 1)]
  whole = wide(triton.load(whole, mask=at < size, other=0.0))
  scale = lax.rsqrt(jnp.sum(whole * whole) / size + eps)
  own = pl.ds(tile * ROWS, ROWS)
  scaled = wide(x[own]) * scale * (1.0 + wide(weight[own]))
  return wide(scaled.astype(x.dtype))


def silu(x: jax.Array) -> jax.Array:
  """x sigmoid(x), float32."""
  return x * lax.logistic(x)


def wide(x: jax.Array) -> jax.Array:
  """In float32."""
  return x.astype(jnp.float32)
