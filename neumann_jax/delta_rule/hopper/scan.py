"""The recurrence over chunks, forward, on a Hopper GPU.

With R = T - I of every chunk, S^T [Dv, Dk] the state and G the gates' sums in
base 2:

  E = beta (v - 2^G k S),  X = T E = E + R E,
  o = scale (2^G q S + P X),  P = tril(q k^t 2^(G_i - G_j)),
  S <- 2^G_C S + k^t (2^(G_C - G) X).

The diagonal of T multiplies E as it is, only R takes it rounded.

A program carries 128 columns of values, two warpgroups 64 of them each, and a
third loads. How, depends on the width of keys: `narrow_scan` and `wide_scan`.

A row is cut into pieces that run side by side. Each starts early enough, at a
chunk before its own, that what it does not know has decayed below the rounding
of float32: `start` says where it begins to run, 0 being exact, and where to
write. Where nothing decays, a row is one chain, and two programs carry half of
its columns each: alone on a multiprocessor, a warpgroup takes a chunk in 1.6 us
in place of 2.3 (keys of 128, H200).
"""

import types
from typing import Any

import jax
import jax.numpy as jnp

from neumann_jax.delta_rule.hopper import narrow_scan, wide_scan
from neumann_jax.delta_rule.hopper.pieces import Piece
from neumann_jax.delta_rule.hopper.scores import scores
from neumann_jax.delta_rule.hopper.tiles import CHUNK, WIDTH, launch


def outputs(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  start: jax.Array,
  state: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Outputs of all tokens and the final state.

  Args:
    q: [B, T, Hk, Dk] bfloat16, T a multiple of 64, Dk 128 or 256.
    k: [B, T, Hk, Dk] bfloat16.
    v: [B, T, Hv, Dv] bfloat16, Dv a multiple of 128.
    t: R = T - I [B, Hv, T, C] bfloat16, from `wy_gpu.inverse`.
    gates: G [B, Hv, T] float32, in base 2.
    beta: [B, Hv, T] float32, above 0.
    scale: of the output, [1] float32.
    start: [B, Hv, P, 4] int32, from `pieces.starts`: the chunks at which each
      piece of a row begins to run and to write, the end of both, and its halves
      of every 128 columns, 3 being both.
    state: [B, Hv, Dv, Dk] float32, the transposed state before the first token.
    interpret: for the interpreter of Mosaic GPU kernels.

  Returns:
    out [B, T, Hv, Dv] and the final state, transposed, [B, Hv, Dv, Dk] float32.
  """
  given = {"q": q, "k": k, "v": v, "t": t, "gates": gates, "beta": beta}
  if k.shape[3] > WIDTH:
    given["p"] = scores(q, k, gates, interpret=interpret)
  final = jax.ShapeDtypeStruct(state.shape, jnp.float32)
  given |= {"scale": scale, "start": start, "state": state}
  return _scan(given, {"out": v, "final": final}, interpret)


def states(
  k: jax.Array,
  v: jax.Array,
  t: jax.Array,
  gates: jax.Array,
  beta: jax.Array,
  start: jax.Array,
  state: jax.Array,
  *,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """What the backward pass reads of the recurrence; arguments as `outputs`.

  Returns:
    Y = X / beta [B, T, Hv, Dv] and the transposed state before every chunk
    [B, Hv, N, Dv, Dk], both bfloat16.
  """
  b, hv, *sizes = state.shape
  shape = b, hv, k.shape[1] // CHUNK, *sizes
  kept = {"y": v, "h": jax.ShapeDtypeStruct(shape, k.dtype)}
  given = {"k": k, "v": v, "t": t, "gates": gates, "beta": beta}
  return _scan(given | {"start": start, "state": state}, kept, interpret)


def _scan(given, found, interpret):
  """Of arrays by name, to those of the types of `found`."""
  k, v, start = given["k"], given["v"], given["start"]
  hv, blocks = v.shape[2], v.shape[3] // WIDTH
  forward = "q" in given
  form = narrow_scan if k.shape[3] == WIDTH else wide_scan

  def body(*arrays, **scratch):
    refs = types.SimpleNamespace(**dict(zip((*given, *found), arrays)))
    piece = Piece.read(refs.start, hv // k.shape[2], blocks)
    shared = types.SimpleNamespace(**scratch)
    form.program(refs, shared, piece, k.shape[1] // CHUNK, forward=forward)

  return launch(
    body,
    name="delta_rule_outputs" if forward else "delta_rule_states",
    out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in found.values()],
    scratch=form.scratch(k.shape[3], k.dtype, forward=forward),
    grid=(v.shape[0], hv * blocks, start.shape[2]),
    grid_names=("b", "h", "p"),
    warpgroups=3,
    interpret=interpret,
  )(*given.values())
