"""From the tokens of a Gated DeltaNet layer to what the rule takes of them.

Projection, convolution, SiLU, unit norms and gates, on any mesh; one token of
decoding takes `token_step` instead.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers import head_columns, placement
from neumann_jax.layers.convolution.document_conv import document_conv
from neumann_jax.layers.convolution.short_conv import short_conv
from neumann_jax.layers.head_columns import Part
from neumann_jax.layers.linear import product
from neumann_jax.layers.one_token import token_step
from neumann_jax.layers.one_token.token_step import Block, Weights

# (parts, x, taps, history=) -> what each part becomes, the new history.
Convolve = Callable[..., tuple[Sequence[jax.Array], jax.Array]]


def operands(
  x: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
  *,
  project: Callable[..., tuple[jax.Array, ...]],
  qkv: Any,
  block: Block,
  weights: Weights,
  rule: RuleOptions,
  kernels: bool,
) -> tuple[Operands, jax.Array, jax.Array]:
  """What the rule takes, the gate of its outputs and the new history.

  Args:
    x: [B, T, hidden], zeros at padding.
    history: [B, 2 Hk Dk + Hv Dv, W] before the first token, or [B, M, ...] of
      the documents of each row.
    segment_ids: [B, T] integers or None; not None for such a history.
    mask: [B, T] bool or None.
    project: (x, *names) to x times the matrices of these names, of "qkv", "z",
      "b" and "a".
    qkv: the layer whose matrix is "qkv".
    block: how many key heads, and how strong a write.
    weights: of the block besides its matrices.
    rule: the options of the rule.
    kernels: whether the rule that takes them is a kernel on a TPU, see
      `head_columns.takes`. Beside any other the convolution is XLA's, which has
      forward-mode derivatives too.
  """
  counts = block.key_heads, weights.a_log.shape[0]
  axis = placement.split_of_heads(x, rule.head_axis, *counts)
  # An adapter or codes are no plain matrix, whose parts could be sent.
  by_heads = axis is not None and type(qkv) is nnx.Linear
  ready = kernels and head_columns.can_read(rule, x, mask, by_heads=by_heads)
  convolve: Convolve
  found: Sequence[jax.Array]
  if ready:
    convolve = functools.partial(
      head_columns.columns, rule, segment_ids=segment_ids, axis=axis
    )
  else:
    convolve = functools.partial(_in_xla, rule, weights, segment_ids, mask)
  parts = head_columns.parts(block, weights)
  if by_heads:
    assert axis is not None
    z, b, a = project(x, "z", "b", "a")
    found, history = _by_heads(convolve, parts, x, qkv, history, weights, axis)
  else:
    columns, z, b, a = project(x, "qkv", "z", "b", "a")
    found, history = convolve(parts, columns, weights.conv, history=history)
  if not ready:
    found = token_step.activated(block, found, weights, z.dtype)
  q, k, v = found
  gates = token_step.gates(block, b, a, weights, mask)
  return Operands(q, k, v, *gates), z, history


def _in_xla(
  rule: RuleOptions,
  weights: Weights,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
  parts: Sequence[Part],
  x: jax.Array,
  taps: jax.Array,
  *,
  history: jax.Array,
) -> tuple[list[jax.Array], jax.Array]:
  """Convolved columns of each part in float32, and the new history."""
  if history.ndim == 4:
    assert segment_ids is not None
    y, kept = document_conv(x, taps, history=history, segment_ids=segment_ids)
  else:
    y, kept = short_conv(
      x,
      taps,
      history=history,
      segment_ids=segment_ids,
      mask=mask,
      axis_name=rule.sequence_axis,
    )
  return token_step.split(y, weights) if len(parts) > 1 else [y], kept


def _by_heads(
  convolve: Convolve,
  parts: Sequence[Part],
  x: jax.Array,
  qkv: nnx.Linear,
  history: jax.Array,
  weights: Weights,
  axis: str,
) -> tuple[list[jax.Array], jax.Array]:
  """Columns of q, k and v where a mesh axis splits heads, and the history.

  In a checkpoint they are one block, whose equal parts are no heads: each
  device would compute columns of others and send them. So the three parts of
  the weights, which are small, are sent to where their heads are.
  """
  kernel = qkv.kernel[...].astype(x.dtype)
  given = zip(
    parts,
    *(token_step.split(y, weights) for y in (kernel, weights.conv)),
    token_step.split(history, weights, axis=-2),
    strict=True,
  )
  found = [
    convolve(
      [part],
      product(x, placement.by_heads(kernel, axis)),
      placement.by_heads(conv, axis),
      history=history,
    )
    for part, kernel, conv, history in given
  ]
  columns, histories = zip(*found)
  return [column for (column,) in columns], jnp.concatenate(histories, axis=-2)
