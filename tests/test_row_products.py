"""Products of one row, and the body of their kernel in interpret mode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import sharding
from neumann_jax.layers import feed_forward
from neumann_jax.layers.kernels import row_gpu
from neumann_jax.layers.linear import linear
from neumann_jax.layers.one_token import row_products
from tests import models, oracles

SIZE = 512


def arrays(*sizes, rows=1, inputs=1, dtype=jnp.bfloat16):
  rng = np.random.default_rng([rows, *sizes])
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
  return (
    tuple(draw(rows, SIZE) for _ in range(inputs)),
    tuple(draw(SIZE, n) for n in sizes),
  )


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("sizes", [(96, 16, 40), (512 + 32,)])
def test_one_row_is_the_float64_products(sizes, inputs):
  """With widths that are no whole number of a program's columns."""
  given, kernels = arrays(*sizes, inputs=inputs)
  found = row_gpu.products(tuple(x[0] for x in given), kernels, interpret=True)
  x, *up = (np.float64(x[0]) for x in given)
  if up:
    # Rounded as the model rounds, before the gate is multiplied.
    x = np.float64(jnp.bfloat16(x / (1 + np.exp(-x)))) * up[0]
    x = np.float64(jnp.bfloat16(x))
  for y, kernel in zip(found, kernels, strict=True):
    want = x @ np.float64(kernel)
    # The result is rounded to 8 bits, and no product before it.
    assert oracles.error(np.float32(y)[None], want[None]) < 2**-8


def test_one_row_is_one_kernel_on_cuda_and_a_product_elsewhere():
  rngs = nnx.Rngs(0)
  layers = [
    linear(SIZE, n, rngs=rngs, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    for n in (64, 16)
  ]
  call = jax.jit(lambda x: row_products.project("auto", x, layers))
  x = arrays(1)[0][0][None]
  for found, layer in zip(call(x), layers, strict=True):
    np.testing.assert_array_equal(found, layer(x))
  modules = [
    oracles.exported(call, name, x).mlir_module() for name in ("cuda", "cpu")
  ]
  assert ["neumann_row" in module for module in modules] == [True, False]
  assert ["dot_general" in module for module in modules] == [False, True]
  # More rows are products on a matrix unit.
  several = jnp.tile(x, (2, 1, 1))
  module = oracles.exported(call, "cuda", several).mlir_module()
  assert "neumann_row" not in module


def test_the_shared_expert_of_one_token_takes_the_kernel():
  """Tokens come to it as rows, [M, hidden]."""
  config = dataclasses.replace(
    models.CONFIGS["sparse"],
    hidden_size=SIZE,
    shared_expert_intermediate_size=SIZE,
  )
  execution = neumann_jax.Execution(dtype="bfloat16", param_dtype="bfloat16")
  layer = nnx.eval_shape(
    lambda: feed_forward.SparseExperts(config, execution, rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(layer)
  x = jax.ShapeDtypeStruct((1, 1, SIZE), jnp.bfloat16)
  module = oracles.exported(
    lambda state, x: nnx.merge(graph, state)(x), "cuda", state, x
  ).mlir_module()
  # Gate and up, and down; the router is float32 and XLA's.
  assert module.count('name = "neumann_row"') == 2


@pytest.mark.parametrize("split", ["rows", "weights"])
def test_rows_and_weights_may_be_split_one_without_the_other(split):
  """Inside `jax.shard_map`, where each device has one row."""
  mesh = sharding.make_mesh(data=2)
  rngs = nnx.Rngs(0)
  layer = linear(
    SIZE, 64, rngs=rngs, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
  )
  graph, state = nnx.split(layer)
  names = jax.P("data"), jax.P(None, "data")
  specs = (names[0], jax.P()) if split == "rows" else (jax.P(), names[1])
  x = arrays(1, rows=2 if split == "rows" else 1)[0][0][:, None]

  def one(x, kernel):
    layer = nnx.merge(graph, jax.tree.map(lambda _: kernel, state))
    return row_products.project("auto", x, [layer])[0]

  call = jax.shard_map(
    one,
    mesh=mesh,
    in_specs=specs,
    out_specs=names[0] if split == "rows" else jax.P(None, None, "data"),
  )
  kernel = layer.kernel[...]
  found = jax.jit(call)(x, kernel)
  np.testing.assert_array_equal(np.float32(found), np.float32(layer(x)))


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    (arrays(16, rows=2), "one row, got 2"),
    (arrays(16, dtype=jnp.float32), "bfloat16 and float16, got float32"),
    (
      (arrays(16)[0], arrays(16, dtype=jnp.float32)[1]),
      "weights must be bfloat16",
    ),
    (
      ((jnp.ones((1, 48), jnp.bfloat16),), (jnp.ones((48, 8), jnp.bfloat16),)),
      "48 rows are not a multiple of 128",
    ),
  ],
)
def test_what_the_kernel_refuses(given, sentence):
  assert sentence in row_gpu.refusal(*given)
