"""The decoder layer, and a stack of them: separate or scanned."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.delta_rule import kept_names
from neumann_jax.delta_rule.chunk_matrix import ChunkMatrices
from neumann_jax.execution import Execution
from neumann_jax.foreign_files.messages import shown
from neumann_jax.layers import period_caches, placement
from neumann_jax.layers.attention import GatedAttention
from neumann_jax.layers.cache import LayerCache
from neumann_jax.layers.feed_forward import Routing, SparseExperts, SwiGLU
from neumann_jax.layers.gated_delta_net import GatedDeltaNet
from neumann_jax.layers.mixer import Mixer
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.positions import Positions
from neumann_jax.model import logical_axes
from neumann_jax.model_config import ModelConfig


class MixerKind(NamedTuple):
  """The mixer that a layer type names.

  Attributes:
    name: of the mixer in the layer and, with it, in a checkpoint.
    make: (config, execution, rngs=rngs) -> the mixer.
  """

  name: str
  make: Callable[..., Mixer[Any]]


# The mixer of every entry that `ModelConfig.layer_types` may have.
MIXERS: dict[str, MixerKind] = {
  "linear_attention": MixerKind("linear_attn", GatedDeltaNet),
  "full_attention": MixerKind("self_attn", GatedAttention),
}

# What the forward pass keeps under each `Execution.remat`. "dots" keeps
# products with weights, which have no batch axis, and no product of two
# activations.
_SAVED = {
  "names": jax.checkpoint_policies.save_only_these_names(*kept_names.ALL),
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Tokens(NamedTuple):
  """What every mixer is told of the tokens of a call, by these names.

  Attributes:
    positions: their places.
    segment_ids: [B, T] or None.
    mask: [B, T] bool or None.
  """

  positions: Positions
  segment_ids: jax.Array | None
  mask: jax.Array | None


class Ran(NamedTuple):
  """What a layer, or a stack of them, makes of its input.

  Attributes:
    x: [B, T, hidden].
    caches: the cache after the tokens, or one for each layer; None for None.
    routing: of the sparse layers, where it was asked for.
  """

  x: jax.Array
  caches: Any
  routing: Routing | None


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
    kind = MIXERS[config.layer_types[index]]
    self.mixer_name = kind.name
    setattr(self, kind.name, kind.make(config, execution, rngs=rngs))
    self.post_attention_layernorm = norm()
    self.mlp: SparseExperts | SwiGLU
    if config.is_sparse(index):
      self.mlp = SparseExperts(config, execution, rngs=rngs)
    else:
      self.mlp = SwiGLU(
        config, execution, width=config.intermediate_size, rngs=rngs
      )

  @property
  def mixer(self) -> Mixer[Any]:
    """The token mixer, which is an attribute of its name in a checkpoint."""
    return getattr(self, self.mixer_name)

  def set_execution(self, execution: Execution) -> None:
    """Changes how the layer is computed; see `Mixer`."""
    self.mixer.set_execution(execution)
    self.mlp.set_execution(execution)

  def __call__(
    self,
    x: jax.Array,
    tokens: Tokens,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    """[B, T, hidden] -> [B, T, hidden], and the cache (None for None)."""
    return self.run(x, tokens, cache)[:2]

  def run(
    self,
    x: jax.Array,
    tokens: Tokens,
    cache: LayerCache | None = None,
    counted: jax.Array | None = None,
  ) -> Ran:
    """A call that also says where the router sent the tokens.

    Args:
      x: [B, T, hidden].
      tokens: what is known of them.
      cache: before them, or None.
      counted: [B, T] float32, 1 at tokens whose routing is asked for; None: of
        none.
    """
    mixed, new = self.mixer(
      self.input_layernorm(x), cache=cache, **tokens._asdict()
    )
    x = x + mixed
    inner = self.post_attention_layernorm(x)
    routing = None
    if counted is not None and isinstance(self.mlp, SparseExperts):
      routing = self.mlp.routing(inner, counted)
    x = x + self.mlp(inner)
    return Ran(x, None if cache is None else new, routing)

  def chunk_matrices(
    self, x: jax.Array, tokens: Tokens
  ) -> ChunkMatrices | None:
    """What the layer inverts for x [B, T, hidden], or None if it does not."""
    return self.mixer.chunk_matrices(
      self.input_layernorm(x),
      segment_ids=tokens.segment_ids,
      mask=tokens.mask,
    )


def check_layer_types(types: Sequence[str]) -> None:
  """Raises ValueError for a layer type that names no mixer."""
  for kind in types:
    if kind not in tuple(MIXERS):  # a list out of a file has no hash
      raise ValueError(
        f"layer_types must be of {', '.join(MIXERS)}, got {shown(kind)}"
      )


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
    ValueError: for an unknown layer type, or if layers are to be scanned but
      none repeat.
  """
  check_layer_types(config.layer_types)
  depth, period = config.num_hidden_layers, config.period
  make = functools.partial(DecoderLayer, config, execution)
  if not execution.scan_layers:
    return [make(i, rngs=rngs) for i in range(depth)]
  if period == depth:
    raise ValueError(
      f"scan_layers needs layers that repeat, but none of the {depth} layers "
      "of this config do: give scan_layers=False"
    )
  # One layer of a period is made as many times as there are periods by `vmap`
  # over keys: one compilation, and the parameters are born stacked.
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
  counted: jax.Array | None = None,
) -> Ran:
  """Runs x [B, T, hidden] through layers from `make_layers`.

  Args:
    layers: separate or stacked.
    execution: as the layers were made.
    x: [B, T, hidden].
    tokens: what is known of the tokens.
    caches: one for each of `layers`, or None.
    counted: see `DecoderLayer.run`.
  """
  # Layers as functions of their state, because `lax.scan` and `jax.checkpoint`
  # take arrays; the graphs of stacked layers are those of one layer.
  graphs, states = zip(*(nnx.split(layer) for layer in layers))
  calls = [
    _rematerialised(graph, execution, tokens, counted) for graph in graphs
  ]

  def period(x, parts):
    new, routed = [], []
    for call, state, cache in zip(calls, *parts):
      x, cache, routing = call(state, x, cache)
      new.append(cache)
      routed.append(routing)
    return x, (tuple(new), _sum([r for r in routed if r is not None]))

  before = (None,) * len(calls) if caches is None else caches
  if not execution.scan_layers:
    x, (new, routing) = period(x, (states, before))
  elif caches is not None and x.shape[1] == 1:
    x, (new, routing) = period_caches.scan(period, x, states, caches)
  else:
    x, (new, routing) = lax.scan(period, x, (states, before))
  if execution.scan_layers:  # one sum for each period
    routing = jax.tree.map(lambda part: jnp.sum(part, axis=0), routing)
  return Ran(x, new, routing)


def _sum(routed: Sequence[Routing]) -> Routing | None:
  if not routed:
    return None
  return jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *routed)


def _rematerialised(
  graph: nnx.GraphDef,
  execution: Execution,
  tokens: Tokens,
  counted: jax.Array | None,
) -> Callable:
  """A layer as a function of its parameters, computed again as asked."""

  def call(state, x, cache):
    layer = nnx.merge(graph, state)
    # Here, where a backward pass that computes the layer again comes by too:
    # no device keeps what it gathered.
    layer = placement.gathered(
      layer,
      functools.partial(logical_axes.of_layer, layer=layer),
      tokens=math.prod(x.shape[:2]),
      least=x.shape[2],
      dtype=execution.dtype,
    )
    x = placement.by_rows(x, execution.rule.batch_axes)
    return layer.run(x, tokens, cache, counted)

  if execution.remat == "none":
    return call
  # Inside a scan nothing can be shared between the passes, so that the barriers
  # that keep XLA from undoing the remat would only cost.
  return jax.checkpoint(
    call,
    policy=_SAVED[execution.remat],
    prevent_cse=not execution.scan_layers,
  )
