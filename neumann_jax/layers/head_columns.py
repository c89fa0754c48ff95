"""Columns of heads from a projection's: convolution, SiLU and unit norm.

Where the whole rule is a kernel on a TPU, what comes before it is one too, see
`kernels/conv_tpu.py`: q, k and v are written as the rule's kernels read them.
Elsewhere it is `short_conv`, and what follows it in `token_step.activated`.

Kept for the backward pass are the columns before the convolution alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from neumann_jax import backends, sequence_axis
from neumann_jax.delta_rule import layout, on_mesh
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from neumann_jax.layers.convolution.short_conv import (
  last_columns,
  short_conv,
  tokens_since,
)
from neumann_jax.layers.kernels import (
  both_passes,
  conv_gradients_tpu,
  conv_tpu,
)
from neumann_jax.layers.kernels.conv_tpu import LANES
from neumann_jax.layers.norms import unit_norm
from neumann_jax.layers.one_token.token_step import Block, Weights


class Part(NamedTuple):
  """Heads that lie side by side.

  Attributes:
    heads: how many, of 128 columns each.
    normed: whether they are divided by their norms, as q and k are.
  """

  heads: int
  normed: bool


def parts(block: Block, weights: Weights) -> list[Part]:
  """q, k and v of a layer."""
  key = Part(block.key_heads, normed=True)
  return [key, key, Part(weights.a_log.shape[0], normed=False)]


def takes(
  how: RuleOptions, block: Block, weights: Weights, x: jax.Array
) -> bool:
  """Whether the rule's own kernels run on a TPU, and these before and after.

  Where only these do not, it says why, once.

  Args:
    how: the options of the rule.
    block: of the layer.
    weights: of the layer; only shapes are read.
    x: [B, T, ...] of the type of the activations.
  """
  taps, channels = weights.conv.shape
  hk, hv, dv = block.key_heads, weights.a_log.shape[0], weights.norm.shape[0]
  dk = (channels - hv * dv) // (2 * hk)
  # Only their shapes and types are read.
  key: Any = jax.ShapeDtypeStruct((*x.shape[:2], hk, dk), x.dtype)
  value: Any = jax.ShapeDtypeStruct((*x.shape[:2], hv, dv), x.dtype)
  gate: Any = jax.ShapeDtypeStruct((*x.shape[:2], hv), jnp.float32)
  rule = Operands(key, key, value, gate, gate)
  if not tpu_rule.takes(rule, how):
    return False
  most = conv_tpu.ROWS
  if taps > most:
    reason = f"a convolution may have {most} taps there, got {taps}"
    backends.say_fallback(how.implementation, "tpu", reason)
  return taps <= most


def can_read(
  how: RuleOptions, x: jax.Array, mask: jax.Array | None, *, by_heads: bool
) -> bool:
  """Whether `columns` may compute this call; says why not, once.

  Args:
    how: the options of the rule, which `takes` allows.
    x: [B, T, hidden].
    mask: [B, T] of padding, or None.
    by_heads: whether q, k and v are projections of their own.
  """
  mesh = on_mesh.mesh_of(x)
  axis = on_mesh.head_axis(mesh, how.head_axis)
  reason = None
  if mask is not None:
    reason = "the convolution of rows with padding has no kernel"
  elif not by_heads and axis is not None and mesh.shape[axis] > 1:
    reason = f"mesh axis {axis!r} splits q|k|v of the convolution as one block"
  if reason is not None:
    backends.say_fallback(how.implementation, "tpu", reason)
  return reason is None


def columns(
  how: RuleOptions,
  parts: Sequence[Part],
  x: jax.Array,
  taps: jax.Array,
  *,
  history: jax.Array,
  segment_ids: jax.Array | None,
  axis: str | None,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Each part's heads, [B, T, heads, 128] in x's type, and the new history.

  Args:
    how: the options of the rule, which `takes` allows.
    parts: of the columns, in their order.
    x: [B, T, D], raw columns.
    taps: [W, D].
    history: [B, D, W], the columns before x, see `short_conv`, where
      `how.sequence_axis` splits the tokens too.
    segment_ids: [B, T] integers or None.
    axis: of a mesh that splits the heads of the one part; None: none does.
  """
  if how.sequence_axis is not None:
    history = sequence_axis.conv_history(
      x, history, segment_ids, how.sequence_axis
    )
  history = history.astype(x.dtype)
  floats = x, taps.astype(jnp.float32), history
  mesh = on_mesh.mesh_of(x, taps, history)
  n = 1 if axis is None else mesh.shape[axis]
  own = tuple(part._replace(heads=part.heads // n) for part in parts)

  def run(x, taps, history, ids):
    floats = layout.varying_alike((x, taps, history))
    return backends.run_with_backward(
      _OPERATION, how.implementation, own, *floats, ids
    )

  if mesh.size > 1 and on_mesh.free_axes(mesh):
    rows = on_mesh.row_axes(mesh, how.batch_axes, x.shape[0])
    run = on_mesh.spread(
      run,
      mesh=mesh,
      in_specs=(P(rows, None, axis), P(None, axis), P(rows, axis), P(rows)),
      out_specs=(P(rows, None, axis),) * len(parts),
    )
  kept = last_columns(x, history, segment_ids, how.sequence_axis)
  return run(*floats, segment_ids), kept


def _in_xla(
  parts: tuple[Part, ...],
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
) -> tuple[jax.Array, ...]:
  y, _ = short_conv(x, taps, history=history, segment_ids=segment_ids)
  y = nnx.silu(y).astype(x.dtype).reshape(*x.shape[:2], -1, LANES)
  found = []
  for first, part in _firsts(parts):
    some = y[:, :, first : first + part.heads]
    found.append(unit_norm(some).astype(x.dtype) if part.normed else some)
  return tuple(found)


def _given(
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """What the kernels take in place of history and documents."""
  before = conv_tpu.BEFORE - history.shape[2]
  history = jnp.swapaxes(history, 1, 2)  # [B, W, D]
  history = jnp.pad(history, [(0, 0), (before, 0), (0, 0)])
  since = None
  if segment_ids is not None:
    since = tokens_since(jnp.asarray(segment_ids), len(taps))
    since = layout.varying_as(since, (x,))
  return x, taps, history, since


def _firsts(parts: tuple[Part, ...]) -> list[tuple[int, Part]]:
  starts = [sum(p.heads for p in parts[:i]) for i in range(len(parts))]
  return list(zip(starts, parts))


def _launch(
  parts: tuple[Part, ...],
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  **options: Any,
) -> tuple[jax.Array, ...]:
  x, taps, history, since = _given(x, taps, history, segment_ids)
  found = []
  for first, part in _firsts(parts):
    flat = conv_tpu.forward(
      x,
      taps,
      history,
      since,
      first=first,
      heads=part.heads,
      normed=part.normed,
      **options,
    )
    found.append(flat.reshape(*x.shape[:2], part.heads, LANES))
  return tuple(found)


def _gradients(
  parts: tuple[Part, ...],
  x: jax.Array,
  taps: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  cotangents: tuple[jax.Array, ...],
  **options: Any,
) -> tuple[jax.Array, ...]:
  """Cotangents of x, taps and history by the kernels."""
  # The history reaches the first W - 1 tokens only; of one tap none, whose
  # cotangent is then 0 of one token as well.
  length, reach = x.shape[1], max(len(taps) - 1, 1)
  start = slice(0, min(reach, length))
  ids = None if segment_ids is None else segment_ids[:, start]
  _, pull = jax.vjp(
    lambda h: _in_xla(parts, x[:, start], taps, h, ids), history
  )
  (d_history,) = pull(tuple(g[:, start] for g in cotangents))
  x, taps, before, since = _given(x, taps, history, segment_ids)
  tokens = conv_tpu.block(length, 0, 1)[0]
  x = layout.padded(x, tokens)
  since = None if since is None else layout.padded(since, tokens)
  d_x: jax.Array | None = None
  d_taps = []
  for (first, part), g in zip(_firsts(parts), cotangents):
    flat = g.astype(x.dtype).reshape(*g.shape[:2], -1)
    d_x, d = conv_gradients_tpu.gradients(
      x,
      taps,
      before,
      since,
      layout.padded(flat, tokens),
      d_x,
      first=first,
      heads=part.heads,
      normed=part.normed,
      **options,
    )
    d_taps.append(d)
  assert d_x is not None
  return d_x[:, :length], jnp.concatenate(d_taps, axis=1), d_history


_OPERATION = both_passes.operation(_in_xla, _launch, _gradients, floats=3)
