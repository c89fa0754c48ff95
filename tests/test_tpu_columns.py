"""What is before and after the rule's TPU kernels, in kernels of its own."""

import functools
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import InverseSpec, RuleOptions, backends, sharding
from neumann_jax.layers import head_columns, head_norm
from neumann_jax.layers.convolution import short_conv
from neumann_jax.layers.head_columns import Part
from tests import kernel_bodies, models, oracles, tpu_compiler

WIDTH, TAPS = 128, 4
PARTS = Part(1, True), Part(2, False)
MANY = Part(2, True), Part(2, True), Part(4, False)
# At most 128 terms of a float32 sum; half a step of bfloat16, of two roundings.
FLOAT32, NARROW = 2e-6, 6e-3


def normal(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return rng.standard_normal(shape)


@functools.cache
def problem(parts, length, packed, width=TAPS, rows=2):
  """Columns, taps, history, documents and cotangents."""
  channels = WIDTH * sum(part.heads for part in parts)
  x = normal(rows, length, channels)
  taps, history = normal(width, channels), normal(rows, channels, width)
  ids = oracles.documents(length)[:rows] if packed else None
  d_out = [normal(rows, length, p.heads, WIDTH, seed=1) for p in parts]
  return x, taps, history, ids, d_out


def exact(parts, x, taps, history, ids):
  """In float64, a document and a tap at a time."""
  padded = jnp.concatenate([jnp.swapaxes(history, 1, 2), x], 1)
  length, width = x.shape[1], len(taps)
  if ids is None:
    ids = np.zeros(x.shape[:2], int)
  padded_ids = np.concatenate([ids[:, :1].repeat(width, 1), ids], 1)
  y = 0.0
  for tap in range(width):
    window = slice(tap + 1, tap + 1 + length)
    same = jnp.asarray(padded_ids[:, window] == ids)[..., None]
    y = y + taps[tap] * jnp.where(same, padded[:, window], 0)
  y = (y / (1 + jnp.exp(-y))).reshape(*x.shape[:2], -1, WIDTH)
  found, first = [], 0
  for part in parts:
    some = y[:, :, first : first + part.heads]
    norm = jnp.sqrt((some**2).sum(-1, keepdims=True) + 1e-6)
    found.append(some / norm if part.normed else some)
    first += part.heads
  return tuple(found)


def truth(parts, length, packed, dtype, width=TAPS):
  """Outputs and gradients in float64, of operands that dtype holds."""
  x, taps, history, ids, d_out = problem(parts, length, packed, width)
  x, history, *d_out = (
    np.asarray(jnp.asarray(y, dtype).astype(jnp.float32), np.float64)
    for y in (x, history, *d_out)
  )
  with jax.enable_x64(True):
    floats = [jnp.asarray(y, jnp.float64) for y in (x, taps, history)]
    out, pull = jax.vjp(lambda *f: exact(parts, *f, ids), *floats)
    return jax.tree.map(np.asarray, (out, pull(tuple(d_out))))


def narrow(parts, length, packed, dtype, width=TAPS):
  x, taps, history, ids, d_out = problem(parts, length, packed, width)
  cast = lambda y: jnp.asarray(y, dtype)  # noqa: E731
  taps = jnp.asarray(np.float32(taps))
  return cast(x), taps, cast(history), ids, tuple(map(cast, d_out))


@functools.partial(oracles.quick_jit, static_argnames=("parts", "interpret"))
def kernels(parts, x, taps, history, ids, d_out, interpret=True):
  given = (parts, x, taps, history, ids)
  out = head_columns._launch(*given, interpret=interpret)
  return out, head_columns._gradients(*given, d_out, interpret=interpret)


@pytest.mark.parametrize(
  "parts, length, packed, dtype",
  [
    (PARTS, 70, True, "float32"),
    pytest.param(MANY, 2, False, "float32", marks=pytest.mark.slow),
    pytest.param(MANY, 300, True, "bfloat16", marks=pytest.mark.slow),
    pytest.param(PARTS, 300, True, "float32", marks=pytest.mark.slow),
    pytest.param(MANY, 512, False, "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_columns_and_gradients_against_float64(parts, length, packed, dtype):
  """A history, documents, ragged ends, several blocks, unequal parts."""
  found = kernels(parts, *narrow(parts, length, packed, dtype))
  want = truth(parts, length, packed, dtype)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    error = oracles.whole_error(x.astype(jnp.float32), y)
    assert error <= (FLOAT32 if dtype == "float32" else NARROW)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 8])
def test_fewer_and_more_taps(width):
  """One reaches no history: its cotangent is 0."""
  given = (Part(1, True),)
  found = kernels(given, *narrow(given, 19, True, "float32", width))
  want = truth(given, 19, True, "float32", width)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    size = np.abs(y).max() or 1.0
    assert np.abs(np.float64(x) - y).max() <= FLOAT32 * size


def test_an_id_that_comes_back_is_of_another_document():
  """As padding's may on both sides, under `jax.jit`: NaN stays there too."""
  ids = jnp.asarray([[1, 2, 1, 1, 2, 3]])
  since = short_conv.tokens_since(ids, TAPS)
  assert since.tolist() == [[3, 0, 0, 1, 0, 0]]
  parts = (Part(1, True),)
  x, taps, history, _, d_out = narrow(parts, 6, False, "float32")
  x = x.at[:, 1].set(jnp.nan)
  given = x, taps, history, jnp.broadcast_to(ids, (2, 6)), d_out

  @oracles.quick_jit
  def in_xla(*given):
    *floats, ids, d_out = given
    out, pull = jax.vjp(
      lambda *x: head_columns._in_xla(parts, *x, ids), *floats
    )
    return out, pull(d_out)

  (found,), (d_found, *_) = kernels(parts, *given)
  (want,), (d_want, *_) = in_xla(*given)
  for x, y in (found, want), (d_found, d_want):
    assert np.isfinite(np.delete(x, 1, axis=1)).all()
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_simulated_tpu_reads_nothing_that_was_not_written():
  """There memory is NaN at first, and an end beyond the array too."""
  given = PARTS, *narrow(PARTS, 40, True, "float32")
  found = kernels(*given, interpret=pltpu.InterpretParams())
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(kernels(*given))):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_nan_stays_in_its_document():
  x, taps, history, ids, d_out = narrow(PARTS, 70, True, "float32")
  # With documents before it and after it: gradients flow the other way.
  bad = np.asarray(ids) == np.asarray(ids)[:, 35:36]
  x = jnp.where(bad[..., None], jnp.nan, x)
  out, (d_x, _, _) = kernels(PARTS, x, taps, history, ids, d_out)
  for y in out:
    finite = np.isfinite(np.asarray(y)).all((2, 3))
    assert (finite == ~bad).all()
  clean = problem(PARTS, 70, True)[0]
  _, (want, _, _) = kernels(
    PARTS, jnp.float32(clean), taps, history, ids, d_out
  )
  np.testing.assert_array_equal(d_x[~bad], want[~bad])


@pytest.mark.parametrize(
  "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_the_gated_norm_against_float64(dtype):
  arrays = [normal(2, 300, 3 * WIDTH, seed=n) for n in range(3)]
  x, z, d_out = (jnp.asarray(y, dtype) for y in arrays)
  weight = jnp.asarray(1 + normal(WIDTH) / 4, dtype)

  def form(x, z, weight):
    x, z = (y.reshape(2, 300, 3, WIDTH) for y in (x, z))
    y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    return (weight * y * z / (1 + jnp.exp(-z))).reshape(2, 300, -1)

  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(y, np.float64)) for y in (x, z, weight)]
    want, pull = jax.vjp(form, *wide)
    want = [want, *pull(jnp.asarray(np.asarray(d_out, np.float64)))]
    want = [np.asarray(y) for y in want]

  @oracles.quick_jit
  def run(x, z, weight, d_out):
    given = 1e-3, x, z, weight
    out = head_norm._launch(*given, interpret=True)
    return out, *head_norm._gradients(*given, d_out, interpret=True)

  for found, y in zip(run(x, z, weight, d_out), want, strict=True):
    error = oracles.whole_error(found.astype(jnp.float32), y)
    assert error <= (FLOAT32 if dtype == "float32" else NARROW)


