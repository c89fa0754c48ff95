"""The rule on a Hopper GPU, as far as a CPU host can see it.

What is refused, what its kernels are given, and that everything lowers for
cuda; their arithmetic is in `test_hopper_formulas`. On a card see
`experiments.rule_speed`.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec, backends
from neumann_jax.delta_rule import sequence_parallel
from neumann_jax.delta_rule.hopper import passes as hopper_passes
from neumann_jax.delta_rule.hopper import rule as hopper_rule
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from tests import kernel_bodies, oracles

C, D = 64, 128
FUSED = RuleOptions(fused=True, spec=InverseSpec(precision="float16"))
INTEGERS = InverseSpec(quant=QuantSpec(8))
SCALED = InverseSpec(quant=QuantSpec(8, "dynamic"))
needs_mosaic = pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11 for these"
)


def operands(
  b=2, t=200, hk=2, hv=4, dk=D, dv=D, dtype=jnp.bfloat16
) -> Operands:
  keys = jax.ShapeDtypeStruct((b, t, hk, dk), dtype)
  values = jax.ShapeDtypeStruct((b, t, hv, dv), dtype)
  gates = jax.ShapeDtypeStruct((b, t, hv), jnp.float32)
  return Operands(keys, keys, values, gates, gates)


@needs_mosaic
@pytest.mark.parametrize(
  "shapes, options, card, reason",
  [
    ({}, {}, "8.0", "the card must be a Hopper one (9.0), got 8.0"),
    ({"dtype": jnp.float32}, {}, "9.0", "q, k and v must be bfloat16, got flo"),
    ({"dtype": jnp.float16}, {}, "9.0", "q, k and v must be bfloat16, got flo"),
    ({}, {"chunk_size": 32}, "9.0", "chunk size 32 is not 64"),
    ({"dk": 32}, {}, "9.0", "Dk and Dv must be 64, 128 or 256, got 32 and 128"),
    (
      {"dv": 512},
      {},
      "9.0",
      "Dk and Dv must be 64, 128 or 256, got 128 and 512",
    ),
    ({"dk": 96}, {}, "9.0", "Dk and Dv must be 64, 128 or 256, got 96 and 128"),
    ({"dv": 192}, {}, "9.0", "Dk and Dv must be 64, 128 or 256, got 128 and"),
    ({"t": 2**23}, {}, "9.0", "an array of 2^31 entries is too large"),
    (
      {"t": 2**20, "dv": 256},
      {},
      "9.0",
      "an array of 2^31 entries is too larg",
    ),
    ({}, {"spec": InverseSpec("exact")}, "9.0", 'method "exact" has no kernel'),
    ({}, {"spec": INTEGERS}, "9.0", "their gradient of beta is inexact for an"),
    ({}, {"spec": SCALED}, "9.0", "their gradient of beta is inexact for an"),
  ],
)
def test_refusals(shapes, options, card, reason):
  how = RuleOptions(**({"spec": FUSED.spec} | options))
  found = hopper_rule.refusal(operands(**shapes), how, card)
  assert found is not None and found.startswith(reason)


@needs_mosaic
def test_takes_what_is_fused_on_a_hopper_card():
  arrays = operands()
  assert hopper_rule.refusal(arrays, FUSED) is None
  assert not hopper_rule.takes(arrays, FUSED)  # no card is known here
  for kind, takes in (("NVIDIA H200", True), ("NVIDIA A100", False)):
    with on(kind):
      assert hopper_rule.takes(arrays, FUSED) == takes
      assert not hopper_rule.takes(arrays, RuleOptions())


@needs_mosaic
@pytest.mark.parametrize("name, level", [("gpu", "WARNING"), ("auto", "INFO")])
def test_who_names_the_kernels_is_told_where_they_do_not_run(
  name, level, caplog
):
  how = RuleOptions(spec=FUSED.spec, fused=True, implementation=name)
  backends.say_fallback.cache_clear()
  with on(), caplog.at_level(logging.INFO, logger="absl"):
    assert not hopper_rule.takes(operands(dv=512), how)
  assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
    (
      level,
      f"implementation {name!r} takes the rule in parts on a gpu: Dk and Dv "
      "must be 64, 128 or 256, got 128 and 512",
    )
  ]


def test_who_names_kernels_is_told_that_documents_have_one_scan(caplog):
  """Each with a state of its own: u and w alone are a kernel's."""
  arrays = operands(t=136)
  state = jax.ShapeDtypeStruct((2, 3, 4, D, D), jnp.float32)
  ids = jax.ShapeDtypeStruct((2, 136), jnp.int32)
  rule = functools.partial(
    neumann_jax.gated_delta_rule, spec=FUSED.spec, implementation="gpu"
  )
  backends.say_fallback.cache_clear()
  with caplog.at_level(logging.INFO, logger="absl"):
    jax.eval_shape(
      lambda x, state, ids: rule(*x, initial_state=state, segment_ids=ids),
      *(arrays, state, ids),
    )
  words = "takes XLA's scan over chunks on a gpu: the kernels have one state"
  said = [r.levelname for r in caplog.records if words in r.getMessage()]
  assert said == ["WARNING"], caplog.text


