"""The kernels on every mesh: each device computes its own rows and heads.

A kernel cannot be partitioned by the compiler. Lowering finds one that stands
outside `jax.shard_map` (a TPU refuses it), and the shapes of its operands tell
whether rows and heads were split or gathered. No TPU and no GPU is needed to
lower, and none to compile for a TPU, where libtpu is installed.
"""

import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import sharding
from neumann_jax.delta_rule import on_mesh
from tests import models, oracles, tpu_compiler

MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "tensor": {"tensor": 2},
  "sequence": {"sequence": 8},
  "rows and heads": {"data": 2, "fsdp": 2, "tensor": 2},
  "heads and tokens": {"tensor": 2, "sequence": 4},
}
ROWS, LENGTH, CHUNK = 8, 128, 16
CALLS = {"tpu": "tpu_custom_call", "cuda": oracles.GPU_CALL}


def _step(sizes, devices=None, *, gradient=True):
  """A model's gradient or logits on a mesh, and its arguments as shapes."""
  axis = "sequence" if sizes.get("sequence", 1) > 1 else None
  rule = neumann_jax.RuleOptions(chunk_size=CHUNK, sequence_axis=axis)
  config = dataclasses.replace(
    models.CONFIGS["deep"],
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
  )
  execution = neumann_jax.Execution(rule=rule)
  model = nnx.eval_shape(
    lambda: neumann_jax.LanguageModel(config, execution, rngs=nnx.Rngs(0))
  )
  mesh = sharding.make_mesh(**sizes, devices=devices)
  graph, state = nnx.split(model)
  state = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    state,
    sharding.param_shardings(model, mesh),
  )
  tokens = jax.ShapeDtypeStruct(
    (ROWS, LENGTH), jnp.int32, sharding=sharding.batch_sharding(mesh)
  )

  def logits(model, tokens):
    return model(tokens)[0]

  forward = sharding.on_mesh(mesh, logits) if axis else logits

  def call(state, tokens):
    return forward(nnx.merge(graph, state), tokens)

  def step(state, tokens):
    return jax.grad(lambda state: jnp.mean(call(state, tokens) ** 2))(state)

  return jax.jit(step if gradient else call), (state, tokens)


# The rules of all other meshes are among those of these.
FEW = [
  ("rows and heads", "tpu"),
  ("rows and heads", "cuda"),
  ("sequence", "tpu"),
]


@pytest.mark.parametrize(
  ("name", "platform"),
  [
    pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow)
    for case in itertools.product(MESHES, CALLS)
  ],
)
def test_kernels_meet_their_own_rows_and_heads(name, platform):
  if platform == "cuda" and jax.__version_info__ >= (0, 12):
    pytest.skip("jax 0.12 lowers Triton for a mesh of GPUs only, not of CPUs")
  sizes = MESHES[name]
  step, arguments = _step(sizes)
  text = oracles.exported(step, platform, *arguments).mlir_module()
  calls = [
    line.rpartition(" : (")[2]  # the types of operands and results
    for line in text.splitlines()
    if f"custom_call @{CALLS[platform]}(" in line
  ]
  assert calls
  # The matrices that one device inverts, [N, B, Hk, R, C, C] of its own.
  config = models.CONFIGS["deep"]
  split = math.prod(
    size
    for axis, size in sizes.items()
    if axis != "tensor" or config.linear_num_key_heads % size == 0
  )
  entries = ROWS * LENGTH * CHUNK * config.linear_num_value_heads // split
  for types in calls:
    for shape in re.findall(r"tensor<([\dx]+)xf32>", types):
      assert math.prod(map(int, shape.split("x"))) <= entries, shape


def test_what_came_back_from_a_mesh_is_on_one_device():
  mesh = sharding.make_mesh(data=2)
  k = jnp.ones((2, 16, 1, 16)) / 4
  gates = jnp.full((2, 16, 1), -0.1), jnp.full((2, 16, 1), 0.5)
  want, _ = neumann_jax.gated_delta_rule(k, k, k, *gates)
  there = jax.device_put((k, *gates), jax.NamedSharding(mesh, jax.P("data")))
  k, *gates = jax.device_put(there, jax.devices()[0])
  found, _ = neumann_jax.gated_delta_rule(k, k, k, *gates)
  assert found.sharding.device_set == {jax.devices()[0]}
  assert (found == want).all()


