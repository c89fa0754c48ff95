"""Packed documents that each enter with a state of their own, and leave one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from neumann_jax import sharding
from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from tests import float64_rule, oracles
from tests.oracles import Problem

# Borders inside of chunks of 16 and at one; the second row has two documents,
# one of them of a single token, and states that none of them takes.
LENGTHS = ((7, 9, 13, 19), (1, 47))
IDS = np.stack(
  [np.repeat([3, 1, 2, 0][: len(row)], row) for row in LENGTHS]
).astype(np.int32)
COUNT = 4
SPANS = [
  (row, n, slice(end - length, end))
  for row, lengths in enumerate(LENGTHS)
  for n, (length, end) in enumerate(zip(lengths, np.cumsum(lengths)))
]


def _rule(**options):
  return functools.partial(
    neumann_jax.gated_delta_rule, chunk_size=16, **options
  )


FORMS = {
  "xla": _rule(implementation="xla"),
  "fused": _rule(fused=True),
  "recurrent": neumann_jax.gated_delta_recurrent,
  "interpret": _rule(implementation="interpret", fused=True),
}
# Of 16 bits one rounding.
GRADIENT = {
  "float32": oracles.FLOAT32_RULE_GRADIENT,
  "bfloat16": oracles.NARROW_RULE["bfloat16"],
}
slow = pytest.mark.slow
EVERY = [
  pytest.param(form, marks=slow if form in ("fused", "interpret") else ())
  for form in FORMS
]


@functools.cache
def problem(dtype="float32"):
  p = oracles.problem(48, key_heads=2, ratio=2, dk=8, dv=8)
  rng = np.random.default_rng(0)
  states = rng.standard_normal((2, COUNT, 4, 8, 8)).astype(np.float32)
  narrow = [jnp.asarray(x[:2], dtype) for x in p[:3]]
  return Problem(*narrow, *(jnp.asarray(x[:2]) for x in p[3:5]), states)


def cotangents(p):
  rng = np.random.default_rng(1)
  out = jnp.asarray(rng.standard_normal(p.v.shape), p.v.dtype)
  return out, jnp.asarray(rng.standard_normal(p.initial_state.shape), "float32")


def alone(p, row, n, span):
  """One document with its state, as a call of its own takes it."""
  tokens = (x[row : row + 1, span] for x in p[:5])
  return Problem(*tokens, p.initial_state[row : row + 1, n])


@functools.cache
def _pulled(form):
  """Output, states and all gradients."""

  @oracles.quick_jit
  def run(p, cotangents, ids=None):
    out, pull = jax.vjp(lambda p: p.under(FORMS[form], ids), p)
    return out, pull(cotangents)[0]

  return run


@pytest.mark.parametrize("form", EVERY)
def test_every_document_is_the_float64_loop_from_its_state(form):
  p = problem()
  d_out, d_states = cotangents(p)
  (out, states), gradients = _pulled(form)(p, (d_out, d_states), IDS)
  for row, n, span in SPANS:
    own = alone(p, row, n, span)
    where = (slice(row, row + 1), span)
    truth, state = float64_rule.delta_rule(own)
    found = out[where], states[row : row + 1, n]
    oracles.assert_close(found, (truth, state), oracles.FLOAT32_RULE)
    want = own.under(
      functools.partial(
        float64_rule.delta_rule_adjoint,
        d_out=d_out[where],
        d_state=d_states[row : row + 1, n],
      )
    )
    found = *(x[where] for x in gradients[:5]), gradients[5][row : row + 1, n]
    oracles.assert_close(found, want, oracles.FLOAT32_RULE_GRADIENT)
  # What has no tokens is handed on.
  np.testing.assert_array_equal(states[1, 2:], p.initial_state[1, 2:])
  np.testing.assert_array_equal(gradients.initial_state[1, 2:], d_states[1, 2:])


@pytest.mark.parametrize(
  "form, dtype, spans",
  [
    ("xla", "float32", SPANS[2:3]),
    *(
      pytest.param(form, dtype, SPANS, marks=slow)
      for form in ("xla", "fused", "recurrent")
      for dtype in ("float32", "bfloat16")
    ),
  ],
)
def test_a_document_has_the_bits_of_itself_alone(form, dtype, spans):
  p = problem(dtype)
  d_out, d_states = cotangents(p)
  (out, states), gradients = _pulled(form)(p, (d_out, d_states), IDS)
  for row, n, span in spans:
    own = alone(p, row, n, span)
    where = (slice(row, row + 1), span)
    given = d_out[where], d_states[row : row + 1, n]
    want, pulled = _pulled(form)(own, given)
    found = out[where], states[row : row + 1, n]
    for a, b in zip(found, want, strict=True):
      np.testing.assert_array_equal(a, b)
    # The backward pass sums over chunks together, in an order of its own.
    found = *(x[where] for x in gradients[:5]), gradients[5][row : row + 1, n]
    oracles.assert_close(found, tuple(pulled), GRADIENT[dtype])


@pytest.mark.parametrize("name", ["k", "v", "initial_state"])
@pytest.mark.parametrize("form", ["xla", pytest.param("recurrent", marks=slow)])
def test_what_is_not_finite_stays_in_its_document(form, name):
  p = problem()
  at = (0, 1, 2, 3, 4) if name == "initial_state" else (0, 9, 0)
  bad = p._replace(**{name: jnp.asarray(getattr(p, name)).at[at].set(np.nan)})
  given = jax.tree.map(jnp.ones_like, cotangents(p))
  (out, states), gradients = _pulled(form)(p, given, IDS)
  (found, found_states), found_gradients = _pulled(form)(bad, given, IDS)
  own = SPANS[1][2]
  assert not np.isfinite(found[0, own]).all()
  assert not np.isfinite(found_states[0, 1]).all()
  for a, b in ((found, out), *zip(found_gradients[:5], gradients[:5])):
    others = (np.delete(np.array(x), np.r_[own], axis=1) for x in (a, b))
    np.testing.assert_array_equal(*others)
  for a, b in (
    (found_states, states),
    (found_gradients.initial_state, gradients.initial_state),
  ):
    np.testing.assert_array_equal(*(np.delete(x[0], 1, 0) for x in (a, b)))
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("form", ["xla", "recurrent"])
def test_a_document_without_a_state_is_nan_and_alone(form):
  """Of a compiled program, which cannot refuse it."""
  p = problem()
  run = oracles.quick_jit(lambda p, ids: p.under(FORMS[form], ids))
  truth, states = run(p, IDS)
  few = p._replace(initial_state=p.initial_state[:, :3])
  out, found = run(few, IDS)
  past = SPANS[3][2]
  assert np.isnan(out[0, past]).all()
  np.testing.assert_array_equal(
    np.delete(out, np.r_[past], axis=1), np.delete(truth, np.r_[past], axis=1)
  )
  np.testing.assert_array_equal(found, states[:, :3])


@slow
def test_two_calls_are_one():
  """States that left the first halves of documents enter the second."""
  p = problem()
  halves, cut = ([], []), [span.start + 5 for _, _, span in SPANS[:4]]
  for (_, _, span), middle in zip(SPANS[:4], cut):
    halves[0].append(np.r_[span.start : middle])
    halves[1].append(np.r_[middle : span.stop])
  run = oracles.quick_jit(lambda p, ids: p.under(FORMS["xla"], ids))
  row = Problem(*(x[:1] for x in p))
  truth, whole = run(row, IDS[:1])
  states = row.initial_state
  for half in halves:
    tokens = np.concatenate(half)
    part = Problem(*(x[:, tokens] for x in row[:5]), states)
    out, states = run(part, IDS[:1, tokens])
    oracles.assert_close(out, truth[:, tokens], oracles.FLOAT32_RULE)
  oracles.assert_close(states, whole, oracles.FLOAT32_RULE)


def test_on_a_mesh_of_rows_and_heads():
  p = problem()
  run = jax.jit(lambda p, ids: p.under(FORMS["xla"], ids))
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  spec = jax.sharding.PartitionSpec
  put = lambda x, *axes: jax.device_put(  # noqa: E731
    x, jax.sharding.NamedSharding(mesh, spec(*axes))
  )
  tokens = (put(x, "data", None, "tensor") for x in p[:5])
  there = Problem(*tokens, put(p.initial_state, "data", None, "tensor"))
  out, states = run(there, put(IDS, "data"))
  assert states.sharding.spec == spec("data", None, "tensor")
  oracles.assert_close((out, states), run(p, IDS), oracles.FLOAT32_RULE)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_kernels_that_take_it(platform):
  """u and w come from their kernel; a kernel of all has one state a row."""
  shape = jax.ShapeDtypeStruct
  tokens = shape((1, 128, 2, 128), jnp.bfloat16)
  gates = shape((1, 128, 2), jnp.float32)
  call = oracles.exported(
    functools.partial(_with_ids, neumann_jax.gated_delta_rule),
    *(platform, *(tokens,) * 3, gates, gates),
    shape((1, 3, 2, 128, 128), jnp.float32),
    shape((1, 128), jnp.int32),
  )
  text = call.mlir_module()
  assert "neumann_wy_64" in text
  for name in ("neumann_rule", "neumann_state", "delta_rule_outputs"):
    assert name not in text


def _with_ids(rule, *operands):
  *arrays, states, ids = operands
  return rule(*arrays, initial_state=states, segment_ids=ids, fused=True)


def _sharded(*arrays, initial_state, segment_ids):
  token = jax.sharding.PartitionSpec(None, "tokens")
  return jax.shard_map(
    lambda *x: sharded_delta_rule(
      *x[:5], axis_name="tokens", initial_state=x[5], segment_ids=x[6]
    ),
    mesh=jax.sharding.Mesh(jax.devices()[:2], ("tokens",)),
    in_specs=(token,) * 5 + (jax.sharding.PartitionSpec(), token),
    out_specs=(token, jax.sharding.PartitionSpec()),
  )(*arrays, initial_state, segment_ids)


@pytest.mark.parametrize(
  "rule, change, message",
  [
    (
      FORMS["xla"],
      {"initial_state": np.zeros((2, 3, 4, 8, 8), np.float32)},
      "segment_ids must have at most M=3 documents a row, .* row 0 has 4",
    ),
    (
      FORMS["recurrent"],
      {"initial_state": np.zeros((2, 4, 3, 8, 8), np.float32)},
      r"initial_state must have shape \[B=2, M, Hv=4, Dk=8, Dv=8\]",
    ),
    (
      FORMS["xla"],
      {"initial_state": np.zeros((2, 0, 4, 8, 8), np.float32)},
      "axis M must have at least one entry, got 0",
    ),
    (_sharded, {}, "where a mesh axis splits the tokens, got .* has one state"),
  ],
)
def test_refusals(rule, change, message):
  with oracles.refused(ValueError, message):
    problem()._replace(**change).under(rule, jnp.asarray(IDS))


def test_states_of_documents_need_documents():
  message = "without segment_ids, got .*: a state for each document needs them"
  with oracles.refused(ValueError, message):
    problem().under(FORMS["xla"])
