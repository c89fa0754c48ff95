"""The layers of a model, separate or scanned: made, run and rematerialised."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.delta_rule import kept_names
from neumann_jax.execution import Execution
from neumann_jax.layers import placement
from neumann_jax.layers.caches import period_caches
from neumann_jax.layers.caches.cache import LayerCache
from neumann_jax.layers.feed_forward import Routing
from neumann_jax.model import logical_axes
from neumann_jax.model.decoder import (
  DecoderLayer,
  Ran,
  Tokens,
  check_layer_types,
)
from neumann_jax.model_config import ModelConfig

# What the forward pass keeps under each `Execution.remat`. "dots" keeps
# products with weights, which have no batch axis, and no product of two
# activations.
_SAVED = {
  "names": jax.checkpoint_policies.save_only_these_names(*kept_names.ALL),
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


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
  # over keys: one compilation, and the parameters are born stacked. Every
  # stream is split, for a mixer may draw from others than "params".
  stacks = []
  for i in range(period):
    build = lambda keys, i=i: make(i, rngs=nnx.Rngs(keys))  # noqa: E731
    keys = {
      name: jax.random.split(stream(), depth // period)
      for name, stream in rngs.items()
    }
    state = jax.vmap(lambda keys, build=build: nnx.state(build(keys)))(keys)
    first = jax.tree.map(lambda key: key[0], keys)
    graph = nnx.graphdef(nnx.eval_shape(build, first))
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