def test_an_axis_that_nobody_named_is_told_of(caplog):
  mesh = jax.sharding.Mesh(jax.devices()[:2], ("experts",))
  on_mesh._log_unnamed.cache_clear()
  rng = jax.random.key(0)
  k = jax.random.normal(rng, (2, 32, 1, 16))
  k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
  gates = jnp.full((2, 32, 1), -0.1), jnp.full((2, 32, 1), 0.5)
  want, _ = neumann_jax.gated_delta_rule(k, k, k, *gates)
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  k, gates = jax.device_put((k, gates), where)
  with caplog.at_level("WARNING"):
    found, _ = neumann_jax.gated_delta_rule(k, k, k, *gates)
  assert "'experts'" in caplog.text
  oracles.assert_close(found, want, 1e-6)


# Of four chips, as the topologies that libtpu compiles for.
CHIPS = {
  "data": {"data": 4},
  "fsdp": {"fsdp": 4},
  "tensor": {"data": 2, "tensor": 2},
  "sequence": {"sequence": 4},
  "fsdp and tensor": {"fsdp": 2, "tensor": 2},
  "sequence and tensor": {"sequence": 2, "tensor": 2},
}


def compile_all(topology, names):
  """Prints what became of every mesh: runs in a process of its own."""
  devices = topologies.get_topology_desc(topology, "tpu").devices
  said = {}
  for name, gradient in _calls(names):
    try:
      step, arguments = _step(CHIPS[name], devices, gradient=gradient)
      text = step.lower(*arguments).compile().as_text()
      wrong = "" if "neumann_" in text else "no kernel in the program"
    except Exception as error:
      wrong = str(error)[:500]
    said[str((name, gradient))] = wrong
  print(json.dumps(said))


def _calls(names):
  """Forward and training step on every mesh."""
  return itertools.product(names, (False, True))


def _all_compile(kind, names):
  found = tpu_compiler.run("tests.test_meshes", kind, names)
  assert found == dict.fromkeys(map(str, _calls(names)), "")


@pytest.mark.slow
def test_a_model_compiles_for_two_meshes_of_a_tpu():
  _all_compile("v5e", ["tensor", "sequence"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_a_model_compiles_for_every_mesh_and_kind_of_tpu(kind):
  _all_compile(kind, list(CHIPS))


def _explicit():
  """What `jax.make_mesh` makes unless it is told otherwise."""
  return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


@pytest.mark.parametrize("form", [lambda f: f, jax.jit])
def test_a_mesh_with_explicit_axes_is_named(form):
  """One sentence, before jax says anything about types of shardings."""
  where = NamedSharding(_explicit(), P("data"))
  sentence = (
    "axis 'data' is explicit: make it by neumann_jax.sharding.make_mesh"
  )
  k, gate = (
    jax.device_put(jnp.ones((8, 16, 2, *d)) / 4, where) for d in ((8,), ())
  )
  with oracles.refused(ValueError, sentence):
    form(neumann_jax.gated_delta_rule)(k, k, k, -gate, gate)
  with oracles.refused(ValueError, sentence):
    form(neumann_jax.inverse)(jax.device_put(jnp.zeros((8, 16, 16)), where))
  model = models.make("dense")
  tokens = jax.device_put(jnp.zeros((8, 16), jnp.int32), where)
  with oracles.refused(ValueError, sentence):
    form(lambda tokens: model(tokens)[0])(tokens)
  with oracles.refused(ValueError, sentence):
    neumann_jax.generate(
      model,
      [[1, 2, 3]] * 8,
      max_new_tokens=2,
      sharding=where,
      key=jax.random.key(0),
    )


def test_no_model_goes_to_a_mesh_with_explicit_axes():
  sentence = "parameters must leave shardings to the compiler"
  with oracles.refused(ValueError, sentence):
    sharding.place(models.make("dense"), _explicit())
  with oracles.refused(ValueError, "the mesh of tokens must leave shardings"):
    sharding.batch_sharding(_explicit())
