"""What the delta rule accepts: types, transforms, and one sentence if not."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from neumann_jax import InverseSpec, checks
from tests import float64_rule, oracles
from tests.oracles import Problem, assert_close

NAMES = Problem._fields
short_chunks = functools.partial(neumann_jax.gated_delta_rule, chunk_size=16)
FORMS = [short_chunks, neumann_jax.gated_delta_recurrent]
fused_chunks = functools.partial(short_chunks, fused=True)


# --- Forms of use ------------------------------------------------------------


@pytest.mark.parametrize("wide", ["q", "q and k"])
@pytest.mark.parametrize("rule", [*FORMS, fused_chunks])
def test_mixed_inputs_are_computed_in_float32(rule, wide):
  """By chunks q, k and v must all be narrow to be multiplied as they are."""
  p = oracles.problem(20)
  k, v = (jnp.asarray(x, jnp.bfloat16) for x in p[1:3])
  narrow = p._replace(v=v) if wide == "q and k" else p._replace(k=k, v=v)
  rounded = Problem(*(np.asarray(x, np.float32) for x in narrow))
  form = oracles.quick_jit(lambda p: p.under(rule))
  out, state = form(narrow)
  assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
  want, want_state = form(rounded)
  assert want.dtype == jnp.float32
  assert_close(state, want_state, oracles.FLOAT32_RULE)
  # One rounding to bfloat16: half of its 2^-7 between neighbours.
  assert_close(out.astype(jnp.float32), want, 2.0**-8 + oracles.FLOAT32_RULE)


def test_a_narrow_step_keeps_a_wide_state():
  p = oracles.problem(1)
  token = [jnp.asarray(x[:, 0], jnp.bfloat16) for x in p[:5]]
  out, state = neumann_jax.gated_delta_step(*token, p.initial_state)
  assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
  rounded = [np.asarray(x, np.float32)[:, None] for x in token]
  truth = float64_rule.delta_rule(Problem(*rounded, p.initial_state))[1]
  assert_close(state, truth, oracles.FLOAT32_RULE)


def test_vmap_is_the_batch():
  p = oracles.problem(40)
  single = Problem(*(x[:, None] for x in p))
  form = oracles.quick_jit(jax.vmap(lambda p: p.under(short_chunks)))
  found = jax.tree.map(lambda x: x[:, 0], form(single))
  assert_close(found, float64_rule.delta_rule(p), oracles.FLOAT32_RULE)


def test_one_trace_and_the_same_bits():
  traces = 0

  @oracles.quick_jit
  def run(p, ids):
    nonlocal traces
    traces += 1
    return [p.under(rule, ids) for rule in FORMS]

  p, other = oracles.problem(40), oracles.problem(40, seed=1)
  first = run(p, oracles.documents(40))
  second = run(other, oracles.documents(40, seed=1))
  chex.assert_trees_all_equal(first, run(p, oracles.documents(40)))
  assert traces == 1
  assert not np.array_equal(first[0][0], second[0][0])


def test_documents_may_have_any_numbers():
  """Padding of 0 behind documents of 1 and 2, eagerly and compiled."""
  p = oracles.problem(24)
  ids = np.tile(np.repeat(np.int32([1, 2, 0]), 8), (8, 1))
  numbers = np.tile(np.repeat(np.int32([0, 1, 2]), 8), (8, 1))
  want = float64_rule.delta_rule(p, numbers)
  for rule in FORMS:
    assert_close(p.under(rule, ids), want, oracles.FLOAT32_RULE)
    found = oracles.quick_jit(lambda p, ids, rule=rule: p.under(rule, ids))(
      p, ids
    )
    assert_close(found, want, oracles.FLOAT32_RULE)


@pytest.mark.parametrize("rule", FORMS)
def test_keys_that_make_the_state_grow_are_warned_of(rule):
  """A token multiplies the state by up to 1 - beta |k|^2."""
  p = oracles.problem(8)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    p.under(rule)
    Problem(p.q, jnp.asarray(p.k, jnp.bfloat16), *p[2:]).under(rule)
  long = p._replace(k=11 * p.k)
  with pytest.warns(UserWarning, match=r"beta \|k\|\^2 reaches 1[0-2]\d"):
    long.under(rule)


@pytest.mark.parametrize("few", [0, 2**22])
def test_keys_that_are_known_in_a_compiled_function_are_measured(
  few, monkeypatch
):
  """Many are by a compiled sum, which ended in an error of tracing."""
  monkeypatch.setattr(checks, "_FEW", few)
  p = oracles.problem(8)
  rule = lambda k, v: p._replace(k=k, v=v).under(short_chunks)[0]  # noqa: E731
  found = oracles.quick_jit(lambda v: rule(p.k, v))(p.v)
  assert_close(found, rule(p.k, p.v), oracles.FLOAT32_RULE)
  with pytest.warns(UserWarning, match=r"beta \|k\|\^2 reaches 1[0-2]\d"):
    oracles.quick_jit(lambda v: rule(11 * p.k, v))(p.v)


@pytest.mark.parametrize("bits", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_codes_cover_keys_that_are_not_normalised(bits):
  """Their scale follows the keys: one for unit keys would saturate."""
  p = oracles.problem(64, beta=(0.3, 0.5))
  p = p._replace(k=np.float32(1.9) * p.k)
  envelope, dynamic = (
    short_chunks(
      *p[:5], spec=InverseSpec(quant=neumann_jax.QuantSpec(bits, scale))
    )[0]
    for scale in ("envelope", "dynamic")
  )
  truth = float64_rule.delta_rule(p._replace(initial_state=0 * p[5]))[0]
  error = oracles.error(envelope, truth)
  assert error <= {8: 0.5, 16: 2e-3}[bits]
  assert error <= 30 * oracles.error(dynamic, truth)


def test_shapes_are_checked_under_jit_and_values_are_not():
  with pytest.raises(ValueError, match=r"beta must have shape"):
    jax.jit(short_chunks)(*P[:4], P.beta[:, :3])
  out, _ = oracles.quick_jit(short_chunks)(*P[:4], P.beta + 2)
  assert np.isfinite(np.asarray(out)).all()


# --- Bad input ---------------------------------------------------------------

P = oracles.problem(8)
THREE_VALUE_HEADS = {
  "v": P.v[:, :, :3],
  "beta": P.beta[..., :3],
  "log_decay": P.log_decay[..., :3],
  "initial_state": P.initial_state[:, :3],
}
ONE_VALUE_HEAD = {
  "v": P.v[:, :, :1],
  "beta": P.beta[..., :1],
  "log_decay": P.log_decay[..., :1],
  "initial_state": P.initial_state[:, :1],
}
BACK = np.tile(np.int32([1, 1, 1, 1, 0, 0, 1, 1]), (8, 1))
# Changed operands, the kind of error and its sentence.
BAD = {
  "rank": ({"q": P.q[0]}, ValueError, r"q must have shape \[B, T, Hk, Dk\]"),
  "rank of gates": (
    {"log_decay": P.log_decay[..., None]},
    ValueError,
    r"log_decay must have shape \[B=8, T=8, Hv=4\]",
  ),
  "batch": (
    {"v": P.v[:-1]},
    ValueError,
    r"v must have shape \[B=8, T=8, Hv, Dv\], got \(7, 8, 4, 12\)",
  ),
  "tokens": ({"k": P.k[:, 1:]}, ValueError, r"k must have shape \[B=8, T=8"),
  "key width": (
    {"k": P.k[..., :-1]},
    ValueError,
    r"k must have shape \[B=8, T=8, Hk=2, Dk=16\]",
  ),
  "head ratio": (
    THREE_VALUE_HEADS,
    ValueError,
    "whole multiple of the key heads, got Hv=3 and Hk=2",
  ),
  "fewer value heads than key heads": (
    ONE_VALUE_HEAD,
    ValueError,
    "whole multiple of the key heads, got Hv=1 and Hk=2",
  ),
  "gates": (
    {"beta": P.beta[..., :2]},
    ValueError,
    r"beta must have shape \[B=8, T=8, Hv=4\]",
  ),
  "integer": ({"v": P.v.astype(np.int32)}, TypeError, "v must be floating"),
  "integer gate": (
    {"log_decay": np.zeros_like(P.log_decay, np.int32)},
    TypeError,
    "log_decay must be floating point, got dtype int32",
  ),
  "not an array": ({"q": [1.0]}, TypeError, "q must be an array, got list"),
  "beta high": (
    {"beta": P.beta + 2},
    ValueError,
    r"beta must lie in \[0, 2\] everywhere, got 2\.",
  ),
  "beta low": ({"beta": -P.beta}, ValueError, r"beta must lie in \[0, 2\]"),
  "beta nan": ({"beta": P.beta * np.nan}, ValueError, "it contains NaN"),
  "growth": (
    {"log_decay": P.log_decay + 1},
    ValueError,
    "log_decay must be at most 0 everywhere, got 1",
  ),
  "decay nan": (
    {"log_decay": P.log_decay * np.nan},
    ValueError,
    "log_decay must be at most 0 everywhere, but it contains NaN",
  ),
  "state width": (
    {"initial_state": P.initial_state[..., :-1]},
    ValueError,
    r"initial_state must have shape \[B=8, Hv=4, Dk=16, Dv=12\]",
  ),
  "state of key heads": (
    {"initial_state": P.initial_state[:, :2]},
    ValueError,
    r"initial_state must have shape .* got \(8, 2, 16, 12\)",
  ),
  "state rank": (
    {"initial_state": P.initial_state[0]},
    ValueError,
    r"initial_state must have shape \[B=8, Hv=4, Dk=16, Dv=12\]",
  ),
  "state by document": (
    {
      "initial_state": np.repeat(P.initial_state, 2, axis=0),
      "segment_ids": np.zeros((8, 8), np.int32),
    },
    ValueError,
    r"initial_state must be \[B=8, .* or \[B, M, Hv, Dk, Dv\] with a state for",
  ),
  "state type": (
    {"initial_state": P.initial_state.astype(np.int32)},
    TypeError,
    "initial_state must be floating point",
  ),
  "segment shape": (
    {"segment_ids": np.zeros((8, 7), np.int32)},
    ValueError,
    r"segment_ids must have shape \[B=8, T=8\]",
  ),
  "segment type": (
    {"segment_ids": np.zeros((8, 8), np.float32)},
    TypeError,
    "segment_ids must be an integer array",
  ),
  "segment list": (
    {"segment_ids": [[0] * 8] * 8},
    TypeError,
    "segment_ids must be an integer array",
  ),
  "segment order": (
    {"segment_ids": BACK},
    ValueError,
    "an id of its own, but row 0 comes back to 1",
  ),
  "no tokens": (
    {name: x[:, :0] for name, x in zip(NAMES[:5], P)},
    ValueError,
    "axis T must have at least one entry, got 0",
  ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("rule", FORMS)
def test_bad_operands(rule, case):
  change, kind, pattern = BAD[case]
  arrays = P._asdict() | change
  segment_ids = arrays.pop("segment_ids", None)
  with oracles.refused(kind, pattern):
    Problem(**arrays).under(rule, segment_ids)


@pytest.mark.parametrize(
  "options, sentence",
  [
    ({"chunk_size": 48}, "chunk_size must be a power of two, got 48"),
    ({"chunk_size": 0}, "chunk_size must be a power of two, got 0"),
    ({"chunk_size": -64}, "chunk_size must be a power of two, got -64"),
    ({"implementation": "cuda"}, "implementation must be one of"),
    ({"implementation": "tpu"}, "implementation='tpu' runs on tpu only"),
    (
      {"spec": InverseSpec("banded"), "chunk_size": 8},
      "have no default at chunk size 8",
    ),
  ],
)
def test_bad_options(options, sentence):
  with oracles.refused(ValueError, sentence):
    neumann_jax.gated_delta_rule(*P[:5], **options)


STEP = Problem(*(x[:, 0] for x in P[:5]), P.initial_state)


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"q": P.q}, r"q must have shape \[B, Hk, Dk\]"),
    ({"v": STEP.v[:-1]}, r"v must have shape \[B=8, Hv, Dv\]"),
    ({"initial_state": STEP[5][:, :1]}, r"state must have shape \[B=8, Hv=4"),
    ({"beta": STEP.beta + 2}, r"beta must lie in \[0, 2\] everywhere"),
    ({"log_decay": STEP.log_decay + 1}, "log_decay must be at most 0"),
  ],
)
def test_bad_step(change, sentence):
  with oracles.refused(ValueError, sentence):
    neumann_jax.gated_delta_step(*STEP._replace(**change))


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"k": P.k[0]}, r"k must have shape \[B, T, Hk, Dk\]"),
    ({"beta": P.beta[:, :, :3]}, r"beta must have shape \[B=8, T=8, Hv=4\]"),
    ({"beta": P.beta + 2}, r"beta must lie in \[0, 2\] everywhere"),
    ({"chunk_size": 24}, "chunk_size must be a power of two, got 24"),
  ],
)
def test_bad_chunk_matrices(change, sentence):
  options = {"k": P.k, "log_decay": P.log_decay, "beta": P.beta} | change
  with oracles.refused(ValueError, sentence):
    neumann_jax.chunk_matrices(**options)


@pytest.mark.parametrize(
  "scale, kind, words",
  [
    (np.ones(32), ValueError, r"scale must be one number, got shape \(32,\)"),
    (np.nan, ValueError, "scale must be finite, got nan"),
    (1j, TypeError, "scale must be a real number, got 1j"),
    ("1", TypeError, "scale must be a real number, got '1'"),
  ],
  ids=("a number for each channel", "NaN", "complex", "a word"),
)
def test_the_scale_is_one_number(scale, kind, words):
  """An array broadcast along the channels of q, without a word."""
  p = oracles.problem(3)
  token = [x[:, 0] for x in p[:5]]
  for form in (
    *(functools.partial(rule, *p[:5]) for rule in FORMS),
    functools.partial(neumann_jax.gated_delta_step, *token, p.initial_state),
  ):
    with oracles.refused(kind, words):
      form(scale=scale)
