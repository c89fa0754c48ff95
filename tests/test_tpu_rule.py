"""The whole rule in one TPU kernel: interpreted, lowered and compiled."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import neumann_jax
from experiments.data.key_families import FAMILIES
from neumann_jax import InverseSpec, QuantSpec, RuleOptions
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.tpu import grid_plan
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from tests import kernel_bodies, oracles, tpu_compiler

FLOAT32, BF16 = InverseSpec(), InverseSpec(precision="bfloat16")
WIDTH = 128


@functools.cache
def problem(length, ratio=2, key_heads=1, resets=False, beta=2.0, rows=None):
  """A row a key family, or some of them."""
  p = oracles.problem(
    length,
    ratio=ratio,
    key_heads=key_heads,
    dk=WIDTH,
    dv=WIDTH,
    beta=(0.0, beta),
  )
  if resets:
    p.log_decay[:, 20:60:7] = -np.inf
    p.log_decay[:, 10] = -50.0
  return oracles.Problem(*(x[:rows] for x in p))


@functools.partial(oracles.quick_jit, static_argnames=("spec", "interpret"))
def kernel(p, ids=None, spec=FLOAT32, interpret=True):
  """The forward kernel's body, run on the CPU."""
  how = RuleOptions(spec=spec, fused=True, implementation="tpu")
  arrays = Operands(*map(jnp.asarray, p[:5]))
  assert tpu_rule.refusal(how, arrays) is None
  scale = jnp.float32(WIDTH**-0.5)
  return tpu_rule.launch(how, arrays, scale, p[5], ids, interpret=interpret)


def test_float32_against_the_recurrence():
  """Every family, a ragged end, a state, documents, tokens that forget."""
  one, many = np.zeros((oracles.FAMILY_COUNT, 70), int), oracles.documents(70)
  for p, ids in (
    (problem(70), one),
    (problem(70), many),
    (problem(70, resets=True), one),
  ):
    truth = oracles.delta_rule(p, ids)
    oracles.assert_close(kernel(p, ids), truth, oracles.FLOAT32_RULE)


@pytest.mark.slow
@pytest.mark.parametrize(
  "key_heads, ratio", [(1, 1), (2, 1), (1, 3), (2, 3), (1, 4)]
)
def test_grouped_heads(key_heads, ratio):
  """Packs of one key head, of two, and with one head left over."""
  p = problem(64, ratio, key_heads)
  oracles.assert_close(kernel(p), oracles.delta_rule(p), oracles.FLOAT32_RULE)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_bfloat16_against_the_recurrence(beta):
  """As near as in XLA; the ladder's own errors double with beta."""
  p, rounded = oracles.narrow(problem(130, beta=beta), jnp.bfloat16)
  out, final = kernel(p, spec=BF16)
  assert out.dtype == jnp.bfloat16 and final.dtype == jnp.float32
  for found, want in zip((out, final), oracles.delta_rule(rounded)):
    errors = oracles.rms_error(found, want)
    assert errors[0] <= oracles.NARROW_RULE["bfloat16"]
    assert errors.max() <= beta * oracles.NARROW_RULE_ANY["bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "spec, interpreter",
  [
    (InverseSpec("newton"), True),
    (InverseSpec(quant=QuantSpec(16, "dynamic", integer=True)), True),
    (InverseSpec(refine=1), pltpu.InterpretParams()),
  ],
)
def test_other_inverses(spec, interpreter):
  """Any method and arithmetic; on the simulated TPU, memory is NaN at first."""
  p = problem(64, rows=3)
  limit = oracles.FLOAT32_RULE
  if spec.quant is not None:
    limit = 10 * oracles.DESIGN_TABLE_BETA_2["int16"]
  found = kernel(p, spec=spec, interpret=interpreter)
  oracles.assert_close(found, oracles.delta_rule(p), limit)


