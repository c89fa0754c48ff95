"""The decoder layer, and a stack of them: separate or scanned."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import lax

from neumann_jax.layers.attention import GatedAttention
from neumann_jax.layers.feed_forward import SparseExperts, SwiGLU
from neumann_jax.layers.gated_delta_net import GatedDeltaNet
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.positions import Positions
from neumann_jax.model_config import Execution, ModelConfig

LayerCache = Any  # Cache or KeyValueCache, as the layer's kind has it

_SAVED = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Tokens(NamedTuple):
  """What every layer needs to know of the tokens of a call.

  Attributes:
    positions: their places.
    segment_ids: [B, T] or None.
    mask: [B, T] bool or None.
  """

  positions: Positions
  segment_ids: jax.Array | None
  mask: jax.Array | None


class DecoderLayer(nnx.Module):
  """x + mixer(norm(x)), then x + feed_forward(norm(x)).

  Args:
    config: the architecture.
    execution: how it is computed.
    index: which of the model's layers.
    rngs: source of the initial parameters.
  """

  def __init__(
    self,
    config: ModelConfig,
    execution: Execution,
    index: int,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    norm = functools.partial(
      RMSNorm,
      config.hidden_size,
      eps=config.rms_norm_eps,
      param_dtype=execution.param_dtype,
    )
    self.input_layernorm = norm()
    self.is_linear = config.layer_types[index] == "linear_attention"
    if self.is_linear:
      self.linear_attn = GatedDeltaNet(config, execution, rngs=rngs)
    else:
      self.self_attn = GatedAttention(config, execution, rngs=rngs)
    self.post_attention_layernorm = norm()
    self.mlp: SparseExperts | SwiGLU
    if config.is_sparse(index):
      self.mlp = SparseExperts(config, execution, rngs=rngs)
    else:
      self.mlp = SwiGLU(
        config, execution, width=config.intermediate_size, rngs=rngs
      )

  def init_cache(self, batch: int, capacity: int) -> LayerCache:
    """The layer's cache before the first token."""
    if self.is_linear:
      return self.linear_attn.init_cache(batch)
    return self.self_attn.init_cache(batch, capacity)

  def __call__(
    self,
    x: jax.Array,
    tokens: Tokens,
    cache: LayerCache = None,
  ) -> tuple[jax.Array, LayerCache]:
    """[B, T, hidden] -> [B, T, hidden], and the cache (None for None)."""
    mixed, new = self._mix(self.input_layernorm(x), tokens, cache)
    x = x + mixed
    x = x + self.mlp(self.post_attention_layernorm(x))
    return x, None if cache is None else new

  def _mix(
    self, x: jax.Array, tokens: Tokens, cache: LayerCache
  ) -> tuple[jax.Array, LayerCache]:
    if self.is_linear:
      return self.linear_attn(
        x, cache=cache, segment_ids=tokens.segment_ids, mask=tokens.mask
      )
    return self.self_attn(x, tokens.positions, cache=cache)


def make_layers(
  config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
) -> list[DecoderLayer]:
  """The layers of a model; scanned ones are stacked over the periods.

  Args:
    config: the architecture.
    execution: `scan_layers` decides.
    rngs: source of the initial parameters.

  Returns:
    One layer each, or one for each layer of a period whose parameters lead
    with the periods.

  Raises:
    ValueError: if layers are to be scanned but none repeat.
  """
  depth, period = config.num_hidden_layers, config.period
  make = functools.partial(DecoderLayer, config, execution)
  if not execution.scan_layers:
    return [make(i, rngs=rngs) for i in range(depth)]
  if period == depth:
    raise ValueError(
      f"scan_layers needs layers that repeat, but none of the {depth} layers "
      "of this config do"
    )
  stacks = []
  for i in range(period):
    build = lambda key, i=i: make(i, rngs=nnx.Rngs(params=key))  # noqa: E731
    keys = jax.random.split(rngs.params(), depth // period)
    state = jax.vmap(lambda key, build=build: nnx.state(build(key)))(keys)
    graph = nnx.graphdef(nnx.eval_shape(build, keys[0]))
    stacks.append(nnx.merge(graph, state))
  return stacks


def run_layers(
  layers: Sequence[DecoderLayer],
  execution: Execution,
  x: jax.Array,
  tokens: Tokens,
  caches: tuple[LayerCache, ...] | None,
) -> tuple[jax.Array, tuple[LayerCache, ...]]:
  """Runs x [B, T, hidden] through layers from `make_layers`.

  Args:
    layers: separate or stacked.
    execution: as the layers were made.
    x: [B, T, hidden].
    tokens: what is known of the tokens.
    caches: one for each of `layers`, or None.

  Returns:
    [B, T, hidden], and the caches after the tokens (None for None).
  """
  graphs, states = zip(*(nnx.split(layer) for layer in layers))
  calls = [_rematerialised(graph, execution, tokens) for graph in graphs]

  def period(x, parts):
    new = []
    for call, state, cache in zip(calls, *parts):
      x, cache = call(state, x, cache)
      new.append(cache)
    return x, tuple(new)

  if caches is None:
    caches = (None,) * len(calls)
  run = functools.partial(lax.scan, period) if execution.scan_layers else period
  return run(x, (states, caches))


def _rematerialised(
  graph: nnx.GraphDef, execution: Execution, tokens: Tokens
) -> Callable:
  """A layer as a function of its parameters, computed again as asked."""

  def call(state, x, cache):
    return nnx.merge(graph, state)(x, tokens, cache)

  if execution.remat == "none":
    return call
  return jax.checkpoint(
    call,
    policy=_SAVED[execution.remat],
    prevent_cse=not execution.scan_layers,
  )
