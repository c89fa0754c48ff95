"""Chunk inverses on a TPU that ours are compared with, in float32.

Two of them are forward substitution, row by row on the vector unit: T starts
as I, row i is final once the rows above it have been taken off it, each A_ik
times over. They differ in what lies in the 128 lanes of a register. The third
is tokamax's, where it is installed.

Axes: C chunk, n matrices.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TOKAMAX_MODULE = "tokamax._src.ops.causal_conv1d_gated_delta_rule.compute_gdn"
# Rows that tokamax substitutes before it multiplies; its own kernel's choice.
TOKAMAX_BLOCK = 16
# Matrices that `rows_in_lanes` works on at once. Eight spill more than four.
GROUP = 4
# Columns of T, in eights, that `batch_in_lanes` keeps in registers.
SLABS = 4
# As the limit of our own kernel.
VMEM_LIMIT = 50 * 2**20
ROWS = 8  # of a register


def rows_in_lanes(
  a: jax.Array,  # float32; only the strictly lower part is read
  block: int,  # matrices a grid step, a multiple of `GROUP`
  *,
  interpret: bool = False,  # runs the body on the CPU
) -> jax.Array:
  """(I + A)^-1, [n, C, C], with a row of a matrix in the lanes."""
  return _call(_rows_in_lanes, "peer_rows", a, block, interpret)


def batch_in_lanes(
  a: jax.Array,  # float32; only the strictly lower part is read
  block: int,  # matrices a grid step; below 128 lanes stay empty
  *,
  interpret: bool = False,  # runs the body on the CPU
) -> jax.Array:
  """(I + A)^-1, [n, C, C], with one entry of every matrix in the lanes."""
  c = a.shape[-1]
  scratch = [pltpu.VMEM((c, c, block), jnp.float32)] * 2
  return _call(_batch_in_lanes, "peer_lanes", a, block, interpret, scratch)


def tokamax(a: jax.Array, block: int, *, interpret: bool = False) -> jax.Array:
  """(I + A)^-1, [n, C, C], by tokamax's `invert_triangular_matrix`.

  A is strictly lower, float32; `block` matrices a grid step. ImportError where
  tokamax is missing or has no such function.
  """
  kernel = functools.partial(_tokamax, function=tokamax_function())
  return _call(kernel, "peer_tokamax", a, block, interpret)


def tokamax_function() -> Callable[[jax.Array, int], jax.Array]:
  """The function itself, or an ImportError with the reason."""
  try:
    return importlib.import_module(TOKAMAX_MODULE).invert_triangular_matrix
  except AttributeError as error:
    raise ImportError(str(error)) from error


def _call(
  kernel: Callable,
  name: str,
  a: jax.Array,
  block: int,
  interpret: bool,
  scratch: Sequence[Any] = (),
) -> jax.Array:
  spec = pl.BlockSpec((block, *a.shape[1:]), lambda n: (n, 0, 0))
  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct(a.shape, a.dtype),
    grid=(a.shape[0] // block,),
    in_specs=[spec],
    out_specs=spec,
    scratch_shapes=list(scratch),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT
    ),
    interpret=interpret,
    name=name,
  )(a)


def _iota(shape: tuple[int, ...], axis: int) -> jax.Array:
  return lax.broadcasted_iota(jnp.int32, shape, axis)


def _rows_in_lanes(a_ref, out_ref) -> None:
  """Each final row is taken off every row below it at once."""

  def group(at, carry):
    _substitute(a_ref, out_ref, pl.ds(at * GROUP, GROUP))
    return carry

  lax.fori_loop(0, a_ref.shape[0] // GROUP, group, None)


def _substitute(a_ref, out_ref, chosen: Any) -> None:
  c = a_ref.shape[-1]
  row, lane = _iota((GROUP, c, c), 1), _iota((GROUP, c, c), 2)
  a = jnp.where(row > lane, a_ref[chosen], 0.0)
  eye = jnp.where(row == lane, 1.0, 0.0)
  slabs = [eye[:, at : at + ROWS] for at in range(0, c, ROWS)]
  for k in range(c - 1):
    t = slabs[k // ROWS][:, k % ROWS : k % ROWS + 1]  # final, [n, 1, C]
    for s in range((k + 1) // ROWS, c // ROWS):
      column = a[:, ROWS * s : ROWS * (s + 1), k : k + 1]
      slabs[s] = slabs[s] - column * t
  for s, slab in enumerate(slabs):
    out_ref[chosen, ROWS * s : ROWS * (s + 1), :] = slab


def _batch_in_lanes(a_ref, out_ref, at, ts) -> None:
  """Rows of A and of T - I are held as [C, n], entries in sublanes."""
  n, c, _ = a_ref.shape
  lane, row = _iota((n, c), 1), _iota((c, n), 0)
  for i in range(c):
    at[i] = jnp.where(lane < i, a_ref[:, i, :], 0.0).T
    ts[i] = jnp.zeros((c, n), jnp.float32)
  blocks = c // ROWS
  for first in range(0, blocks, SLABS):
    for block in range(first, blocks):
      _eight_rows(at, ts, block, range(first, min(block + 1, first + SLABS)))
  for i in range(c):
    out_ref[:, i, :] = jnp.where(row == i, 1.0, ts[i]).T


def _eight_rows(at, ts, block: int, slabs: range) -> None:
  """Rows 8 block and following of T - I, the columns of `slabs` only."""
  rows = slice(ROWS * block, ROWS * (block + 1))
  columns = {s: slice(ROWS * s, ROWS * (s + 1)) for s in slabs}
  new = {s: -at[rows, columns[s]] for s in slabs}  # [8, 8, n]
  for k in range(ROWS * slabs[0], rows.start):
    factor = at[rows, k : k + 1]  # [8, 1, n]
    for s in slabs:
      if s <= k // ROWS:
        new[s] = new[s] - factor * ts[k, columns[s]][None]
  for s in slabs:
    own = [new[s][i] for i in range(ROWS)]
    for k in range(ROWS):
      ts[rows.start + k, columns[s]] = own[k]
      for i in range(k + 1, ROWS):
        at_k = rows.start + k
        factor = at[rows.start + i, at_k : at_k + 1]  # [1, n]
        own[i] = own[i] - factor * own[k]


def _tokamax(a_ref, out_ref, *, function: Callable) -> None:
  shape = a_ref.shape
  eye = jnp.where(_iota(shape, 1) == _iota(shape, 2), 1.0, 0.0)
  out_ref[...] = function(a_ref[...] + eye, TOKAMAX_BLOCK)
