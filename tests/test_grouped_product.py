"""Grouped products: values, derivatives and what they cost anywhere."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import sharding
from neumann_jax.layers.feed_forward import SparseExperts
from neumann_jax.layers.grouped_product import grouped_product
from neumann_jax.layers.kernels import grouped_blocks, grouped_tiles
from tests import models, oracles

SIZES = [3, 0, 1, 30, 0, 13, 7]
FEW = [0, 0, 5], [1], [0, 200, 0]
WIDTHS = 24, 40


def operands(sizes=SIZES, widths=WIDTHS, dtype=np.float32):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((sum(sizes), widths[0]))
  kernels = rng.standard_normal((len(sizes), *widths))
  return jnp.asarray(x, dtype), jnp.asarray(kernels, dtype)


def truth(x, kernels, sizes=SIZES):
  """Row by row, through the matrix of its group."""
  group = np.repeat(np.arange(len(sizes)), sizes)
  return jnp.einsum("mk,mkn->mn", x, kernels[group], precision="highest")


def counts(sizes):
  return jnp.asarray(sizes, jnp.int32)


product = oracles.quick_jit(grouped_product, static_argnames="dtype")


@pytest.mark.parametrize(
  "form, sizes",
  [
    *(("public", sizes) for sizes in (SIZES, *FEW)),
    ("tiles", SIZES),  # groups without rows, of one and of several
    *(pytest.param("tiles", x, marks=pytest.mark.slow) for x in FEW[:2]),
    ("tiles", FEW[2]),
  ],
)
def test_values(form, sizes):
  x, kernels = operands(sizes)
  if form == "public":
    found = product(x, kernels, counts(sizes))
  else:
    found = grouped_tiles.product(
      *(x, kernels, counts(sizes)),
      dtype=jnp.float32,
      transposed=False,
      interpret=True,
    )
  want = truth(*(np.float64(a) for a in (x, kernels)), sizes)
  oracles.assert_close(found, want, 1e-6)


def test_narrow_rows_are_summed_in_float32():
  x, kernels = operands(dtype=jnp.bfloat16)
  found = product(x, kernels, counts(SIZES))
  assert found.dtype == jnp.bfloat16
  want = truth(x.astype(jnp.float32), kernels.astype(jnp.float32))
  # One rounding, of 2^-9 of each entry.
  assert (np.abs(found.astype(np.float32) - want) <= 2.0**-8 * abs(want)).all()


def test_integer_codes_are_summed_as_integers():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.integers(-127, 128, (sum(SIZES), 24)), jnp.int8)
  kernels = jnp.asarray(rng.integers(-127, 128, (len(SIZES), 24, 40)), jnp.int8)
  found = product(x, kernels, counts(SIZES), dtype=jnp.int32)
  wide = (np.int64(a) for a in (x, kernels))
  group = np.repeat(np.arange(len(SIZES)), SIZES)
  x, kernels = wide
  want = np.einsum("mk,mkn->mn", x, kernels[group])
  np.testing.assert_array_equal(found, want)


def test_derivatives_of_every_direction():
  x, kernels = operands()
  own = lambda *a: jnp.sum(jnp.sin(grouped_product(*a, counts(SIZES))))  # noqa: E731
  want = lambda *a: jnp.sum(jnp.sin(truth(*a)))  # noqa: E731
  tangents = jnp.cos(x), jnp.sin(kernels)

  def all_of(f):
    gradient = jax.grad(f, (0, 1))
    # Forward over backward: the derivative of both derivatives.
    pair = jax.jvp(gradient, (x, kernels), tangents)
    return *pair, jax.jvp(f, (x, kernels), tangents)[1][None]

  found = oracles.quick_jit(lambda: all_of(own))()
  oracles.assert_close(found, all_of(want), 1e-5)


def test_sums_of_outer_products_by_tiles():
  x, kernels = operands()
  y = truth(x, kernels)
  same = {"dtype": jnp.float32}
  found = grouped_tiles.outer(x, y, counts(SIZES), **same, interpret=True)
  want = grouped_blocks.outer(x, y, counts(SIZES), **same)
  oracles.assert_close(found, want, 1e-6)


def test_vmap_is_a_loop():
  x, kernels = operands()
  found = oracles.quick_jit(jax.vmap(grouped_product, (0, None, None)))(
    jnp.stack([x, 2 * x]), kernels, counts(SIZES)
  )
  oracles.assert_close(found[1], 2 * truth(x, kernels), 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_its_expert(bad):
  x, kernels = operands()
  clean = product(x, kernels, counts(SIZES))
  spoilt = x.at[5, 3].set(bad)  # of group 3
  found = np.array(product(spoilt, kernels, counts(SIZES)))
  assert not np.isfinite(found[5]).any()
  np.testing.assert_array_equal(np.delete(found, 5, 0), np.delete(clean, 5, 0))
  gradient = oracles.quick_jit(
    jax.grad(lambda k, x: jnp.sum(grouped_product(x, k, counts(SIZES))))
  )(kernels, spoilt)
  assert np.isfinite(np.delete(gradient, 3, 0)).all()
  assert not np.isfinite(gradient[3, 3]).any()


# --- Cost --------------------------------------------------------------------

# One layer of 35B-A3B: 256 experts, 8 a token.
CONFIG = neumann_jax.ModelConfig(
  hidden_size=2048,
  num_hidden_layers=1,
  num_experts=256,
  num_experts_per_tok=8,
  moe_intermediate_size=512,
  shared_expert_intermediate_size=512,
)
TOKENS = 2048


def layer(dtype, config=CONFIG, tokens=TOKENS):
  """The layer as a function of parameters and tokens, and their shapes."""
  execution = neumann_jax.Execution(dtype=dtype, param_dtype=dtype)
  graph, state = nnx.split(
    nnx.eval_shape(lambda: SparseExperts(config, execution, rngs=nnx.Rngs(0)))
  )
  x = jax.ShapeDtypeStruct((1, tokens, config.hidden_size), dtype)
  return jax.jit(lambda state, x: nnx.merge(graph, state)(x)), (state, x)


def needed(tokens=TOKENS):
  """Flops of the chosen experts, the shared one and the router."""
  hidden, width = CONFIG.hidden_size, CONFIG.moe_intermediate_size
  experts = (CONFIG.num_experts_per_tok + 1) * 3 * hidden * width
  return 2 * tokens * (experts + hidden * (CONFIG.num_experts + 1))


def multiplied(sizes):
  """Rows that the blocks of groups multiply, their own and others."""
  blocks = grouped_blocks._blocks(int(sum(sizes)), len(sizes))
  total = 0
  for left in sizes:
    while left > 0:
      step = int(grouped_blocks._choice(blocks, left)[1])
      total, left = total + step, left - step
  return total


def routings():
  """Rows of each expert: as evenly as chance has it, and far from it."""
  rng = np.random.default_rng(0)
  rows = TOKENS * CONFIG.num_experts_per_tok
  for skew in (np.inf, 1.0, 0.1):
    share = np.ones(CONFIG.num_experts)
    if np.isfinite(skew):
      share = rng.gamma(skew, size=CONFIG.num_experts)
    yield np.bincount(
      rng.choice(len(share), rows, p=share / share.sum()), minlength=len(share)
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_no_expert_multiplies_what_is_not_its_own(platform):
  """Flops of the 35B-A3B layer, within 1.3 of what its choices need."""
  call, shapes = layer(jnp.bfloat16)
  lowered = call.trace(*shapes).lower(lowering_platforms=(platform,))
  # The body of a loop counts once, a kernel not at all.
  flops = lowered.cost_analysis()["flops"]
  each = 2 * 3 * CONFIG.hidden_size * CONFIG.moe_intermediate_size
  if platform == "tpu":
    text = lowered.as_text()
    found = re.findall(r"\\22flops\\22:(\d+)", text)
    assert len(found) == 2 == text.count("tpu_custom_call"), text[:3000]
    total = [flops + sum(map(int, found))]
  else:
    total = [flops + each * multiplied(sizes) for sizes in routings()]
  for one in total:
    assert needed() <= one <= 1.3 * needed(), one / needed()


def test_the_35b_layer_fits_a_gibibyte():
  call, shapes = layer(jnp.bfloat16)
  memory = call.lower(*shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2**30, memory.temp_size_in_bytes / 2**30


# --- Meshes ------------------------------------------------------------------

SMALL = dataclasses.replace(
  CONFIG,
  hidden_size=32,
  num_experts=6,
  num_experts_per_tok=2,
  moe_intermediate_size=16,
  shared_expert_intermediate_size=16,
)
MESHES = {
  "rows": {"data": 2, "fsdp": 2},
  "width": {"tensor": 4},
  "both": {"data": 2, "tensor": 2},
  "uneven": {"fsdp": 4, "tensor": 2},  # rows and width stay whole
}


def on_mesh(name, config=SMALL, rows=4, derivatives=True):
  mesh = sharding.make_mesh(**MESHES[name])
  execution = neumann_jax.Execution()
  with models.drawn_by_numpy():
    layer = SparseExperts(config, execution, rngs=nnx.Rngs(0))
  graph, state = nnx.split(layer)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((rows, 5, 32)), jnp.float32)

  def step(state, x):
    if not derivatives:
      return nnx.merge(graph, state)(x)
    loss = lambda state, x: jnp.sum(nnx.merge(graph, state)(x) ** 2)  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(state, x)

  specs = {"gate_up_proj": P(None, "fsdp", "tensor"), "down_proj": P()}

  def place(path, leaf):
    spec = specs.get(path[-2].key if len(path) > 1 else None, P())
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  there = jax.tree_util.tree_map_with_path(place, state)
  row = NamedSharding(mesh, P(("data", "fsdp")) if rows % 4 == 0 else P())
  return oracles.quick_jit(step), (state, x), (there, jax.device_put(x, row))


def test_experts_on_a_mesh():
  call, one, many = on_mesh("both", derivatives=False)
  oracles.assert_close(call(*many), call(*one), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_derivatives_on_a_mesh(name):
  config, rows = SMALL, 4
  if name == "uneven":
    config, rows = dataclasses.replace(SMALL, moe_intermediate_size=15), 3
  step, one, many = on_mesh(name, config, rows)
  oracles.assert_close(step(*many), step(*one), 1e-5)


@pytest.mark.parametrize(
  "name", [pytest.param("rows", marks=pytest.mark.slow), "both"]
)
def test_each_device_of_a_tpu_multiplies_its_own_rows(name):
  step, _, arrays = on_mesh(name)
  lowered = step.trace(*arrays).lower(lowering_platforms=("tpu",))
  lines = [
    line
    for line in lowered.as_text().splitlines()
    if "@tpu_custom_call" in line
  ]
  # Two products forward, and two of each kind for their derivative.
  assert len(lines) == 6
  shards = 4 if name == "rows" else 2
  rows = 4 * 5 * SMALL.num_experts_per_tok // shards
  padded = -(-rows // 16) * 16
  for line in lines:
    shapes = re.findall(r"tensor<(\d+)x\d+xf32>", line)
    assert shapes and all(int(rows) == padded for rows in shapes), line
