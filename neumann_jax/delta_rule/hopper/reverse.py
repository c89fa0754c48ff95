"""The recurrence over chunks, backward, on a Hopper GPU.

In the notation of `scan`, from the last chunk to the first, dS the
cotangent of the state that leaves a chunk:

  dX = P^t dO + 2^(G_C - G) (k dS),  dv = beta (dX + R^t dX),
  dS <- 2^G_C dS + q^t (2^G dO) - k^t (2^G dv).

dS and dX are those of outputs without their scale, which only dv and the
initial state's cotangent get: a factor on dO would round it once more, and
where nothing decays such errors would never leave the state.

Programs are those of `scan`: `narrow_reverse` and `wide_reverse`, by the width
of keys. Pieces run side by side as they do forward; `stop` has the chunks
before which a piece begins to walk back and to write, where it ends, and its
columns.
"""

import types
from typing import Any

import jax
import jax.numpy as jnp

from neumann_jax.delta_rule.hopper import narrow_reverse, wide_reverse
from neumann_jax.delta_rule.hopper.pieces import Piece
from neumann_jax.delta_rule.hopper.scores import scores
from neumann_jax.delta_rule.hopper.tiles import CHUNK, WIDTH, launch


def reverse(
  q: jax.Array,
  k: jax.Array,
  do: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  stop: jax.Array,
  ds: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The recurrence backward, over all chunks.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64, Dk 128 or 256.
    k: [B, T, Hk, Dk] bfloat16.
    do: [B, T, Hv, Dv] bfloat16, cotangent of the outputs, Dv a multiple of 128.
    t: R = T - I [B, Hv, T, C] bfloat16.
    gates: G [B, Hv, T] float32, in base 2.
    beta: [B, Hv, T] float32.
    scale: of the output, [1] float32, not 0.
    stop: [B, Hv, P, 4] int32, from `pieces.stops`: the chunks before which each
      piece of a row begins to walk back and to write, its first chunk, and its
      halves of every 128 columns, 3 being both.
    ds: [B, Hv, Dv, Dk] float32, cotangent of the transposed final state.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    dv [B, T, Hv, Dv]; dS / scale behind every chunk, transposed,
    [B, Hv, N, Dv, Dk] bfloat16; and the cotangent of the transposed initial
    state [B, Hv, Dv, Dk] float32.
  """
  given = {"q": q, "k": k, "do": do, "t": t, "gates": gates, "beta": beta}
  form: types.ModuleType = narrow_reverse
  if k.shape[3] > WIDTH:
    form = wide_reverse
    given["p"] = scores(q, k, gates, interpret=interpret)
  given |= {"scale": scale, "stop": stop, "end": ds}
  b, hv, *sizes = ds.shape
  count, blocks = k.shape[1] // CHUNK, do.shape[3] // WIDTH
  names = (*given, "dv", "ds", "start")

  def body(*arrays, **scratch):
    refs = types.SimpleNamespace(**dict(zip(names, arrays)))
    piece = Piece.read(refs.stop, hv // k.shape[2], blocks)
    form.program(refs, types.SimpleNamespace(**scratch), piece, count)

  return launch(
    body,
    name="delta_rule_reverse",
    out_type=[
      jax.ShapeDtypeStruct(do.shape, k.dtype),
      jax.ShapeDtypeStruct((b, hv, count, *sizes), k.dtype),
      jax.ShapeDtypeStruct(ds.shape, jnp.float32),
    ],
    scratch=form.scratch(k.shape[3], k.dtype),
    grid=(b, hv * blocks, stop.shape[2]),
    grid_names=("b", "h", "p"),
    warpgroups=3,
    interpret=interpret,
  )(*given.values())
