"""A call of a Gated DeltaNet layer: its tokens by chunks, or a single one.

The layer has the parameters and the options; here they meet the tokens.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from neumann_jax import sequence_axis
from neumann_jax.delta_rule import api
from neumann_jax.delta_rule import inputs as operands
from neumann_jax.delta_rule.chunks import chunk_matrix
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.sequence_parallel import sharded
from neumann_jax.layers import head_columns, head_norm, rule_operands
from neumann_jax.layers.caches.cache import Cache, check_cache, documents_a_row
from neumann_jax.layers.one_token import row_products, token_step
from neumann_jax.layers.one_token.token_step import Projected

if TYPE_CHECKING:
  from neumann_jax.layers.gated_delta_net import GatedDeltaNet


def mixed(
  layer: "GatedDeltaNet",
  x: jax.Array,
  cache: Cache | None,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> tuple[jax.Array, Cache]:
  """[B, T, hidden] -> [B, T, hidden], and the cache after the last token."""
  x, mask = _accepted(layer, x, cache, segment_ids, mask)
  rule = layer.rule
  if cache is None:
    cache = layer.init_cache(x.shape[0])
  count = documents_a_row(cache.conv_state.shape[0], x.shape[0], segment_ids)
  if x.shape[1] == 1 and rule.sequence_axis is None and count is None:
    # A chunk of one token has nothing to invert, and padding it to C tokens
    # would make a step of decoding C times as dear. It is of the document
    # that the cache enters, whatever its number.
    y, cache = token_step.step(
      rule,
      layer.block(),
      Projected(*_projected(layer, x, "qkv", "z", "b", "a")),
      layer.between(),
      cache,
      mask,
    )
    return _out(layer, y), cache
  before = cache
  if count is not None:  # [B M, ...] -> [B, M, ...]
    before = Cache(*(y.reshape(x.shape[0], count, *y.shape[1:]) for y in cache))
  # A state for each document is of no kernel of the whole rule.
  kernels = count is None and head_columns.takes(
    rule, layer.block(), layer.between(), x
  )
  inputs, z, conv_state = _operands(
    layer, x, before.conv_state, segment_ids, mask, kernels=kernels
  )
  over_shards = rule.sequence_axis is not None
  run = sharded.over_shards if over_shards else api.with_options
  out, state = run(
    inputs,
    rule,
    initial_state=before.recurrent_state,
    segment_ids=segment_ids,
  )
  if kernels:
    weight = layer.norm.weight[...]
    y = head_norm.gated(rule, out, z, weight, layer.norm.eps)
  else:
    y = layer.norm(out, z.reshape(out.shape))  # [B, T, Hv, Dv]
  new = Cache(
    conv_state.reshape(cache.conv_state.shape),
    state.reshape(cache.recurrent_state.shape),
  )
  return _out(layer, y.reshape(*x.shape[:2], -1)), new


def matrices(
  layer: "GatedDeltaNet",
  x: jax.Array,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> chunk_matrix.ChunkMatrices:
  """What the layer would invert for x, and its gates."""
  x, mask = _accepted(layer, x, None, segment_ids, mask)
  history = layer.init_cache(x.shape[0]).conv_state
  inputs, _, _ = _operands(layer, x, history, segment_ids, mask, kernels=False)
  return chunk_matrix.chunk_matrices(
    inputs.k,
    inputs.log_decay,
    inputs.beta,
    segment_ids=segment_ids,
    chunk_size=layer.rule.chunk_size,
  )


def _accepted(
  layer: "GatedDeltaNet",
  x: jax.Array,
  cache: Cache | None,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
  """x with zeros at padding, and the mask of bool, of a call that is right."""
  sequence_axis.check(layer.rule.sequence_axis, mask)
  operands.check_hidden(x, layer.config.hidden_size, segment_ids, mask)
  if cache is not None:
    rows = x.shape[0]
    if isinstance(cache, Cache):
      found = cache.conv_state.shape[0]
      rows *= documents_a_row(found, rows, segment_ids) or 1
    like = jax.eval_shape(functools.partial(layer.init_cache, rows))
    check_cache(cache, like)
  x = x.astype(layer.dtype)
  if mask is None:
    return x, None
  mask = jnp.asarray(mask).astype(bool)
  # By selection: padding may hold anything, NaN included.
  return jnp.where(mask[..., None], x, 0), mask


def _operands(
  layer: "GatedDeltaNet",
  x: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
  *,
  kernels: bool,
) -> tuple[Operands, jax.Array, jax.Array]:
  """What the rule takes, the gate of its outputs and the new history."""
  return rule_operands.operands(
    *(x, history, segment_ids, mask),
    project=functools.partial(_projected, layer),
    qkv=layer.in_proj_qkv,
    block=layer.block(),
    weights=layer.between(),
    rule=layer.rule,
    kernels=kernels,
  )


def _projected(
  layer: "GatedDeltaNet", x: jax.Array, *names: str
) -> tuple[jax.Array, ...]:
  matrices = [getattr(layer, f"in_proj_{name}") for name in names]
  return row_products.project(layer.rule.implementation, x, matrices)


def _out(layer: "GatedDeltaNet", y: jax.Array) -> jax.Array:
  how = layer.rule.implementation
  return row_products.project(how, y, [layer.out_proj])[0]
