"""What the gradients of a pack read, see `backward_step`, and where it is.

A pack is two value heads of a chunk. What it loads stands in one record, so
that the steps of its gradients take that and what the step before found.
"""

from typing import Any, NamedTuple

import jax

from neumann_jax.chunk_inverse.kernels import products
from neumann_jax.delta_rule.tpu import packs
from neumann_jax.delta_rule.tpu.packs import (
  Gates,
  beside,
  lanes,
  rows,
  split,
  spread,
)


class Again(NamedTuple):
  """What the first of two chunks leaves when it runs forward, by value head.

  Attributes:
    reads: [values, 2 C, Dv] float32, q S above k S.
    new: [values, C, Dv] float32, new values.
    state: [values, Dk, Dv], before the second chunk.
  """

  reads: Any
  new: Any
  state: Any


class Refs(NamedTuple):
  """The references of the kernel, in the order of its arguments.

  Attributes:
    scale: [1, 1], in scalar memory.
    q: [1, T, keys 128], heads side by side, like all that has tokens.
    k: likewise.
    v: [1, T, values 128].
    d_out: likewise.
    gates: [1, 1, T, 128], from `packs.pack_gates`.
    t: [1, 1, packs, C, 2 C].
    states: [1, 1, values, 128, 128].
    d_final: [1, values, 128, 128].
    dq: as q.
    dk: as k.
    dv: as v.
    d_columns: [1, 1, tokens / runs, 128], see `Plan.parts`.
    d_rows: [1, 1, 1, packs, 2 C].
    d_state: as d_final: before the step, then after it.
    again: of a step of two chunks; else None.
  """

  scale: Any
  q: Any
  k: Any
  v: Any
  d_out: Any
  gates: Any
  t: Any
  states: Any
  d_final: Any
  dq: Any
  dk: Any
  dv: Any
  d_columns: Any
  d_rows: Any
  d_state: Any
  again: Again | None


class Pack(NamedTuple):
  """A chunk of the value heads of a pack: what is loaded and spread.

  Attributes:
    ref: the references.
    at: its number.
    chunk: within the grid step.
    groups: its value heads by key head.
    heads: all of them; lists that follow run over these.
    keys: key heads; q and k run over these.
    q: [C, Dk] each.
    k: likewise.
    d_out: [C, Dv] each.
    states: before the chunk, by value head.
    d_states: after it, likewise, in float32.
    narrow: d_states as an operand.
    enter: exp(G), [C, 128] each.
    leave: exp(G_C - G), likewise.
    gates: of the chunk.
    pair: as `packs.decay` takes it.
  """

  ref: Refs
  at: int
  chunk: int
  groups: list[list[int]]
  heads: list[int]
  keys: list[int]
  q: list[jax.Array]
  k: list[jax.Array]
  d_out: list[jax.Array]
  states: dict[int, jax.Array]
  d_states: dict[int, jax.Array]
  narrow: dict[int, jax.Array]
  enter: list[jax.Array]
  leave: list[jax.Array]
  gates: Gates
  pair: tuple[int, int]

  def dot(
    self, x: jax.Array, y: jax.Array, contracted: tuple[int, int] = (1, 0)
  ) -> jax.Array:
    """`packs.dot` of operands of k's type, to which they are rounded."""
    dtype = self.ref.k.dtype
    return packs.dot(
      x.astype(dtype),
      y.astype(dtype),
      products.kind_of(self.ref.k),
      contracted,
    )

  def narrowed(self, parts: list[jax.Array]) -> list[jax.Array]:
    """As operands."""
    return [x.astype(self.ref.k.dtype) for x in parts]

  def by_group(self, left: list[jax.Array], right: dict) -> list[jax.Array]:
    """What a key head has, times what each of its value heads has."""
    return split(
      beside(
        [
          self.dot(x, beside([right[head] for head in group]))
          for x, group in zip(left, self.groups)
        ]
      )
    )

  def diagonal(self, x: jax.Array, parts: list[jax.Array]) -> list[jax.Array]:
    """X^t of a pack times a part of each head, [C, 128] each.

    All of the pack is multiplied with all parts: a matrix unit takes no longer
    for it than for the blocks on the diagonal one by one.
    """
    both = self.dot(x, beside(parts), (0, 0))
    return [both[rows(i), lanes(i)] for i in range(len(self.heads))]


def load(
  ref: Refs,
  at: int,
  chunk: int,
  pair: tuple[int, int],
  gates: Gates,
  ratio: int,
) -> Pack:
  """Loads a pack.

  Args:
    ref: the references.
    at: its number within the grid step.
    chunk: its chunk.
    pair: its value heads.
    gates: of the chunk.
    ratio: value heads a key head.
  """
  groups, place = packs.groups(pair, ratio), rows(chunk)
  heads = [head for group in groups for head in group]
  keys = [group[0] // ratio for group in groups]
  d_states = {head: ref.d_state[0, head] for head in heads}
  return Pack(
    *(ref, at, chunk, groups, heads, keys),
    [ref.q[0, place, lanes(key)] for key in keys],
    [ref.k[0, place, lanes(key)] for key in keys],
    [ref.d_out[0, place, lanes(head)] for head in heads],
    {head: _state(ref, chunk, head) for head in heads},
    d_states,
    {head: x.astype(ref.k.dtype) for head, x in d_states.items()},
    [spread(gates.enter, head) for head in heads],
    [spread(gates.leave, head) for head in heads],
    gates,
    pair,
  )


def _state(ref: Refs, chunk: int, head: int) -> jax.Array:
  """Before a chunk: kept, or what `enter` made of it."""
  if ref.again is None or chunk == 0:
    return ref.states[0, 0, head]
  return ref.again.state[head]
