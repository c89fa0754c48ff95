"""The norm of the residual stream in a TPU kernel, forward and backward."""

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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import InverseSpec, RuleOptions, backends, sharding
from neumann_jax.layers import residual_norm
from neumann_jax.layers.kernels import rms_tpu
from neumann_jax.layers.norms import RMSNorm
from tests import kernel_bodies, oracles, tpu_compiler

# Of five parts of lanes, of one in models.
WIDE, HIDDEN, EPS = 640, 256, 1e-3
# At most 640 terms of a float32 sum; half a step of bfloat16.
ERRORS = {"float32": 2e-6, "bfloat16": 3e-3}


def drawn(*shape, seed=0, dtype="float32"):
  rng = np.random.default_rng([seed, *shape])
  return jnp.asarray(rng.standard_normal(shape), dtype)


def problem(length, dtype):
  x, d_out = (drawn(2, length, WIDE, seed=n, dtype=dtype) for n in range(2))
  return 3 * x, drawn(WIDE, seed=2, dtype=dtype) / 4, d_out


def truth(x, weight, d_out, step=0.0):
  """In float64, the norm and its gradients, at x + step d_out."""

  def form(x, weight):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS) * (1 + weight)

  with jax.enable_x64(True):
    given = (np.asarray(y.astype(jnp.float32)) for y in (x, weight, d_out))
    x, weight, d_out = (jnp.asarray(y, jnp.float64) for y in given)
    out, pull = jax.vjp(form, x + step * d_out, weight)
    return [np.asarray(y) for y in (out, *pull(d_out))]


def kernels(x, weight, d_out, interpret=True):
  out = residual_norm._launch(EPS, x, weight, interpret=interpret)
  return out, *residual_norm._gradients(
    EPS, x, weight, d_out, interpret=interpret
  )


PLAIN, SIMULATED = True, pltpu.InterpretParams()


