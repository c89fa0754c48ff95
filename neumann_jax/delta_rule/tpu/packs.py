"""What the TPU kernels of the delta rule share: packs of chunk matrices.

A matrix of a chunk is 64 wide and a register 128, so two value heads share the
lanes of one: a pack, [C, 2 C]. Gates arrive with tokens in sublanes and heads
in lanes, and are spread over the lanes of a pack by a permutation.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from neumann_jax.chunk_inverse import methods
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import products, tpu, tpu_ladder
from neumann_jax.chunk_inverse.kernels.products import Unit
from neumann_jax.delta_rule.tpu.grid_plan import CHUNK, LANES, Plan

# Log decays are cut at multiples of 1/64. Those sum exactly in float32 down to
# -2^17, what is left is small: no difference of two sums cancels, whatever the
# tokens between have forgotten.
_COARSE = 64.0

# A program cut by `yield` where others may be interleaved.
Pieces = Iterator[None]
_END = object()
# Forward on v6e, per chunk and head: 243 bundles at two together, 213 at four
# and 175 at eight, which are all of a chunk.
_TOGETHER = 8


def pack_gates(log_decay: jax.Array, beta: jax.Array, how: Plan) -> jax.Array:
  """Log decays in two parts, and beta, in lanes of their own.

  Args:
    log_decay: [B, T, Hv], at least -104.
    beta: [B, T, Hv].
    how: the plan.

  Returns:
    [B, groups, T, 128] float32: groups of the value heads of a grid step.
  """

  def by_group(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, how.values), 1, 2)

  g = by_group(log_decay)
  coarse = jnp.floor(g * _COARSE + 0.5) / _COARSE
  fields = jnp.concatenate([coarse, g - coarse, by_group(beta)], -1)
  spare = LANES - fields.shape[-1]
  return jnp.pad(fields, [(0, 0)] * 3 + [(0, spare)])


class Gates(NamedTuple):
  """The gates of a chunk of all value heads of a grid step.

  Attributes:
    cols: [C, 128], tokens in sublanes: head h has the coarse and the fine part
      of G in lanes h and h + values, and beta in lane h + 2 values.
    rows: [128, C], the same transposed.
    enter: [C, 128], exp(G) in lane h.
    leave: [C, 128], exp(G_C - G) in lane h.
    values: value heads.
  """

  cols: jax.Array
  rows: jax.Array
  enter: jax.Array
  leave: jax.Array
  values: int


def gates(x: jax.Array, values: int) -> Gates:
  """Sums the decays of a chunk: x [C, 128] from `pack_gates`."""
  row, col = iota((CHUNK, CHUNK), 0), iota((CHUNK, CHUNK), 1)
  lower = jnp.where(row >= col, 1.0, 0.0)
  sums = iota((CHUNK, LANES), 1) < 2 * values
  cols = jnp.where(sums, tpu.multiply(lower, x, "float32"), x)
  last = cols[CHUNK - 1 :]

  def both(x: jax.Array) -> jax.Array:
    """The coarse part and the fine one, where the coarse one is."""
    return x + pltpu.roll(x, LANES - values, 1)

  enter, leave = jnp.exp(both(cols)), jnp.exp(both(last - cols))
  return Gates(cols, cols.T, enter, leave, values)


def gates_of(gates_ref, how: Plan) -> list[Gates]:
  """The gates of every chunk of a grid step, from what `pack_gates` made."""
  return [
    gates(gates_ref[0, 0, rows(chunk), :], how.values)
    for chunk in range(how.chunks)
  ]


def beta_row(gates: Gates, pair: tuple[int, int]) -> jax.Array:
  """beta_j of a pack: [1, 2 C]."""
  return _row(gates, pair, 2)


def decay(gates: Gates, pair: tuple[int, int]) -> jax.Array:
  """exp(G_i - G_j) of a pack on and below the diagonal, else 0: [C, 2 C]."""
  exponent = sum(
    _col(gates, pair, field) - _row(gates, pair, field) for field in (0, 1)
  )
  row, lane = iota((CHUNK, LANES), 0), iota((CHUNK, LANES), 1)
  # Positive above the diagonal: masked before the exponential.
  inside = row >= (lane & CHUNK - 1)
  return jnp.exp(jnp.where(inside, exponent, -jnp.inf))


def beta_col(gates: Gates, pair: tuple[int, int]) -> jax.Array:
  """beta_i of a pack: [C, 2 C]."""
  return _col(gates, pair, 2)


def _col(gates: Gates, pair: tuple[int, int], field: int) -> jax.Array:
  first, second = (head + field * gates.values for head in pair)
  half = iota((CHUNK, LANES), 1) >> 6
  lane = jnp.where(half == 0, first, second)
  return jnp.take_along_axis(gates.cols, lane, axis=1)


def _row(gates: Gates, pair: tuple[int, int], field: int) -> jax.Array:
  at = [head + field * gates.values for head in pair]
  return beside([gates.rows[n : n + 1] for n in at])


def grams(
  queries: Sequence[jax.Array], keys: Sequence[jax.Array], kind: Unit
) -> tuple[jax.Array, jax.Array]:
  """q k^t and k k^t of the two heads of a pack, [C, 2 C] each.

  Args:
    queries: [C, Dk], of each head; one if they share it.
    keys: likewise.
    kind: their type.
  """
  # Both halves of the lanes get the same products, for nothing.
  right = above(keys[0], keys[0]) if len(keys) == 1 else apart(keys)
  left = above(beside(queries), beside(keys))
  gram = dot(left, right, kind, (1, 1))  # [2 C, 2 C]
  return gram[:CHUNK], gram[CHUNK:]


def invert(a_ref, t_ref, spec: InverseSpec) -> None:
  """(I + A)^-1 of packs, from one reference to another, [packs, C, 2 C]."""
  formats = products.products(spec, tpu.multiply)
  if spec.method == "ladder" and spec.quant is None:
    tpu_ladder.kernel(a_ref, t_ref, products=formats, refine=spec.refine == 1)
    return
  for i in range(a_ref.shape[0]):
    a = jnp.stack([a_ref[i, :, :CHUNK], a_ref[i, :, CHUNK:]])
    t = methods.invert({(0, 0): a}, spec, formats, CHUNK)[0, 0]
    t_ref[i] = jnp.concatenate([t[0], t[1]], 1)


def interleave(programs: Iterable[Pieces], together: int = _TOGETHER) -> None:
  """Emits programs piece by piece in turn, some at a time.

  Mosaic schedules close to program order: what waits for the matrix unit needs
  something independent behind it.
  """
  waiting = iter(programs)
  running = list(itertools.islice(waiting, together))
  while running:
    for program in list(running):
      if next(program, _END) is _END:
        running.remove(program)
        running += itertools.islice(waiting, 1)


def dot(
  x: jax.Array, y: jax.Array, kind: Unit, contracted: tuple[int, int] = (1, 0)
) -> jax.Array:
  """x y, or with one of them transposed, of operands of a type, in float32."""
  full = kind == "float32"
  return lax.dot_general(
    x,
    y,
    (((contracted[0],), (contracted[1],)), ((), ())),
    # Mosaic takes HIGHEST for float32 alone.
    precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def groups(pair: tuple[int, int], ratio: int) -> list[list[int]]:
  """The value heads of a pack by the key head that they read, in order."""
  heads = sorted(set(pair))
  by_key: dict[int, list[int]] = {}
  for head in heads:
    by_key.setdefault(head // ratio, []).append(head)
  return list(by_key.values())


def rows(chunk: int) -> slice:
  """The tokens of a chunk of a grid step."""
  return slice(chunk * CHUNK, (chunk + 1) * CHUNK)


def lanes(head: int) -> slice:
  """A head among heads that stand side by side."""
  return slice(head * LANES, (head + 1) * LANES)


def split(x: jax.Array) -> list[jax.Array]:
  """Heads that stand side by side, [C, 128] each."""
  return [x[:, lanes(i)] for i in range(x.shape[1] // LANES)]


def spread(x: jax.Array, head: int) -> jax.Array:
  """A number a token, in lane `head`, in all lanes: [C, 128]."""
  return jnp.broadcast_to(x[:, head : head + 1], (x.shape[0], LANES))


def beside(parts: Sequence[jax.Array]) -> jax.Array:
  """Side by side in the lanes."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)


def above(top: jax.Array, bottom: jax.Array) -> jax.Array:
  """One above the other."""
  return jnp.concatenate([top, bottom], 0)


def apart(parts: Sequence[jax.Array]) -> jax.Array:
  """Two blocks on the diagonal of one, zeros beside them.

  Of a single one, the block and zeros below it: what the second half of a pack
  whose second head is missing multiplies.
  """
  zero = jnp.zeros_like(parts[0])
  if len(parts) == 1:
    return above(parts[0], zero)
  return above(beside([parts[0], zero]), beside([zero, parts[1]]))


def iota(shape: tuple[int, int], axis: int) -> jax.Array:
  """As `lax.broadcasted_iota`."""
  return lax.broadcasted_iota(jnp.int32, shape, axis)