# --- In the layer -------------------------------------------------------------


@models.drawn_by_numpy()
def layer(implementation, dtype="float32", chunk_size=64, **sizes):
  sizes = {"linear_num_key_heads": 1, "linear_num_value_heads": 2} | sizes
  config = neumann_jax.ModelConfig(
    hidden_size=32,
    linear_key_head_dim=WIDTH,
    linear_value_head_dim=WIDTH,
    **sizes,
  )
  rule = RuleOptions(
    chunk_size=chunk_size,
    fused=True,
    spec=InverseSpec(precision=dtype),
    implementation=implementation,
  )
  execution = neumann_jax.Execution(dtype=dtype, param_dtype=dtype, rule=rule)
  return neumann_jax.GatedDeltaNet(config, execution, rngs=nnx.Rngs(0))


def step(graph, state, x, ids=None):
  """Gradients, outputs and the cache, of a call that continues another."""

  def loss(state, x):
    block = nnx.merge(graph, state)
    before = jax.tree.map(
      lambda y: 0.1 * jnp.ones_like(y), block.init_cache(len(x))
    )
    y, cache = block(x, cache=before, segment_ids=ids)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, cache)

  return jax.grad(loss, (0, 1), has_aux=True)(state, x)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_the_layer_is_that_of_xla(packed):
  """Its values, cache and gradients, the history's documents among them."""
  x = jnp.asarray(np.float32(normal(2, 70, 32)))
  ids = oracles.documents(70)[:2] if packed else None

  def run(implementation):
    graph, state = nnx.split(layer(implementation))
    return oracles.quick_jit(functools.partial(step, graph))(state, x, ids)

  (gradients, found), (want_gradients, want) = run("interpret"), run("xla")
  assert oracles.whole_error(found, want) <= oracles.FLOAT32_BLOCK
  error = oracles.whole_error(gradients, want_gradients)
  assert error <= oracles.FLOAT32_SHARDED_GRADIENT


