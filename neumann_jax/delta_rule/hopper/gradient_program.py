"""What the four warpgroups of a program of `gradients` share.

Its references, where an item (a chunk of one value head) is, and the loads of
the fourth, which fill two slots in turn, 64 columns of values each; the keys
of a chunk are loaded with its first head and have two slots of their own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper.tiles import (
  CHUNK,
  COLS,
  HALF,
  ROWS,
  WIDTH,
  cols,
  decay,
  registers,
)


class References(NamedTuple):
  """Arrays in the card's memory, as `gradients` takes and returns them."""

  q: Any
  k: Any
  y: Any
  do: Any
  dv: Any
  gates: Any
  beta: Any
  scale: Any
  h: Any
  dh: Any
  dq: Any
  dk: Any
  dg: Any
  dbeta: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
  """Of an item."""

  chunk: Any
  head: Any  # of values
  r: Any  # of them, which one of its key head
  slot: Any  # of its keys

  @property
  def at(self) -> Any:
    """Its tokens."""
    return pl.ds(self.chunk * CHUNK, CHUNK)


@dataclasses.dataclass(frozen=True)
class Program:
  """One program, as every warpgroup of it sees it."""

  refs: References
  s: Any  # shared memory and barriers, by name
  heads: int  # value heads a key head
  items: int  # chunks times heads
  halves: int  # times 64 columns of values
  row: Any
  first: Any  # chunk
  key_head: Any
  block: Any  # of 128 columns of keys

  @property
  def columns(self) -> Any:
    """Of keys."""
    return pl.ds(self.block * WIDTH, WIDTH)

  def place(self, item: jax.Array) -> _Place:
    """Where an item is."""
    n, r = lax.div(item, self.heads), lax.rem(item, self.heads)
    head = self.key_head * self.heads + r
    return _Place(chunk=self.first + n, head=head, r=r, slot=lax.rem(n, 2))

  def load_all(self) -> None:
    """What the fourth warpgroup does."""
    plgpu.set_max_registers(24, action="decrease")

    @pl.loop(0, self.items)
    def _item(item):
      place = self.place(item)

      @pl.when((place.r == 0) & (item >= 2 * self.heads))
      def _key_slot():
        plgpu.barrier_wait(self.s.key_free.at[place.slot])

      for half in range(self.halves):

        @pl.when((item > 0) | (half >= 2))
        def _slot(half=half):
          plgpu.barrier_wait(self.s.free.at[half % 2])

        if half == 0:
          pl.when(place.r == 0)(lambda: self._load_keys(place))
        self._load_half(place, half)

  def _load_keys(self, place):
    bar, s = self.s.key_full.at[place.slot], self.s
    at = self.row, place.at, self.key_head, self.columns
    plgpu.copy_gmem_to_smem(self.refs.q.at[at], s.q.at[place.slot], bar)
    plgpu.copy_gmem_to_smem(self.refs.k.at[at], s.k.at[place.slot], bar)

  def _load_half(self, place, half):
    slot, s = half % 2, self.s
    bar, copy = s.full.at[slot], plgpu.copy_gmem_to_smem
    value = pl.ds(half * HALF, HALF)
    refs, row, head = self.refs, self.row, place.head
    for name in ("y", "do", "dv"):
      given = getattr(refs, name).at[row, place.at, head, value]
      copy(given, getattr(s, name)[slot], bar)
    for name in ("h", "dh"):
      given = getattr(refs, name)
      given = given.at[row, head, place.chunk, value, self.columns]
      copy(given, getattr(s, name)[slot], bar)
    gates, beta = (x.at[row, head, place.at] for x in (refs.gates, refs.beta))
    copy(gates, s.gate_cols.at[slot], bar)
    copy(gates, s.gate_rows.at[slot], bar)
    copy(beta, s.beta_rows.at[slot], bar)
    copy(beta, s.beta_cols.at[slot], bar)

  def weights(self, *, strict: bool) -> jax.Array:
    """beta_j 2^(G_i - G_j), from the second slot: both hold the same."""
    by_row = registers(self.s.gate_rows.at[1], layout=ROWS)
    by_col = registers(self.s.gate_cols.at[1], layout=COLS)
    beta = registers(self.s.beta_cols.at[1], layout=COLS)
    return decay(by_row, by_col, strict=strict) * cols(beta, CHUNK)

  def keys_ready(self, place: _Place) -> None:
    """Waits for the keys of a chunk, with its first head."""

    @pl.when(place.r == 0)
    def _keys_are_here():
      plgpu.barrier_wait(self.s.key_full.at[place.slot])

  def keys_done(self, place: _Place) -> None:
    """Lets the keys of a chunk go, with its last head."""

    @pl.when(place.r == self.heads - 1)
    def _last_use():
      plgpu.barrier_arrive(self.s.key_free.at[place.slot])


def along(x_ref: Any, y: jax.Array) -> jax.Array:
  """The sum over columns of a 16-bit tile times a float32 one."""
  return (registers(x_ref).astype(jnp.float32) * y).sum(axis=1)
