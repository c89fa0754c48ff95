"""What the programs of `reverse` for narrow and for wide keys share."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from neumann_jax.delta_rule.hopper.pieces import Piece
from neumann_jax.delta_rule.hopper.tiles import CHUNK, registers


def carry(
  refs: Any,
  piece: Piece,
  count: int,
  leave: Callable[..., None],
  step: Callable[..., Any],
) -> None:
  """A warpgroup's columns of the state's cotangent, from the end to the start.

  Args:
    refs: arrays in the card's memory, by the names of `reverse`.
    piece: which chunks of which head.
    count: chunks of a row.
    leave: n -> keeps the buffers moving where another program carries them.
    step: (scale, n, dS) -> dS before a chunk, the n-th from the end.
  """
  steps = piece.run - piece.end
  mine = steps * piece.carried
  pl.loop(0, steps - mine)(leave)
  mine_of = piece.row, piece.head, piece.columns(piece.group)
  scale = refs.scale[0]
  given = registers(refs.end.at[mine_of], optimized=False)
  known = jnp.where(piece.run == count, 1.0 / scale, 0.0)
  ds = lax.fori_loop(0, mine, functools.partial(step, scale), given * known)

  @pl.when((piece.end == 0) & (piece.carried == 1))
  def _finish():
    refs.start.at[mine_of][...] = ds * scale

  plgpu.wait_smem_to_gmem(0)


def write(refs: Any, s: Any, piece: Piece, chunk: Any, dv: Any) -> None:
  """dv of a chunk, while the copy of its state may be under way."""

  @pl.when(chunk < piece.write)
  def _is_written():
    at, mine = pl.ds(chunk * CHUNK, CHUNK), s.dv.at[piece.group]
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    mine.T[...] = dv.astype(s.dv.dtype)
    plgpu.commit_smem()
    columns = piece.columns(piece.group)
    dv_ref = refs.dv.at[piece.row, at, piece.head, columns]
    plgpu.copy_smem_to_gmem(mine, dv_ref)