def kept_of_one_chunk(p):
  """What the forward kernel keeps: T beta of both heads, and the state."""
  c = grid_plan.CHUNK
  t = np.zeros((len(p.k), 1, 1, c, 2 * c))
  length = p.k.shape[1]
  for row, head in np.ndindex(len(p.k), 2):
    k, beta = p.k[row, :, 0], p.beta[row, :, head]
    total = np.cumsum(p.log_decay[row, :, head])
    a = np.tril(k @ k.T * np.exp(total[:, None] - total), -1)
    inverse = np.linalg.inv(np.eye(length) + beta[:, None] * a) * beta
    t[row, 0, 0, :length, head * c : head * c + length] = inverse
  return jnp.asarray(np.float32(t)), jnp.asarray(p.initial_state[:, None])


def check_gradients(
  p, ids, dtype, tolerance, error, kept=None, forgets=-50, spec=FLOAT32
):
  """Against the adjoint of the float64 recurrence.

  The kernels get decays of `forgets` where that of the problem is -50.
  """
  p, wide = oracles.narrow(p, dtype)
  p = p._replace(log_decay=jnp.where(p[3] == -50, forgets, p[3]))
  rng = np.random.default_rng(1)
  d_out, d_state = (rng.standard_normal(x.shape) for x in (p.v, p[5]))
  d_out, d_state = jnp.asarray(d_out, dtype), jnp.asarray(np.float32(d_state))
  how = RuleOptions(spec=BF16 if dtype == jnp.bfloat16 else spec, fused=True)
  scale = jnp.float32(WIDTH**-0.5)

  @oracles.quick_jit
  def gradient(p, scale):
    operands = (Operands(*p[:5]), scale, p[5], ids)
    cotangents = (d_out, d_state)
    return tpu_rule.backward(how, operands, kept, cotangents, interpret=True)

  arrays, d_scale, d_initial = gradient(p, scale)
  truth = wide.under(
    functools.partial(
      oracles.delta_rule_adjoint,
      d_out=np.asarray(d_out, np.float64),
      d_state=np.asarray(d_state, np.float64),
    ),
    ids,
  )
  for found, want in zip((*arrays, d_initial), truth, strict=True):
    errors = error(found.astype(jnp.float32), want)
    assert np.all(errors <= tolerance), errors
  # The outputs are linear in the scale, also where it is 0.
  out = oracles.delta_rule(wide, ids)[0] * np.asarray(d_out, np.float64)
  size = np.sqrt((out**2).sum())
  of_zero, d_of_zero, _ = gradient(p, jnp.float32(0))
  assert not np.any(np.asarray(of_zero.q, np.float32))
  for found in (d_scale, d_of_zero):
    assert abs(float(found) * scale - out.sum()) <= np.min(tolerance) * size


def test_gradients_of_one_chunk():
  """The backward kernel alone: T and the state are those of numpy."""
  limit = oracles.FLOAT32_RULE_GRADIENT
  p = problem(50)
  kept = kept_of_one_chunk(p)
  check_gradients(p, None, jnp.float32, limit, oracles.error, kept)


def test_an_inverse_that_is_off_is_not_divided_by_beta():
  """Integers make an error in T that does not vanish where beta does."""
  p = problem(50, rows=3)
  beta = np.where(np.arange(50)[:, None] % 5 == 0, np.float32(1e-4), p.beta)
  p = p._replace(beta=beta)
  t, state = kept_of_one_chunk(p)
  off = np.tril(np.random.default_rng(2).uniform(-1e-5, 1e-5, (64, 64)), -1)
  # T holds beta by column: [3, 2 C] of both heads.
  columns = np.pad(beta, ((0, 0), (0, 14), (0, 0))).swapaxes(1, 2)
  off = np.tile(off, 2) * columns.reshape(3, 1, 1, 1, 128)
  kept = jnp.asarray(t + off, jnp.float32), state
  spec = InverseSpec(quant=QuantSpec(16, "dynamic", integer=True))
  check_gradients(p, None, jnp.float32, 1e-3, oracles.error, kept, spec=spec)


