"""The rule in one TPU kernel: lowered, refused, and compiled by libtpu."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec, RuleOptions
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.tpu import grid_plan
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from tests import kernel_bodies, oracles, tpu_compiler

BF16 = InverseSpec(precision="bfloat16")
WIDTH = 128


def shapes(b=2, t=200, hk=2, hv=4, dk=WIDTH, dv=WIDTH, dtype=jnp.bfloat16):
  keys = jax.ShapeDtypeStruct((b, t, hk, dk), dtype)
  values = jax.ShapeDtypeStruct((b, t, hv, dv), dtype)
  gate = jax.ShapeDtypeStruct((b, t, hv), jnp.float32)
  return Operands(keys, keys, values, gate, gate)


def step(*arrays, **options):
  """Outputs and gradients of the fused rule, from its public door."""

  def loss(*arrays):
    out, state = neumann_jax.gated_delta_rule(
      *arrays, spec=BF16, fused=True, **options
    )
    return out.astype(jnp.float32).sum() + state.sum()

  return jax.value_and_grad(loss, argnums=range(5))(*arrays)


@pytest.mark.parametrize(
  "names, rows, heads",
  [
    pytest.param(("data",), "data", None, marks=pytest.mark.slow),
    (("data", "tensor"), "data", "tensor"),
  ],
)
def test_lowers_on_meshes_with_its_own_rows_and_heads(names, rows, heads):
  size = (8,) if len(names) == 1 else (4, 2)
  auto = (jax.sharding.AxisType.Auto,) * len(names)
  mesh = jax.make_mesh(size, names, axis_types=auto)
  where = P(rows, None, heads)
  arrays = [
    jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, where)
    )
    for x in shapes(b=8, t=64, hk=2, hv=4)
  ]
  text = oracles.exported(step, "tpu", *arrays).mlir_module()
  calls = [
    line
    for line in text.splitlines()
    if "custom_call @tpu_custom_call(" in line and "neumann_rule_" in line
  ]
  assert any("neumann_rule_backward" in x for x in calls)
  rows, heads = 8 // size[0], 4 // size[-1] if heads else 4
  assert all(f"tensor<{rows}x64x{heads * WIDTH}xbf16>" in x for x in calls)


@pytest.mark.parametrize(
  "chunk_size", [64, pytest.param(32, marks=pytest.mark.slow)]
)
def test_kernels_have_no_integers_of_64_bits(chunk_size):
  """A TPU has none: Mosaic refuses some and dies of others."""
  how = {"implementation": "tpu", "chunk_size": chunk_size}
  with jax.enable_x64(True):
    given = shapes(1, 64, 1, 2)
    made = jax.make_jaxpr(functools.partial(step, **how))(*given)
  assert kernel_bodies.wide(made.jaxpr) == set()


def test_scales_are_batched():
  def scaled(scale, *arrays):
    return step(*arrays, scale=scale)

  over = jax.vmap(scaled, in_axes=(0, *[None] * 5))
  scale = jax.ShapeDtypeStruct((3,), jnp.float32)
  module = oracles.exported(over, "tpu", scale, *shapes(1, 64, 1, 2))
  assert '"neumann_rule_backward"' in module.mlir_module()


@pytest.mark.parametrize("implementation", ["auto", "tpu"])
@pytest.mark.parametrize("outer", ["reverse", "forward"])
def test_second_derivatives_are_refused_in_a_sentence(implementation, outer):
  q, *rest = shapes(1, 64, 1, 2)

  def first(q, *rest):
    return step(q, *rest, implementation=implementation)[1][0]

  def reverse(q, *rest):
    return jax.grad(lambda q: first(q, *rest).astype(jnp.float32).sum())(q)

  def forward(q, *rest):
    return jax.jvp(lambda q: first(q, *rest), (q,), (q,))

  second = reverse if outer == "reverse" else forward
  sentence = "first derivatives in reverse mode only: for second ones"
  with oracles.refused(NotImplementedError, sentence):
    jax.eval_shape(second, q, *rest)


@pytest.mark.parametrize("argument", [0, 3])  # q and the decay
def test_tangents_are_refused_in_a_sentence(argument):
  given = shapes(1, 64, 1, 2)

  def forward(*given):
    def rule(x):
      operands = [*given[:argument], x, *given[argument + 1 :]]
      return neumann_jax.gated_delta_rule(*operands[:5], fused=True)

    x = given[argument]
    return jax.jvp(rule, (x,), (jnp.ones_like(x),))

  sentence = "first derivatives in reverse mode only: for second ones"
  with oracles.refused(NotImplementedError, sentence):
    jax.jit(forward).lower(*given)


@pytest.mark.parametrize(
  "given, options, reason",
  [
    ({"dtype": jnp.float16}, {}, "q, k and v must all be bfloat16 or float32"),
    ({}, {"chunk_size": 32}, "chunk size 32 is not 64"),
    ({"dk": 64}, {}, "Dk and Dv must be 128, got 64 and 128"),
    ({"dv": 256}, {}, "Dk and Dv must be 128, got 128 and 256"),
    ({"hk": 1, "hv": 43}, {}, "a key head may have 42 value heads, got 43"),
    ({}, {"spec": InverseSpec("exact")}, 'method "exact" has no kernel'),
    ({}, {"spec": InverseSpec(precision="float16")}, "a TPU has no float16"),
    ({}, {"spec": InverseSpec(quant=QuantSpec(8))}, "a fused kernel has no en"),
    ({}, {}, None),
  ],
)
def test_refusals(given, options, reason):
  how = RuleOptions(fused=True, **options)
  found = tpu_rule.refusal(how, shapes(**given))
  assert found is None if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
  "kind, fits", [("TPU v4", False), ("TPU v5 lite", True), ("TPU7x", True)]
)
def test_a_tpu_with_little_memory_is_refused_by_name(kind, fits):
  device = jax.sharding.AbstractDevice(kind, 1, "tpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    how = RuleOptions(fused=True)
    found = tpu_rule.refusal(how, shapes(hk=16, hv=32, dtype=jnp.float32))
  assert found is None if fits else "a TPU v4 has 16 MiB" in found


@pytest.mark.parametrize("heads", [(1, 1), (1, 3), (2, 6), (16, 16), (16, 64)])
@pytest.mark.parametrize("length", [1, 64, 200, 8192])
def test_plans_hold_every_head_and_chunk(heads, length):
  plan = grid_plan.plan(length, *heads)
  assert heads[0] % plan.keys == 0 and plan.ratio == heads[1] // heads[0]
  steps = -(-length // plan.tokens)
  assert (steps - 1) * plan.tokens < length
  assert plan.values <= grid_plan.MOST_VALUES
  # No more is padded than a chunk a step.
  assert steps * plan.chunks - -(-length // grid_plan.CHUNK) < steps


# --- Compiled without a TPU, by libtpu ---------------------------------------

# name: heads, length, type of the operands, inverse.
COMPILED = {
  "bfloat16": ((2, 4), 200, "bfloat16", BF16),
  "float32, odd heads": ((1, 3), 64, "float32", InverseSpec()),
  "refined": ((2, 2), 130, "bfloat16", InverseSpec(refine=1)),
}
COMPILED_SLOWLY = {
  f"{ratio} value heads a key head": (
    (16, 16 * ratio),
    8192,
    "bfloat16",
    BF16,
  )
  for ratio in (1, 2, 3, 4)
} | {
  "float32": ((16, 32), 512, "float32", InverseSpec()),
  "int8": (
    (2, 4),
    128,
    "bfloat16",
    InverseSpec(quant=QuantSpec(8, "dynamic", integer=True)),
  ),
  "newton": ((2, 4), 128, "bfloat16", InverseSpec("newton")),
}


def compile_all(topology, names):
  """Prints what became of every case: runs in a process of its own."""
  device = topologies.get_topology_desc(topology, "tpu").devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  said = {}
  for case, options in [x for name in names for x in globals()[name].items()]:
    (hk, hv), length, dtype, spec = options
    arrays = shapes(1, length, hk, hv, dtype=jnp.dtype(dtype))
    form = functools.partial(
      neumann_jax.gated_delta_rule, spec=spec, fused=True, implementation="tpu"
    )
    try:
      text = (
        jax.jit(form, in_shardings=sharding, out_shardings=sharding)
        .lower(*arrays)
        .compile()
        .as_text()
      )
      called = "neumann_rule_forward" in text
      said[case] = "" if called else "no kernel in the program"
    except Exception as error:
      said[case] = str(error)[:500]
  print(json.dumps(said))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_compiles_for_every_kind_of_tpu(kind):
  names = ["COMPILED", "COMPILED_SLOWLY"]
  found = tpu_compiler.run("tests.test_tpu_rule_lowering", kind, names)
  assert found == dict.fromkeys(COMPILED | COMPILED_SLOWLY, "")


def hbm_of_gradients(topology, _):
  """Prints the bytes beside arguments and results: in its own process."""
  device = topologies.get_topology_desc(topology, "tpu").devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  *arrays, d_out = shapes(1, 8192, 16, 32), shapes(1, 8192, 16, 32).v

  def both(arrays, d_out):
    rule = functools.partial(
      neumann_jax.gated_delta_rule, spec=BF16, fused=True, implementation="tpu"
    )
    out, pull = jax.vjp(lambda *x: rule(*x)[0], *arrays)
    return out, pull(d_out)

  compiled = (
    jax.jit(both, in_shardings=sharding, out_shardings=sharding)
    .lower(*arrays, d_out)
    .compile()
  )
  print(json.dumps(compiled.memory_analysis().temp_size_in_bytes))


@pytest.mark.slow
def test_gradients_take_the_place_of_their_operands():
  """What is kept, and one copy each of operands and outputs with flat heads."""
  found = tpu_compiler.run(
    "tests.test_tpu_rule_lowering", "7x", [], "hbm_of_gradients"
  )
  arrays, heads, chunks = shapes(1, 8192, 16, 32), 32, 128
  kept = heads * chunks * (WIDTH * WIDTH // 2 + grid_plan.CHUNK**2) * 2
  copies = sum(x.size for x in (arrays.q, arrays.k, *[arrays.v] * 3)) * 2
  assert found <= kept + copies + 16 * 2**20  # gates, and the last states