def kernel_names(text):
  """Calls of the convolution, forward and backward, and of the norm."""
  names = (
    r"conv_\d+_forward",
    r"conv_\d+_backward",
    "norm_forward",
    "norm_backward",
  )
  return [len(re.findall(f'"neumann_{name}"', text)) for name in names]


TOKENS = jax.ShapeDtypeStruct((2, 128, 32), jnp.bfloat16)
IDS = jax.ShapeDtypeStruct((2, 128), jnp.int32)


def lowered(platform, call, *given):
  return kernel_names(oracles.exported(call, platform, *given).mlir_module())


def test_the_layer_lowers_with_its_kernels():
  """As many as parts, for packed rows as well."""
  graph, state = nnx.split(layer("auto", "bfloat16"))
  call = functools.partial(step, graph)
  assert lowered("tpu", call, state, TOKENS, IDS) == [3, 3, 1, 1]


@pytest.mark.slow
def test_the_layers_kernels_have_no_integers_of_64_bits():
  graph, state = nnx.split(layer("tpu", "bfloat16"))
  with jax.enable_x64(True):
    made = jax.make_jaxpr(functools.partial(step, graph))(state, TOKENS, IDS)
  assert kernel_bodies.wide(made.jaxpr) == set()


@pytest.mark.parametrize(
  "platform, calls", [("tpu", [0, 0, 1, 0]), ("cuda", [0, 0, 0, 0])]
)
def test_padding_is_left_to_xla(platform, calls):
  """And on a GPU all is."""
  graph, state = nnx.split(layer("auto", "bfloat16"))

  def padded(state, x, mask):
    return nnx.merge(graph, state)(x, mask=mask)[0]

  assert lowered(platform, padded, state, TOKENS, IDS) == calls


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 2}])
def test_a_mesh_gives_each_device_its_rows_and_heads(sizes):
  mesh = sharding.make_mesh(**sizes)
  graph, state = nnx.split(
    layer("auto", "bfloat16", linear_num_key_heads=2, linear_num_value_heads=4)
  )

  def placed(x, *spec):
    where = jax.NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  state = jax.tree.map(
    lambda x: placed(x, *(None,) * (x.ndim - 1), "tensor"), state
  )
  x = placed(jnp.zeros((4, 128, 32), jnp.bfloat16), "data")
  call = functools.partial(step, graph)
  text = oracles.exported(call, "tpu", state, x).mlir_module()
  # One program for q and k, each of them with columns of its own.
  heads = 4 // sizes.get("tensor", 1)
  programs = 3 if heads == 4 else 2
  assert kernel_names(text) == [programs, programs, 1, 1]
  calls = [y for y in text.splitlines() if '"neumann_norm_forward"' in y]
  size = f"tensor<2x128x{heads * WIDTH}xbf16>"
  assert calls and all(size in call for call in calls)


