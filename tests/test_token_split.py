"""Tokens split over the axis of heads: products, places and what is sent."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import sharding
from neumann_jax.layers import token_split
from neumann_jax.layers.linear import linear
from tests import models, oracles

HOW = token_split.ways(neumann_jax.RuleOptions())
WIDTH = 8  # of the residual stream


def _place(mesh, shape):
  """What `token_split.of` finds for tokens of a shape."""
  found = []

  def look(x):
    found.append(token_split.of(x, HOW, WIDTH))
    return x

  where = jax.NamedSharding(mesh, P())
  jax.eval_shape(
    jax.jit(look), jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
  )
  return found[0]


@pytest.mark.parametrize(
  "sizes, shape, between",
  [
    # Rows first, then tokens of a row, and else nothing.
    ({"tensor": 2}, (4, 6, WIDTH), P(("tensor",))),
    ({"tensor": 2}, (3, 6, WIDTH), P((), "tensor")),
    ({"tensor": 2}, (3, 5, WIDTH), P((), None)),
    ({"data": 2, "tensor": 2}, (4, 6, WIDTH), P(("data", "tensor"))),
    ({"data": 2, "tensor": 2}, (2, 6, WIDTH), P(("data",), "tensor")),
    ({"fsdp": 2, "tensor": 4}, (8, 6, WIDTH), P(("fsdp", "tensor"))),
    # Decoding, few tokens, no axis of heads, and rows of experts.
    ({"tensor": 2}, (16, 1, WIDTH), None),
    ({"tensor": 2}, (1, 6, WIDTH), None),
    ({"data": 2}, (4, 6, WIDTH), None),
    ({"tensor": 2}, (24, WIDTH), None),
  ],
)
def test_where_tokens_are(sizes, shape, between):
  split = _place(sharding.make_mesh(**sizes), shape)
  assert (split and split.between) == between


@pytest.mark.parametrize("rows, length", [(4, 6), (3, 6), (3, 5)])
def test_a_block_of_products_on_two_devices(rows, length):
  rngs = nnx.Rngs(0)
  first = [linear(WIDTH, 12, rngs=rngs) for _ in range(2)]
  layers = nnx.List([*first, linear(12, WIDTH, rngs=rngs)])
  graph, state = nnx.split(layers)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, length, WIDTH)))
  x = x.astype(jnp.float32)

  def loss(state, x):
    *first, last = nnx.merge(graph, state)
    a, b = token_split.project(HOW, token_split.between(x, HOW), first)
    y = token_split.gated(HOW, a, b, last)
    return jnp.mean(jnp.sin(3 * (x + y)))

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  want = run(state, x)
  mesh = sharding.make_mesh(data=1, tensor=2)
  split = jax.NamedSharding(mesh, P(None, "tensor"))
  placed = jax.device_put(state, split)
  args = placed, jax.device_put(x, jax.NamedSharding(mesh, P()))
  oracles.assert_close(run(*args), want, 1e-6)
  sent = _sent(run.lower(*args).compile())
  # The gradient of x is one sum, whatever the number of matrices that it met.
  tokens = [(op, at) for op, at in sent if at.endswith(f",{WIDTH}")]
  whole, part = f"{rows},{length},{WIDTH}", f"{rows // 2},{length},{WIDTH}"
  if rows == 3:
    part = f"{rows},{length // 2},{WIDTH}"
  counts = collections.Counter(at for op, at in tokens if at == part)
  assert counts[part] == (0 if length == 5 else 2), sent
  # An odd number of tokens stays whole, and so do its sums.
  assert (("all-reduce", whole) in tokens) == (length == 5), sent


def test_own_columns_are_parts_of_every_block():
  mesh = sharding.make_mesh(tensor=2)
  sizes, x = (4, 2, 6), jnp.arange(24.0).reshape(2, 12)
  split = token_split.TokenSplit(mesh.abstract_mesh, (), "tensor", None)
  spec = P(None, "tensor")
  own = jax.jit(split.run(lambda x: split.own_columns(x, sizes), spec, spec))
  found = own(jax.device_put(x, jax.NamedSharding(mesh, spec)))
  order = [0, 1, 4, 6, 7, 8, 2, 3, 5, 9, 10, 11]
  np.testing.assert_array_equal(found, x[:, jnp.asarray(order)])


def test_sums_of_a_layer_that_is_computed_again():
  """Two forward, two back, and by "full" that of the mixer again."""
  config = dataclasses.replace(
    models.CONFIGS["dense"],
    num_hidden_layers=1,
    layer_types=("full_attention",),
  )
  counts = {}
  for remat in ("none", "names", "full"):
    execution = neumann_jax.Execution(remat=remat)
    model = nnx.eval_shape(
      lambda execution=execution: neumann_jax.LanguageModel(
        config, execution, rngs=nnx.Rngs(0)
      )
    )
    counts[remat] = _scattered(model, sharding.make_mesh(tensor=2))
  assert counts == {"none": 4, "names": 4, "full": 5}


def _scattered(model, mesh):
  """Sums that a training step scatters."""
  graph, state = nnx.split(model)
  state = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    state,
    sharding.param_shardings(model, mesh),
  )
  tokens = jax.ShapeDtypeStruct(
    (4, 32), jnp.int32, sharding=sharding.batch_sharding(mesh)
  )

  def loss(state, tokens):
    hidden, _ = nnx.merge(graph, state).hidden_states(tokens)
    return jnp.mean(jnp.sin(hidden))

  text = jax.jit(jax.grad(loss)).lower(state, tokens).as_text()
  return len(re.findall(r"stablehlo\.reduce_scatter", text))


def _sent(program):
  """(operation, shape) of what devices send."""
  found = re.findall(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)\(",
    program.as_text(),
  )
  return [
    (op, shape)
    for shapes, op in found
    for shape in re.findall(r"\[([\d,]+)\]", shapes)
  ]