@pytest.mark.parametrize(
  "interpret, dtype",
  [
    (PLAIN, "bfloat16"),
    (SIMULATED, "float32"),
    pytest.param(PLAIN, "float32", marks=pytest.mark.slow),
    pytest.param(SIMULATED, "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_values_and_gradients_against_float64(monkeypatch, dtype, interpret):
  """Two blocks, the second not full: what nobody wrote is NaN there."""
  monkeypatch.setattr(rms_tpu, "_BYTES", 32 * WIDE * jnp.dtype(dtype).itemsize)
  given = problem(53, dtype)
  run = oracles.quick_jit(functools.partial(kernels, interpret=interpret))
  for found, want in zip(run(*given), truth(*given), strict=True):
    assert found.dtype == dtype
    error = oracles.whole_error(found.astype(jnp.float32), want)
    assert error <= ERRORS[dtype]


def layer(implementation, dtype="float32", hidden=HIDDEN):
  """A model of one layer: in float32 of attention, which is quick to run."""
  kind = "full_attention" if dtype == "float32" else "linear_attention"
  config = neumann_jax.ModelConfig(
    hidden_size=hidden,
    num_hidden_layers=1,
    layer_types=(kind,),
    intermediate_size=64,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
  )
  rule = RuleOptions(
    fused=True,
    spec=InverseSpec(precision=dtype),
    implementation=implementation,
  )
  execution = neumann_jax.Execution(dtype=dtype, param_dtype=dtype, rule=rule)
  made = nnx.eval_shape(
    lambda: neumann_jax.LanguageModel(config, execution, rngs=nnx.Rngs(0))
  )
  return nnx.split(made)


def filled(state, dtype="float32"):
  """Parameters of normal draws, the norms' weights among them."""
  leaves, tree = jax.tree.flatten(state)
  some = (drawn(*x.shape, seed=n, dtype=dtype) for n, x in enumerate(leaves))
  return tree.unflatten(y / 16 for y in some)


def step(graph, state, tokens):
  """Gradients and logits."""

  def loss(state):
    logits, _ = nnx.merge(graph, state)(tokens)
    return jnp.sum(jnp.sin(logits)), logits

  return jax.grad(loss, has_aux=True)(state)


def run(implementation, tokens, place=lambda state: state):
  graph, state = layer(implementation)
  call = oracles.quick_jit(functools.partial(step, graph))
  return call(place(filled(state)), tokens)


TOKENS = np.arange(2 * 20).reshape(2, 20) % 7


@pytest.mark.slow
def test_a_model_with_the_kernels_is_that_without():
  """All three norms of one layer: its values and every gradient."""
  (gradients, found), (want_gradients, want) = map(
    functools.partial(run, tokens=TOKENS), ("interpret", "xla")
  )
  assert oracles.whole_error(found, want) <= oracles.FLOAT32_BLOCK
  for x, y in zip(*map(jax.tree.leaves, (gradients, want_gradients))):
    assert oracles.whole_error(x, y) <= oracles.FLOAT32_MODEL


def test_a_mesh_sums_the_weights_gradient_over_rows():
  mesh = sharding.make_mesh(data=2, tensor=2)

  def place(state):
    where = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.device_put(x, where), state)

  tokens = jax.device_put(TOKENS, sharding.batch_sharding(mesh))
  found, _ = run("auto", tokens, place)
  want, _ = run("auto", TOKENS)
  for x, y in zip(*map(jax.tree.leaves, (found, want))):
    assert oracles.whole_error(x, y) <= oracles.FLOAT32_SHARDED_GRADIENT


def calls(text):
  names = ("forward", "backward")
  return [len(re.findall(f'"neumann_rms_{name}"', text)) for name in names]


@pytest.mark.parametrize(
  "platform, length, hidden, dtype, want",
  [
    ("tpu", 128, HIDDEN, "float32", [3, 3]),
    ("tpu", 1, HIDDEN, "float32", [0, 0]),
    ("tpu", 128, 192, "float32", [0, 0]),
    ("cuda", 128, HIDDEN, "float32", [0, 0]),
    pytest.param(
      *("tpu", 128, HIDDEN, "bfloat16", [3, 3]), marks=pytest.mark.slow
    ),
  ],
)
def test_where_the_kernels_are_lowered(platform, length, hidden, dtype, want):
  """Not for a step of decoding, nor for a width that lanes do not divide."""
  graph, state = layer("auto", dtype, hidden)
  tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
  call = functools.partial(step, graph)
  text = oracles.exported(call, platform, state, tokens).mlir_module()
  # Equal kernels of a layer are one function, which is called.
  assert [bool(n) for n in calls(text)] == [bool(n) for n in want]


def test_all_norms_of_a_layer_are_kernels():
  """Before the mixer, before the second half, and the last one."""
  graph, state = layer("tpu", "bfloat16")
  tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
  made = jax.make_jaxpr(functools.partial(step, graph))(state, tokens)
  found = kernel_bodies.names(made.jaxpr)
  assert found.count("neumann_rms_forward") == 3
  assert found.count("neumann_rms_backward") == 3


def test_tangents_are_refused_in_a_sentence():
  how = RuleOptions(fused=True)
  x = drawn(1, 16, 128)

  def forward(x):
    norm = functools.partial(residual_norm.normed, how, RMSNorm(128))
    return jax.jvp(norm, (x,), (x,))

  sentence = "first derivatives in reverse mode only: for second ones"
  for call in (forward, jax.jit(forward)):
    with oracles.refused(NotImplementedError, sentence):
      call(x)


def test_gradients_of_the_xla_form_have_tangents():
  """As on a CPU in training: the sum of squares of a gradient, in float64."""
  x, weight, d_out = problem(16, "float32")
  norm = RMSNorm(WIDE, eps=EPS)
  norm.weight[...] = weight

  def along(x):
    found = residual_norm.normed(RuleOptions(fused=True), norm, x)
    return jnp.sum(found * d_out)

  run = oracles.quick_jit(lambda x: jax.jvp(jax.grad(along), (x,), (d_out,))[1])
  step = 1e-4
  ends = [truth(x, weight, d_out, s * step)[1] for s in (1, -1)]
  assert oracles.whole_error(run(x), (ends[0] - ends[1]) / (2 * step)) <= 1e-5


def on_mesh(mesh, implementation):
  """A training step and its arguments as shapes."""
  graph, state = layer(implementation, "bfloat16")
  shardings = sharding.param_shardings(nnx.merge(graph, state), mesh)
  state = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    state,
    shardings,
  )
  where = sharding.batch_sharding(mesh)
  tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=where)
  return functools.partial(step, graph), state, tokens


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"fsdp": 4}])
def test_a_mesh_gives_each_device_its_rows(sizes):
  call, *given = on_mesh(sharding.make_mesh(**sizes), "auto")
  text = oracles.exported(call, "tpu", *given).mlir_module()
  rows = 8 // sizes.get("data", sizes.get("fsdp"))
  for name in ("forward", "backward"):
    found = [y for y in text.splitlines() if f'"neumann_rms_{name}"' in y]
    size = f"tensor<{rows}x128x{HIDDEN}xbf16>"
    assert found and all(size in one for one in found)


