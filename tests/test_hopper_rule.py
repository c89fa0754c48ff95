"""The rule on a Hopper GPU, as far as a CPU host can see it.

Its formulas in float64, which piece of a row does what, the kernel of the
inverse in interpret mode, what is refused, and that everything lowers for
cuda. On a card see `experiments.rule_speed`.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import neumann_jax
from experiments.data import key_families
from neumann_jax import InverseSpec, QuantSpec, backends
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.delta_rule import sequence_parallel
from neumann_jax.delta_rule.hopper import passes as hopper_passes
from neumann_jax.delta_rule.hopper import pieces as hopper_pieces
from neumann_jax.delta_rule.hopper import rule as hopper_rule
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.kernels import wy_gpu
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.recurrent import gated_delta_recurrent
from tests import kernel_bodies, oracles

C, D = 64, 128
FUSED = RuleOptions(fused=True, spec=InverseSpec(precision="float16"))
INTEGERS = InverseSpec(quant=QuantSpec(8))
SCALED = InverseSpec(quant=QuantSpec(8, "dynamic"))
needs_mosaic = pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11 for these"
)


def chunk_forward(s, q, k, v, gate, beta, scale):
  """The formulas of `hopper.scan`: Y, the outputs and the next state."""
  weight = np.tril(np.exp(gate[:, None] - gate[None, :]))
  m = np.tril(k @ k.T * weight, -1)
  inverse = np.linalg.inv(np.eye(len(k)) + beta[:, None] * m)
  low = inverse - np.eye(len(k))
  error = beta[:, None] * (v - np.exp(gate)[:, None] * (k @ s))
  x = error + low @ error
  out = np.exp(gate)[:, None] * (q @ s) + (q @ k.T * weight) @ x
  leave = np.exp(gate[-1] - gate)[:, None]
  return (
    x / beta[:, None],
    scale * out,
    np.exp(gate[-1]) * s + k.T @ (leave * x),
    low,
  )


def chunk_backward(s, ds, do, y, low, q, k, gate, beta, scale):
  """The formulas of `hopper.reverse` and `hopper.gradients`."""
  weight = np.tril(np.exp(gate[:, None] - gate[None, :]))
  enter, leave = np.exp(gate)[:, None], np.exp(gate[-1] - gate)[:, None]
  b = beta[:, None]
  dx = scale * (q @ k.T * weight).T @ do + leave * (k @ ds)
  dv = b * (dx + low.T @ dx)
  before = np.exp(gate[-1]) * ds + q.T @ (scale * enter * do)
  before = before - k.T @ (enter * dv)
  x = b * y
  w = scale * (do @ x.T) * weight
  m = -np.tril(dv @ x.T * weight, -1)
  dq = enter * scale * (do @ s.T) + w @ k
  carried = leave * (x @ ds.T)
  write = carried + w.T @ q + m.T @ k
  read = -enter * (dv @ s.T) + m @ k
  dg = np.sum(q * dq + k * (read - write), axis=-1)
  dg[-1] += np.sum(k * carried) + np.exp(gate[-1]) * np.sum(s * ds)
  dg = np.cumsum(dg[::-1])[::-1]
  dbeta = np.sum(dv / b * y, axis=-1)
  return before, (dq, write + read, dv, dg, dbeta)


@pytest.mark.parametrize("family", key_families.FAMILIES)
@pytest.mark.parametrize("decay", [0.0, 0.07])
def test_formulas_are_the_gradient_of_the_recurrence(family, decay):
  rng = np.random.default_rng(5)
  chunks, width, scale = 3, 16, 0.3
  length = chunks * C
  k = key_families.keys(family, rng, 1, length, width)[0]
  q, v, do = rng.standard_normal((3, length, width))
  q /= np.linalg.norm(q, axis=-1, keepdims=True)
  log_decay = -decay * rng.random(length)
  beta = rng.uniform(0.01, 2.0, length)
  s, ds = rng.standard_normal((2, width, width))
  kept = []
  for n in range(chunks):
    at = slice(n * C, n * C + C)
    gate = np.cumsum(log_decay[at])
    y, out, after, low = chunk_forward(
      s, q[at], k[at], v[at], gate, beta[at], scale
    )
    kept.append((s, y, low, gate, out))
    s = after
  found, back = [], ds
  for n in reversed(range(chunks)):
    at = slice(n * C, n * C + C)
    before, y, low, gate, _ = kept[n]
    back, gradients = chunk_backward(
      before, back, do[at], y, low, q[at], k[at], gate, beta[at], scale
    )
    found.insert(0, gradients)
  with jax.enable_x64(True):
    lead = [x[None, :, None] for x in (q, k, v, log_decay, beta)]
    (out, final), pull = jax.vjp(
      lambda *x: gated_delta_recurrent(*x[:5], scale=scale, initial_state=x[5]),
      *map(jnp.asarray, lead),
      jnp.asarray(kept[0][0])[None, None],
    )
    *truth, dstate = pull(
      (jnp.asarray(do)[None, :, None], jnp.asarray(ds)[None, None])
    )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)
  close(np.concatenate([x[-1] for x in kept]), out[0, :, 0])
  close(s, final[0, 0])
  close(back, dstate[0, 0])
  for column, want in zip(zip(*found), truth, strict=True):
    close(np.concatenate(column), want[0, :, 0])


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.05, 0.3, 40.0])
@pytest.mark.parametrize("count", [1, 7, 64, 65, 200])
def test_pieces_write_every_chunk_once_and_know_what_they_read(decay, count):
  rng = np.random.default_rng(count)
  log_decay = -decay * rng.random((2, 3, count, C)) * np.log2(np.e)
  gates = jnp.asarray(np.float32(np.cumsum(log_decay, -1)))
  gates = gates.reshape(2, 3, count * C)
  starts, stops = hopper_pieces.starts(gates), hopper_pieces.stops(gates)
  total = np.pad(np.cumsum(log_decay.sum(-1), -1), ((0, 0), (0, 0), (1, 0)))
  for at in np.ndindex(2, 3):
    # Both halves of the columns, which different programs may carry.
    forward, backward = np.zeros((2, 2, count), int)
    for run, write, end, halves in np.asarray(starts[at]):
      assert 0 <= run <= end <= count and (run == end or write <= end)
      carried = [half for half in range(2) if halves >> half & 1]
      forward[carried, max(run, write) : end] += 1
      # What is not known has decayed: by 2^-30, up to float32 sums.
      if run < end and run > 0:
        assert run <= write and total[at][write] - total[at][run] <= -29.9
    for stop, last, begin, halves in np.asarray(stops[at]):
      assert 0 <= begin <= stop <= count and (begin == stop or begin <= last)
      carried = [half for half in range(2) if halves >> half & 1]
      backward[carried, begin : min(last, stop)] += 1
      if begin < stop and stop < count:
        assert last <= stop and total[at][stop] - total[at][last] <= -29.9
    assert (forward == 1).all() and (backward == 1).all()


def test_a_head_of_two_blocks_of_values_has_half_of_the_pieces():
  """Each block of a piece is a program, of those that fill a card."""
  gates = -jnp.ones((1, 8, 256 * C))
  for ranges in (hopper_pieces.starts, hopper_pieces.stops):
    assert [ranges(gates, n).shape[2] for n in (1, 2)] == [16, 8]


def test_two_programs_share_the_columns_of_a_row_that_never_decays():
  length = 128 * C
  for ranges in (hopper_pieces.starts, hopper_pieces.stops):
    found = np.asarray(ranges(jnp.zeros((1, 8, length))))
    busy = found[found[..., 0] != found[..., 2]].reshape(8, -1, 4)
    assert busy.shape[1] == 2  # of the row's pieces
    np.testing.assert_array_equal(busy[:, 0, :3], busy[:, 1, :3])
    np.testing.assert_array_equal(np.sort(busy[..., 3]), [[1, 2]] * 8)


@pytest.mark.parametrize("family", ["independent", "identical", "rank_4"])
def test_inverse_of_keys_is_exact_for_any_beta(family):
  """T - I, also in rows that float16 could not hold."""
  rng = np.random.default_rng(0)
  k = key_families.keys(family, rng, 1, C, D).astype(np.float32)
  beta = rng.uniform(0.1, 1.0, (1, C, 1))
  beta[0, ::5] = 2.0**-40
  log_decay = -0.02 * rng.random((1, C, 1))
  found = oracles.quick_jit(
    lambda k, g, b: wy_gpu.inverse(
      k, g, b, spec=resolve(FUSED.spec, C), chunk_size=C, interpret=True
    )
  )(jnp.asarray(k[:, :, None]), log_decay, beta)
  gate = np.cumsum(log_decay[0, :, 0])
  m = np.tril(k[0] @ k[0].T * np.exp(gate[:, None] - gate[None, :]), -1)
  truth = -beta[0] * (m @ np.linalg.inv(np.eye(C) + beta[0] * m))
  small = np.arange(C) % 5 == 0
  for rows in (small, ~small):
    # The inverse's own error, or that of one product more.
    limit = 4 * oracles.DESIGN_TABLE[0]["float16"]
    error = np.asarray(found[0, 0], np.float64)[rows] - truth[rows]
    assert np.linalg.norm(error) <= limit * np.linalg.norm(truth[rows])


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
