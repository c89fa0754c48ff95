"""From the tokens of a Gated DeltaNet layer to what the rule takes of them.

Projection, convolution, SiLU, unit norms and gates, on any mesh; one token of
decoding takes `token_step` instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.layers import placement, token_step
from neumann_jax.layers.convolution.document_conv import document_conv
from neumann_jax.layers.convolution.short_conv import short_conv
from neumann_jax.layers.linear import product
from neumann_jax.layers.token_step import Block, Weights

Convolve = Callable[..., tuple[jax.Array, jax.Array]]


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
  """
  convolve = functools.partial(
    short_conv,
    segment_ids=segment_ids,
    mask=mask,
    axis_name=rule.sequence_axis,
  )
  if history.ndim == 4:
    assert segment_ids is not None
    convolve = functools.partial(document_conv, segment_ids=segment_ids)
  counts = block.key_heads, weights.a_log.shape[0]
  axis = placement.split_of_heads(x, rule.head_axis, *counts)
  # An adapter or codes are no plain matrix, whose parts could be sent.
  if axis is None or type(qkv) is not nnx.Linear:
    columns, z, b, a = project(x, "qkv", "z", "b", "a")
    columns, history = convolve(columns, weights.conv, history=history)
    parts = token_step.split(columns, weights)
  else:
    z, b, a = project(x, "z", "b", "a")
    parts, history = _by_heads(convolve, x, qkv, history, weights, axis)
  return token_step.operands(block, parts, b, a, weights, mask), z, history


def _by_heads(
  convolve: Convolve,
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
  parts = zip(
    *(token_step.split(y, weights) for y in (kernel, weights.conv)),
    token_step.split(history, weights, axis=-2),
    strict=True,
  )
  found = [
    convolve(
      product(x, placement.by_heads(kernel, axis)),
      placement.by_heads(conv, axis),
      history=history,
    )
    for kernel, conv, history in parts
  ]
  columns, histories = zip(*found)
  return list(columns), jnp.concatenate(histories, axis=-2)
