"""Separate layers <-> the stacks that `lax.scan` runs, same parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.model.decoder import DecoderLayer
from neumann_jax.model.language_model import LanguageModel


def stack_layers(model: LanguageModel) -> LanguageModel:
  """The model with scanned layers; parameters are copied.

  Args:
    model: of separate layers.

  Raises:
    ValueError: if its layers are scanned already, or do not repeat.
  """
  if model.execution.scan_layers:
    raise ValueError("stack_layers needs separate layers, got scanned ones")
  depth, period = model.config.num_hidden_layers, model.config.period
  if period == depth:
    raise ValueError(
      f"stack_layers needs layers that repeat, but none of the {depth} do"
    )
  # The graphs of a kind are equal, so that one of them will do for the stack.
  stacks = []
  for i in range(period):
    states = [nnx.state(layer) for layer in model.layers[i::period]]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    stacks.append(nnx.merge(nnx.graphdef(model.layers[i]), stacked))
  return _with_layers(model, stacks, scan_layers=True)


def unstack_layers(model: LanguageModel) -> LanguageModel:
  """The model with separate layers; parameters are copied.

  Args:
    model: of scanned layers.

  Raises:
    ValueError: if its layers are separate already.
  """
  if not model.execution.scan_layers:
    raise ValueError("unstack_layers needs scanned layers, got separate ones")
  split = [nnx.split(stack) for stack in model.layers]
  repeats = model.config.num_hidden_layers // len(split)
  layers = [
    nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state))
    for n in range(repeats)
    for graph, state in split
  ]
  return _with_layers(model, layers, scan_layers=False)


def _with_layers(
  model: LanguageModel, layers: list[DecoderLayer], *, scan_layers: bool
) -> LanguageModel:
  # A copy, because modules are changed in place; arrays are shared.
  model = nnx.merge(*nnx.split(model))
  model.layers = nnx.List(layers)
  execution = dataclasses.replace(model.execution, scan_layers=scan_layers)
  model.set_execution(execution)
  return model
