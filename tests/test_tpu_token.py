"""One token of the rule in a TPU kernel: interpreted, lowered and compiled."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import RuleOptions, sharding
from neumann_jax.delta_rule import one_token
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.tpu import token_kernel
from tests import float64_rule, models, oracles, tpu_compiler

WIDTH = 128
SCALE = WIDTH**-0.5
# Sums of 128 products in float32, and what bfloat16 rounds once.
LIMITS = {"float32": 2e-6, "bfloat16": 4e-3}


def problem(key_heads=1, ratio=2, beta=2.0):
  """A row a key family, one head of each row forgets."""
  p = oracles.problem(
    1,
    ratio=ratio,
    key_heads=key_heads,
    dk=WIDTH,
    dv=WIDTH,
    beta=(0.0, beta),
  )
  p.log_decay[:, :, 0] = -np.inf
  return p


@functools.partial(oracles.quick_jit, static_argnames="interpret")
def kernel(p, interpret=True):
  """The body on the CPU, of a problem of one token."""
  arrays = Operands(*(jnp.asarray(x[:, 0]) for x in p[:5]))
  assert one_token.refusal(None, arrays, SCALE, p[5]) is None
  return token_kernel.step(*arrays, SCALE, p[5], interpret=interpret)


def check(found, p, out_limit, state_limit):
  out, state = found
  truth = float64_rule.delta_rule(p)
  assert oracles.error(np.float32(out), truth[0][:, 0]) <= out_limit
  assert oracles.error(np.float32(state), truth[1]) <= state_limit


@pytest.mark.parametrize(
  "heads",
  [
    (1, 2),
    *(pytest.param(x, marks=pytest.mark.slow) for x in ((2, 1), (3, 4))),
  ],
)
def test_a_token_is_that_of_the_recurrence(heads):
  """Every family, grouped heads, tokens that forget, beta to 2."""
  p = problem(*heads)
  check(kernel(p), p, LIMITS["float32"], LIMITS["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(1, 3), (16, 2), (1, 17)])
def test_heads_fill_several_steps_or_more_than_one(heads):
  p = problem(*heads)
  check(kernel(p), p, LIMITS["float32"], LIMITS["float32"])


def test_narrow_operands_and_states_are_rounded_once():
  p, wide = oracles.narrow(problem(), jnp.bfloat16)
  state = jnp.asarray(p[5], jnp.bfloat16)
  found = kernel(p._replace(initial_state=state))
  assert [x.dtype for x in found] == [jnp.bfloat16] * 2
  wide = wide._replace(initial_state=np.asarray(state, np.float64))
  check(found, wide, LIMITS["bfloat16"], LIMITS["bfloat16"])


def layer_step(implementation, rows=2):
  """A layer of one key head, which decodes a token in some implementation."""
  config = neumann_jax.ModelConfig(
    hidden_size=16,
    linear_num_key_heads=1,
    linear_num_value_heads=2,
    linear_key_head_dim=WIDTH,
    linear_value_head_dim=WIDTH,
  )
  rule = RuleOptions(implementation=implementation)
  with models.drawn_by_numpy():
    layer = neumann_jax.GatedDeltaNet(
      config, neumann_jax.Execution(rule=rule), rngs=nnx.Rngs(0)
    )
  cache = layer.init_cache(rows)
  rng = np.random.default_rng(0)
  cache = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), cache
  )
  x = jnp.asarray(rng.standard_normal((rows, 1, 16)), jnp.float32)
  return layer, x, cache


def test_a_layer_decodes_by_the_kernel():
  """On a simulated TPU, whose memory is NaN until it is written."""
  want, found = (
    layer(x, cache=cache, mask=jnp.asarray([[1], [0]]))
    for layer, x, cache in map(layer_step, ("xla", "interpret"))
  )
  oracles.assert_close(found, want, LIMITS["float32"])
  _, _, cache = layer_step("xla")
  # Padding leaves the state alone.
  state = found[1].recurrent_state
  np.testing.assert_array_equal(state[1], cache.recurrent_state[1])


@pytest.mark.parametrize(
  "sizes, own",
  [
    ({"data": 8}, (1, 4)),
    ({"data": 2, "fsdp": 2}, (2, 4)),
    ({"data": 2, "tensor": 4}, (4, 1)),
    ({"tensor": 8}, (8, 4)),  # as no eight devices share four heads
  ],
)
def test_each_device_reads_the_states_of_its_own_rows_and_heads(sizes, own):
  mesh = sharding.make_mesh(**sizes)
  heads = "tensor" if own[1] == 1 else None

  def shaped(spec, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, spec)
    )

  rows = ("data", "fsdp")
  k = shaped(P(rows, heads), 8, 4, WIDTH)
  gate = shaped(P(rows, heads), 8, 4, dtype=jnp.float32)
  state = shaped(P(rows, heads), 8, 4, WIDTH, WIDTH, dtype=jnp.float32)

  def step(arrays, state):
    return one_token.step(RuleOptions(), arrays, SCALE, state)

  text = oracles.exported(
    step, "tpu", Operands(k, k, k, gate, gate), state
  ).mlir_module()
  (call,) = (x for x in text.splitlines() if "@tpu_custom_call(" in x)
  assert "neumann_rule_token" in call
  assert f"tensor<{own[0]}x{own[1]}x{WIDTH}x{WIDTH}xf32>" in call


@pytest.mark.parametrize(
  "given, reason",
  [
    ({"dtype": jnp.float16}, "q, k, v and the state must be bfloat16 or float"),
    ({"state": "float16"}, "q, k, v and the state must be bfloat16 or float"),
    ({"width": 64}, "Dk and Dv must be 128, got 64 and 64"),
    ({}, None),
  ],
)
def test_refusals(given, reason):
  found = one_token.refusal(None, *shapes(**given))
  assert found is None if reason is None else found.startswith(reason)


def test_a_tpu_with_little_memory_is_refused_by_name():
  device = jax.sharding.AbstractDevice("TPU v4", 1, "tpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert one_token.refusal(None, *shapes(hk=16, hv=32)) is None
    found = one_token.refusal(None, *shapes(hk=1, hv=64))
  assert "a TPU v4 has 16 MiB" in found


@pytest.mark.parametrize("rows", [1, 7, 128])
@pytest.mark.parametrize("heads", [(1, 1), (2, 6), (16, 32), (5, 20), (1, 64)])
def test_plans_hold_every_row_and_head(rows, heads):
  plan = token_kernel.plan(rows, *heads)
  assert rows % plan.rows == 0 and heads[0] % plan.keys == 0
  assert plan.values == plan.keys * heads[1] // heads[0]
  assert plan.rows * plan.values <= max(16, heads[1] // heads[0])


def shapes(
  rows=8, hk=2, hv=4, width=WIDTH, dtype=jnp.bfloat16, state="float32"
):
  keys = jax.ShapeDtypeStruct((rows, hk, width), dtype)
  values = jax.ShapeDtypeStruct((rows, hv, width), dtype)
  gate = jax.ShapeDtypeStruct((rows, hv), jnp.float32)
  old = jax.ShapeDtypeStruct((rows, hv, width, width), jnp.dtype(state))
  return Operands(keys, keys, values, gate, gate), SCALE, old


# --- Compiled without a TPU, by libtpu ---------------------------------------

COMPILED = {
  "of Qwen3.5": {"rows": 128, "hk": 16, "hv": 32},
  "narrow states": {"rows": 128, "hk": 16, "hv": 32, "state": "bfloat16"},
  "one key head of many rows": {"rows": 64, "hk": 1, "hv": 2},
  "three keys, float32": {"rows": 3, "hk": 3, "hv": 9, "dtype": "float32"},
  "one row": {"rows": 1, "hk": 4, "hv": 16},
}


def compile_all(topology, names):
  """Prints what became of every case: runs in a process of its own."""
  device = topologies.get_topology_desc(topology, "tpu").devices[0]
  where = jax.sharding.SingleDeviceSharding(device)
  how = RuleOptions(implementation="tpu")
  said = {}
  for case, given in [x for name in names for x in globals()[name].items()]:
    arrays, scale, old = shapes(**given)
    step = jax.jit(
      lambda arrays, old, scale=scale: one_token.step(how, arrays, scale, old),
      in_shardings=where,
      out_shardings=where,
      donate_argnums=1,
    )
    try:
      compiled = step.lower(arrays, old).compile()
      called = "neumann_rule_token" in compiled.as_text()
      said[case] = "" if called else "no kernel in the program"
      # States stay where they are: no second copy of them.
      held = compiled.memory_analysis().temp_size_in_bytes
      if held >= old.size * old.dtype.itemsize:
        said[case] = f"{held} bytes beside {old.shape} states"
    except Exception as error:
      said[case] = str(error)[:500]
  for case, sizes in MESHES.items():
    try:
      text = on_mesh(sizes, topologies.get_topology_desc(topology, "tpu"))
      called = "neumann_rule_token" in text and "all-gather" not in text
      said[case] = "" if called else "gathered, or no kernel in the program"
    except Exception as error:
      said[case] = str(error)[:500]
  print(json.dumps(said))


MESHES = {
  "rows and heads": {"data": 2, "tensor": 2},
  "rows": {"data": 2, "fsdp": 2},
}


def on_mesh(sizes, described):
  """The compiled text of a step on a mesh of four chips."""
  mesh = sharding.make_mesh(**sizes, devices=described.devices)
  spec = NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
  arrays, scale, old = jax.tree.map(
    lambda x: (
      x
      if isinstance(x, float)
      else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec)
    ),
    shapes(rows=8, hk=4, hv=8),
  )
  how = RuleOptions()

  def step(arrays, old):
    return one_token.step(how, arrays, scale, old)

  return jax.jit(step, donate_argnums=1).lower(arrays, old).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_compiles_for_every_kind_of_tpu(kind):
  found = tpu_compiler.run("tests.test_tpu_token", kind, ["COMPILED"])
  assert found == dict.fromkeys(COMPILED | MESHES, "")
