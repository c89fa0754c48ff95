"""First columns of a Gated DeltaNet block where a mesh axis splits its heads.

In a checkpoint q, k and v are one block of columns, whose equal parts are no
heads: each device would compute columns of others and send them. So weights,
which are small, are sent to where their heads are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from neumann_jax.layers import token_step
from neumann_jax.layers.linear import product
from neumann_jax.layers.short_conv import short_conv
from neumann_jax.layers.token_split import TokenSplit
from neumann_jax.layers.token_step import Weights


def project(
  split: TokenSplit,
  x: jax.Array,
  layers: Sequence[nnx.Linear],
  weights: Weights,
  history: jax.Array,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
  """Columns of q, k and v, convolved, by heads; z, b and a; and the history.

  Args:
    split: where tokens are; it divides the heads.
    x: [B, T, hidden], between blocks.
    layers: what makes q|k|v, z, b and a.
    weights: of the block.
    history: [B, D, W], see `short_conv`.
    segment_ids: [B, T] integers or None.
    mask: [B, T] bool or None.
  """
  parts = token_step.split(history, weights, axis=1)
  sizes = [part.shape[1] for part in parts]
  n = split.mesh.shape[split.axis]
  cuts = sizes[0] // n, (sizes[0] + sizes[1]) // n

  def run(x, kernels, conv, history, segment_ids, mask):
    kernels = split.own_columns(kernels[0], sizes), *kernels[1:]
    x = split.gather(x)
    qkv, *raw = (product(x, kernel) for kernel in kernels)
    qkv, history = short_conv(
      qkv,
      split.own_columns(conv, sizes),
      history=jnp.concatenate(history, axis=1),
      segment_ids=segment_ids,
      mask=mask,
    )
    columns = jnp.split(qkv, cuts, axis=-1)
    return columns, raw, jnp.split(history, cuts, axis=1)

  kernels = [layer.kernel[...].astype(x.dtype) for layer in layers]
  by_columns, rows = P(None, split.axis), P(split.rows)
  channels = P(split.rows, split.axis)  # of a history [B, D, W]
  columns, raw, histories = split.run(
    run,
    (split.between, by_columns, by_columns, channels, rows, rows),
    (split.columns, split.columns, channels),
  )(x, kernels, weights.conv, parts, segment_ids, mask)
  return columns, raw, jnp.concatenate(histories, axis=1)