def on(kind="NVIDIA H200"):
  device = jax.sharding.AbstractDevice(kind, None, "cuda")
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh((), (), abstract_device=device)
  )


def gradient(rule, *arrays):
  def loss(*arrays):
    out, state = rule(*arrays)
    return out.astype(jnp.float32).sum() + state.sum()

  # With the value: what nobody asks for is not computed.
  return jax.value_and_grad(loss, argnums=range(len(arrays)))(*arrays)


KERNELS = ("outputs", "states", "reverse", "gradients")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@needs_mosaic
@pytest.mark.parametrize(
  "heads, widths, packed",
  [
    ((1, 1), (128, 128), False),
    ((1, 4), (128, 128), True),
    ((2, 6), (128, 128), True),
    ((1, 1), (256, 256), False),
    slow((2, 6), (256, 256), True),
    ((1, 4), (128, 256), False),
    slow((1, 1), (256, 128), True),
  ],
)
def test_all_of_a_training_step_is_kernels(heads, widths, packed):
  """Any length, grouped heads, documents, an initial state."""
  arrays = operands(hk=heads[0], hv=heads[1], dk=widths[0], dv=widths[1])
  state = jax.ShapeDtypeStruct((2, heads[1], *widths), jnp.float32)
  ids = jnp.zeros((2, 200), jnp.int32).at[:, 90:].set(1) if packed else None

  def rule(*x):
    return neumann_jax.gated_delta_rule(
      *x[:5], initial_state=x[5], segment_ids=ids, spec=FUSED.spec, fused=True
    )

  exported = oracles.exported(
    functools.partial(gradient, rule), "cuda", *arrays, state
  )
  module = exported.mlir_module()
  for name in KERNELS:
    assert f"delta_rule_{name}" in module
  assert ("delta_rule_scores" in module) == (widths[0] == 256)
  assert "stablehlo.dot_general" not in module  # no product is left to XLA


@needs_mosaic
@pytest.mark.parametrize("widths", [(128, 128), (256, 256), (128, 256)])
def test_widths_of_whole_blocks_are_kernels_without_gradients_too(widths):
  arrays = operands(hk=1, hv=1, dk=widths[0], dv=widths[1])

  def rule(*x):
    return neumann_jax.gated_delta_rule(*x, spec=FUSED.spec, fused=True)

  module = oracles.exported(rule, "cuda", *arrays).mlir_module()
  assert "delta_rule_outputs" in module


@needs_mosaic
def test_narrower_keys_and_values_are_kernels_too():
  """With gradients: without, Triton's have the width itself."""
  arrays = operands(hk=1, hv=1, dk=64, dv=64)

  def rule(*x):
    return neumann_jax.gated_delta_rule(*x, spec=FUSED.spec, fused=True)

  module = oracles.exported(
    functools.partial(gradient, rule), "cuda", *arrays
  ).mlir_module()
  for name in KERNELS:
    assert f"delta_rule_{name}" in module
  module = oracles.exported(rule, "cuda", *arrays).mlir_module()
  assert "neumann_state_64" in module
  assert "delta_rule_outputs" not in module