@pytest.mark.slow
@pytest.mark.parametrize(
  "key_heads, ratio, length, packed",
  [
    (1, 2, 130, True),
    (1, 2, 250, True),  # four chunks, two of whose states are kept
    (2, 1, 64, False),
    (2, 3, 64, False),
    (1, 4, 64, False),
  ],
)
def test_gradients(key_heads, ratio, length, packed):
  """Of every family, over chunks, between documents, of grouped heads."""
  p = problem(length, ratio, key_heads)
  ids = oracles.documents(length) if packed else None
  limit = oracles.FLOAT32_RULE_GRADIENT
  check_gradients(p, ids, jnp.float32, limit, oracles.error)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [-50, -np.inf])
def test_gradients_behind_tokens_that_forget(decay):
  """The float64 adjoint has no gradient at -inf: it takes decays of e^-50."""
  p = problem(70, rows=3)
  forgets = np.isin(np.arange(70), range(20, 60, 7))[:, None]
  p = p._replace(log_decay=np.where(forgets, np.float32(-50), p.log_decay))
  limit = oracles.FLOAT32_RULE_GRADIENT
  check_gradients(p, None, jnp.float32, limit, oracles.error, forgets=decay)


# Of the worst family, relative root mean squares: with beta to 1 every product
# rounds its operands, as those of the rule in XLA do; with beta to 2 the worst
# that a Hopper's kernels have there, see docs/benchmarks/speed.md.
BF16_GRADIENTS = {1.0: 3e-2, 2.0: 4.2e-2}


@pytest.mark.slow
@pytest.mark.parametrize(
  "beta, key_heads, ratio, packed",
  [
    (1.0, 1, 2, False),
    (2.0, 1, 2, False),
    (2.0, 2, 1, True),
    (2.0, 2, 3, False),
    (2.0, 1, 4, False),
  ],
)
def test_gradients_of_bfloat16(beta, key_heads, ratio, packed):
  """Of every family, between documents, of grouped heads."""
  p = problem(130, ratio, key_heads, beta=beta)
  ids = oracles.documents(130) if packed else None
  limit = BF16_GRADIENTS[beta]
  check_gradients(p, ids, jnp.bfloat16, limit, oracles.rms_error)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_gradients_of_bfloat16_over_kept_states(beta):
  """Four chunks, two of whose states are kept.

  On identical keys a Hopper's kernels have 0.26 with beta to 2.
  """
  limits = np.full(oracles.FAMILY_COUNT, BF16_GRADIENTS[beta])
  if beta == 2.0:
    limits[FAMILIES.index("identical")] = 0.26
  p = problem(250, beta=beta)
  check_gradients(p, None, jnp.bfloat16, limits, oracles.rms_error)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["interpret", "auto"])
def test_gradients_by_the_public_door(implementation):
  """On a simulated TPU, whose memory is NaN until it is written, or in XLA."""
  p, ids = problem(70, rows=1), oracles.documents(70)[:1]
  rule = functools.partial(
    neumann_jax.gated_delta_rule, fused=True, implementation=implementation
  )
  ones = jnp.ones_like(p.v), jnp.ones_like(p[5])

  @oracles.quick_jit
  def gradient(p):
    return jax.vjp(lambda p: p.under(rule, ids), p)[1](ones)[0]

  truth = p.under(
    functools.partial(
      oracles.delta_rule_adjoint, d_out=ones[0], d_state=ones[1]
    ),
    ids,
  )
  limit = oracles.FLOAT32_RULE_GRADIENT
  oracles.assert_close(tuple(gradient(p)), truth, limit)


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
  [(("data",), "data", None), (("data", "tensor"), "data", "tensor")],
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


@pytest.mark.parametrize("chunk_size", [64, 32])
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
  found = tpu_compiler.run("tests.test_tpu_rule", kind, names)
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
  found = tpu_compiler.run("tests.test_tpu_rule", "7x", [], "hbm_of_gradients")
  arrays, heads, chunks = shapes(1, 8192, 16, 32), 32, 128
  kept = heads * chunks * (WIDTH * WIDTH // 2 + grid_plan.CHUNK**2) * 2
  copies = sum(x.size for x in (arrays.q, arrays.k, *[arrays.v] * 3)) * 2
  assert found <= kept + copies + 16 * 2**20  # gates, and the last states