# --- Who names the kernels is told where they do not run ----------------------


def test_a_width_without_kernels_is_said(caplog):
  backends.say_fallback.cache_clear()
  x = jnp.zeros((1, 2, 192))
  for name, level in (("tpu", "WARNING"), ("auto", "INFO")):
    how = RuleOptions(fused=True, implementation=name)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="absl"):
      residual_norm.normed(how, RMSNorm(192), x)
    (said,) = caplog.records
    assert said.levelname == level and "columns up to 32768" in said.message


# --- Compiled without a TPU, by libtpu ----------------------------------------

COMPILED = {
  "bfloat16": ("bfloat16", (2, 200), 4096),
  "float32": ("float32", (1, 300), 4096),
  "narrow": ("bfloat16", (1, 7), 128),
  "widest": ("float32", (1, 40), rms_tpu.WIDEST),
}
# Of four chips.
MESHES = ({"data": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2}, {"data": 4})


def compile_all(topology, names):
  """Prints what became of every case: runs in a process of its own."""
  devices = topologies.get_topology_desc(topology, "tpu").devices
  where = jax.sharding.SingleDeviceSharding(devices[0])
  said = {}

  def compiled(name, function, *given, **placed):
    try:
      text = jax.jit(function, **placed).lower(*given).compile().as_text()
      kernels = ("neumann_rms_forward", "neumann_rms_backward")
      found = all(kernel in text for kernel in kernels)
      said[name] = "" if found else "no kernel"
    except Exception as error:
      said[name] = str(error)[:500]

  def both(norm, x):
    how = RuleOptions(fused=True, implementation="tpu")
    out, pull = jax.vjp(
      lambda w, x: residual_norm.normed(how, nnx.merge(graph, w), x), norm, x
    )
    return out, pull(out)

  for name in names:
    dtype, lead, width = COMPILED[name]
    graph, state = nnx.split(RMSNorm(width, param_dtype=dtype))
    x = jax.ShapeDtypeStruct((*lead, width), jnp.dtype(dtype))
    compiled(name, both, state, x, in_shardings=where)
  for sizes in MESHES:
    mesh = sharding.make_mesh(**sizes, devices=devices)
    compiled(str(sizes), *on_mesh(mesh, "tpu"))
  print(json.dumps(said))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_compiles_for_every_kind_of_tpu(kind):
  found = tpu_compiler.run("tests.test_residual_norm", kind, list(COMPILED))
  assert found == dict.fromkeys([*COMPILED, *map(str, MESHES)], "")