def test_a_step_of_decoding_has_gradients_in_the_simulator():
  graph, state = nnx.split(layer("interpret"))
  x = jax.ShapeDtypeStruct((2, 1, 32), jnp.float32)
  (_, d_x), _ = jax.eval_shape(functools.partial(step, graph), state, x)
  assert d_x.shape == x.shape


# --- Who names the kernels is told where they do not run ----------------------

LEFT = {
  "padding": ({}, "the convolution of rows with padding has no kernel"),
  "taps": ({"linear_conv_kernel_dim": 9}, "may have 8 taps there, got 9"),
  "mesh": ({}, "mesh axis 'tensor' splits q|k|v of the convolution"),
  "states": ({}, "one state a row, not one for each document"),
  "chunks": ({"chunk_size": 32}, "a kernel and a scan on a tpu: chunk size 32"),
}


def traced(case, block):
  """A call that kernels cannot run, as far as it is traced."""
  # A shape of its own: what was traced before says nothing again.
  x = jax.ShapeDtypeStruct((2, 136, 32), jnp.float32)
  ids = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
  given = {}
  if case == "mesh":
    # One key head, which the axis does not divide.
    where = jax.NamedSharding(sharding.make_mesh(tensor=2), P())
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  if case == "padding":
    given = {"mask": ids}
  if case == "states":
    cache = jax.eval_shape(lambda: block.init_cache(4))
    given = {"segment_ids": ids, "cache": cache}
  jax.jit(lambda x, given: block(x, **given)[0]).trace(x, given)


@pytest.mark.parametrize(
  "case, name, level",
  [*((case, "tpu", "WARNING") for case in LEFT), ("taps", "auto", "INFO")],
)
def test_what_is_left_to_xla_is_said(case, name, level, caplog):
  sizes, words = LEFT[case]
  backends.say_fallback.cache_clear()
  with caplog.at_level(logging.INFO, logger="absl"):
    traced(case, layer(name, **sizes))
  said = [r for r in caplog.records if words in r.getMessage()]
  assert [r.levelname for r in said] == [level], caplog.text
  assert f"implementation {name!r} takes " in said[0].getMessage()


# --- Compiled without a TPU, by libtpu ----------------------------------------

COMPILED = {
  "bfloat16": ("bfloat16", (2, 200), False),
  "documents": ("bfloat16", (1, 512), True),
  "float32": ("float32", (1, 300), False),
}


def compile_all(topology, names):
  """Prints what became of every case: runs in a process of its own."""
  device = topologies.get_topology_desc(topology, "tpu").devices[0]
  where = jax.sharding.SingleDeviceSharding(device)
  said = {}
  for name, (dtype, lead, packed) in COMPILED.items():
    graph, state = nnx.split(layer("tpu", dtype))
    given = [jax.ShapeDtypeStruct((*lead, 32), jnp.dtype(dtype))]
    given += [jax.ShapeDtypeStruct(lead, jnp.int32)] if packed else []
    try:
      text = (
        jax.jit(functools.partial(step, graph), in_shardings=where)
        .lower(state, *given)
        .compile()
        .as_text()
      )
      said[name] = "" if "neumann_conv_0_backward" in text else "no kernel"
    except Exception as error:
      said[name] = str(error)[:500]
  print(json.dumps(said))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_compiles_for_every_kind_of_tpu(kind):
  found = tpu_compiler.run("tests.test_tpu_columns", kind, [])
  assert found == dict.fromkeys(COMPILED, "")