@pytest.mark.parametrize(
  "widths, columns, whole",
  [
    ((64, 80), 80, (128, 128)),
    ((200, 80), 80, (256, 128)),
    ((64, 200), 200, (128, 256)),
    # A map of shards, whose state has the columns of an identity.
    ((200, 80), 200, (256, 256)),
  ],
)
def test_kernels_are_given_whole_columns_and_return_those_asked_for(
  monkeypatch, widths, columns, whole
):
  """What is played back is what was given."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  keys, values = normal(1, 70, 1, widths[0]), normal(1, 70, 2, widths[1])
  gates, state = -jnp.ones((1, 70, 2)), normal(1, 2, widths[0], columns)
  arrays = Operands(keys, keys, values, gates, -gates)
  seen = []

  def outputs(q, k, v, t, gates, beta, scale, cut, state):
    seen.append([x.shape for x in (q, k, v, state)])
    return v, state

  monkeypatch.setattr(hopper_passes.scan, "outputs", outputs)
  out, final = hopper_passes.outputs(arrays, jnp.float32(1), state, None)
  dk, dv = whole
  one, two = (1, 2 * C, 1, dk), (1, 2 * C, 2, dv)
  assert seen == [[one, one, two, (1, 2, dv, dk)]]
  np.testing.assert_array_equal(out, values)
  np.testing.assert_array_equal(final, state)


def test_cotangents_too_are_given_whole_and_returned_cut(monkeypatch):
  """Of 70 tokens and widths 64 and 80, played back as well."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  keys, do = normal(1, 70, 1, 64), normal(1, 70, 2, 80)
  beta, dfinal = jnp.asarray(rng.random((1, 70, 2))), normal(1, 2, 64, 80)
  arrays = Operands(keys, 2 * keys, 3 * do, -beta, beta)
  seen = []

  def reverse(q, k, do, t, gates, beta, scale, cut, dfinal):
    seen.append([x.shape for x in (q, k, do, gates, beta, dfinal)])
    return do, None, dfinal

  def states(k, v, t, gates, beta, cut, state):
    seen.append([x.shape for x in (k, v, gates, beta, state)])
    return None, None

  def gradients(q, k, y, do, dv, gates, beta, scale, h, dh):
    return q, k, beta, beta

  monkeypatch.setattr(hopper_passes.reverse, "reverse", reverse)
  monkeypatch.setattr(hopper_passes.scan, "states", states)
  monkeypatch.setattr(hopper_passes.gradients, "gradients", gradients)
  # Without `jax.jit`, whose cache would keep what is played here.
  one = jnp.float32(1)
  found, dscale, dstate = hopper_passes.cotangents.__wrapped__(
    arrays, one, jnp.zeros_like(dfinal), None, do, dfinal
  )
  first = hopper_passes.initial_cotangent.__wrapped__(
    arrays, one, None, do, dfinal
  )
  key, value = (1, 2 * C, 1, D), (1, 2 * C, 2, D)
  gate, whole = (1, 2, 2 * C), (1, 2, D, D)
  backward = [key, key, value, gate, gate, whole]
  assert seen == [backward, [key, value, gate, gate, whole], backward]
  # A token's gate is in those of the later tokens of its chunk.
  sums = [
    np.cumsum(x[:, ::-1], axis=1)[:, ::-1] for x in (beta[:, :C], beta[:, C:])
  ]
  want = Operands(keys, 2 * keys, do, np.concatenate(sums, axis=1), beta)
  for x, y in zip(found, want, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)
  np.testing.assert_allclose(dscale, jnp.sum(keys**2), rtol=1e-6)
  for state in (dstate, first):
    np.testing.assert_array_equal(state, dfinal)


@needs_mosaic
def test_kernels_have_no_numbers_of_64_bits():
  def rule(*x):
    return neumann_jax.gated_delta_rule(*x, spec=FUSED.spec, fused=True)

  with jax.enable_x64(True), on():
    made = jax.make_jaxpr(functools.partial(gradient, rule))(*operands())
  assert kernel_bodies.wide(made.jaxpr, least=5) == set()


@needs_mosaic
@pytest.mark.parametrize(
  "shape, names, rows, heads, width",
  [
    ((8,), ("data",), "data", None, 128),
    ((8,), ("fsdp",), "fsdp", None, 128),
    ((8,), ("tensor",), None, "tensor", 128),
    ((4, 2), ("data", "tensor"), "data", "tensor", 128),
    ((4,), ("sequence",), None, None, 128),
    slow((8,), ("data",), "data", None, 256),
    slow((8,), ("fsdp",), "fsdp", None, 256),
    slow((8,), ("tensor",), None, "tensor", 256),
    ((4, 2), ("data", "tensor"), "data", "tensor", 256),
    ((4,), ("sequence",), None, None, 256),
  ],
)
def test_lowers_inside_shard_map(shape, names, rows, heads, width):
  arrays = operands(b=8, t=128, hk=8, hv=16, dk=width, dv=width)
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  device = jax.sharding.AbstractDevice("NVIDIA H200", None, "cuda")
  mesh = jax.sharding.AbstractMesh(
    shape, names, axis_types=auto, abstract_device=device
  )
  rule, tokens = neumann_jax.gated_delta_rule, None
  if "sequence" in names:
    rule, tokens = sequence_parallel.sharded_delta_rule, "sequence"
    rule = functools.partial(rule, axis_name=tokens)
  rule = jax.shard_map(
    functools.partial(rule, spec=FUSED.spec, fused=True),
    mesh=mesh,
    in_specs=(P(rows, tokens, heads),) * 5,
    out_specs=(P(rows, tokens, heads), P(rows, heads)),
  )
  step = jax.jit(functools.partial(gradient, rule))
  with jax.sharding.use_abstract_mesh(mesh):
    module = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  for name in KERNELS:
    assert f"delta_rule_{name}" in module
