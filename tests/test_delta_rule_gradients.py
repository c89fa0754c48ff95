"""Gradients of the delta rule, and what a rounded inverse does to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec
from tests import float64_rule, oracles
from tests.oracles import FAMILY_COUNT, Problem, assert_close, error

FORMS = {
  "chunks of 16": functools.partial(
    neumann_jax.gated_delta_rule, chunk_size=16
  ),
  "chunks of 64": neumann_jax.gated_delta_rule,
  "recurrent": neumann_jax.gated_delta_recurrent,
}
short_chunks = FORMS["chunks of 16"]


def cotangents(p, seed=2):
  rng = np.random.default_rng(seed)
  out = rng.standard_normal(p.v.shape).astype(np.float32)
  state = rng.standard_normal(p.initial_state.shape).astype(np.float32)
  return out, state


def rule_gradients(rule, p, segment_ids=None):
  @oracles.quick_jit
  def run(p, g):
    return jax.vjp(lambda p: p.under(rule, segment_ids), p)[1](g)[0]

  return run(p, cotangents(p))


def oracle_gradients(p, segment_ids=None):
  d_out, d_state = map(np.float64, cotangents(p))
  adjoint = functools.partial(
    float64_rule.delta_rule_adjoint, d_out=d_out, d_state=d_state
  )
  return Problem(*p.under(adjoint, segment_ids))


def assert_gradients(rule, p, segment_ids=None):
  found = rule_gradients(rule, p, segment_ids)
  assert_close(
    found, oracle_gradients(p, segment_ids), oracles.FLOAT32_RULE_GRADIENT
  )


def test_the_oracle_by_central_differences():
  p = oracles.problem(9, key_heads=1, ratio=2, dk=4, dv=3)
  p, ids = Problem(*map(np.float64, p)), oracles.documents(9)
  g = cotangents(p)
  rng = np.random.default_rng(3)
  for name, gradient in oracle_gradients(p, ids)._asdict().items():
    direction = rng.standard_normal(gradient.shape)
    values = []
    for step in (1e-5, -1e-5):
      moved = getattr(p, name) + step * direction
      pair = float64_rule.delta_rule(p._replace(**{name: moved}), ids)
      values.append(sum(np.vdot(a, b) for a, b in zip(g, pair)))
    slope = (values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(np.vdot(gradient, direction), rel=1e-6), name


@pytest.mark.parametrize(
  "form, length, ratio, packed",
  [
    ("chunks of 16", 1, 1, False),
    pytest.param("chunks of 16", 40, 1, True, marks=pytest.mark.slow),
    pytest.param("chunks of 16", 40, 2, False, marks=pytest.mark.slow),
    ("chunks of 16", 40, 3, True),
    pytest.param("chunks of 16", 40, 4, False, marks=pytest.mark.slow),
    pytest.param("chunks of 64", 70, 2, True, marks=pytest.mark.slow),
    pytest.param("chunks of 64", 200, 2, False, marks=pytest.mark.slow),
    ("recurrent", 40, 2, True),
    ("recurrent", 40, 3, False),
  ],
)
def test_gradient_of_every_operand(form, length, ratio, packed):
  p = oracles.problem(length, ratio=ratio)
  ids = oracles.documents(length) if packed else None
  assert_gradients(FORMS[form], p, ids)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [2, 64, 65, 200])
def test_more_gradients(form, length, ratio, packed):
  p = oracles.problem(length, ratio=ratio, seed=1)
  ids = oracles.documents(length, seed=1) if packed else None
  assert_gradients(FORMS[form], p, ids)


def test_gradients_through_a_carried_state():
  """Two calls in a row: the whole sequence's gradients, first call included."""

  def two_calls(q, k, v, log_decay, beta, *, initial_state, segment_ids):
    assert segment_ids is None
    operands = (q, k, v, log_decay, beta)
    first, state = short_chunks(
      *(x[:, :23] for x in operands), initial_state=initial_state
    )
    second, state = short_chunks(
      *(x[:, 23:] for x in operands), initial_state=state
    )
    return jnp.concatenate([first, second], 1), state

  assert_gradients(two_calls, oracles.problem(40))


@pytest.mark.parametrize("form", ["chunks of 16", "recurrent"])
def test_gradients_under_strong_decay(form):
  """Tokens that forget all next to tokens that keep all: never NaN."""
  p = oracles.problem(40)
  rng = np.random.default_rng(5)
  strength = rng.choice([0.0, -1e-3, -20.0, -1e3, -np.inf], p.log_decay.shape)
  p = p._replace(log_decay=strength.astype(np.float32))
  assert_gradients(FORMS[form], p)


def test_gradients_with_negative_eigenvalues():
  """T may reach 2 and enters twice: four times the allowance."""
  p = oracles.problem(40, beta=(1.0, 2.0))
  found, truth = rule_gradients(short_chunks, p), oracle_gradients(p)
  assert_close(found, truth, 4 * oracles.FLOAT32_RULE_GRADIENT)


@pytest.mark.parametrize("form", ["chunks of 16", "recurrent"])
def test_no_gradient_crosses_a_border(form):
  """Exactly zero, not small."""
  p = oracles.problem(40)
  ids = np.tile(np.repeat(np.int32([0, 1, 2]), [21, 9, 10]), (FAMILY_COUNT, 1))
  middle = slice(21, 30)

  @oracles.quick_jit
  def inside_and_last(p):
    (out, state), pull = jax.vjp(lambda p: p.under(FORMS[form], ids), p)
    chosen = jnp.zeros_like(out).at[:, middle].set(out[:, middle])
    return (
      pull((chosen, jnp.zeros_like(state)))[0],
      pull((jnp.zeros_like(out), state))[0],
    )

  inside, last = inside_and_last(p)
  for name in Problem._fields[:5]:
    g = np.asarray(getattr(inside, name))
    # The document's first token reads no state, so its decay has no effect.
    assert np.abs(g[:, middle]).max() > 1e-6, name
    assert not np.delete(g, np.arange(21, 30), axis=1).any(), name
    g = np.asarray(getattr(last, name))
    assert not g[:, :30].any(), name
    assert g[:, 30:].any() == (name != "q"), name  # the state has no query
  assert not np.asarray(inside.initial_state).any()
  assert not np.asarray(last.initial_state).any()


# --- Arithmetic of the inverse -----------------------------------------------


def rule_with(p, inverses):
  """Output in float64, by chunks, from given (I + A)^-1 [B, Hv, N, C, C]."""
  group, c = p.v.shape[2] // p.k.shape[2], inverses.shape[-1]
  q, k, v, log_decay, beta = (
    np.swapaxes(x, 1, 2) for x in map(np.float64, p[:5])
  )
  q, k = np.repeat(q, group, 1), np.repeat(k, group, 1)  # [B, Hv, T, Dk]
  state, pieces = np.float64(p.initial_state), []
  for n in range(inverses.shape[2]):
    one = slice(n * c, (n + 1) * c)
    queries, keys, values = q[:, :, one], k[:, :, one], v[:, :, one]
    enter = np.exp(np.cumsum(log_decay[:, :, one], -1))[..., None]
    decay = np.tril(enter / np.swapaxes(enter, -1, -2))
    right = beta[:, :, one, None] * (values - enter * (keys @ state))
    new = inverses[:, :, n] @ right
    scores = queries @ np.swapaxes(keys, -1, -2) * decay
    pieces.append(enter * (queries @ state) + scores @ new)
    leave = np.swapaxes(decay[..., -1:, :], -1, -2)
    state = enter[..., -1:, :] * state
    state = state + np.swapaxes(keys, -1, -2) @ (leave * new)
  out = np.concatenate(pieces, 2) * q.shape[-1] ** -0.5
  return np.swapaxes(out, 1, 2)


def outputs_and_inverses(p, spec):
  """The rule's outputs under a spec, and its inverses of the chunks."""

  @oracles.quick_jit
  def run(p):
    a = neumann_jax.chunk_matrices(p.k, p.log_decay, p.beta).a
    rule = functools.partial(neumann_jax.gated_delta_rule, spec=spec)
    return p.under(rule)[0], neumann_jax.inverse(a, spec)

  return run(p)


@pytest.mark.parametrize(
  "spec, exact",
  [
    (InverseSpec("exact"), True),
    pytest.param(InverseSpec("newton"), True, marks=pytest.mark.slow),
    pytest.param(
      InverseSpec(quant=QuantSpec(16, "dynamic"), refine=1),
      True,
      marks=pytest.mark.slow,
    ),
    (InverseSpec(precision="bfloat16", refine=1), False),
    pytest.param(
      InverseSpec(precision="bfloat16"), False, marks=pytest.mark.slow
    ),
    pytest.param(
      InverseSpec(precision="float16"), False, marks=pytest.mark.slow
    ),
    pytest.param(
      InverseSpec(quant=QuantSpec(16, "dynamic")), False, marks=pytest.mark.slow
    ),
    (InverseSpec(quant=QuantSpec(8, "dynamic")), False),
  ],
)
def test_outputs_inherit_the_error_of_the_inverse(spec, exact):
  """All of it and nothing else: the float64 rule with the same inverse.

  The relative error of the outputs is not that of the inverse, so no table of
  inverses bounds it. The table is a Frobenius norm, which the few large
  entries next to the diagonal fill; an output adds up a row of errors, and
  where keys are aligned the terms it adds them to are all alike. Rounding to
  floats leaves the small entries small errors (over 12 seeds, outputs 0.5 to
  1.5 times as wrong as the inverse), rounding to integers gives every entry
  of a row the same (0.9 to 6.5 times).
  """
  p = oracles.problem(128)

  out, inverses = outputs_and_inverses(p, spec)
  found = error(out, float64_rule.delta_rule(p)[0])
  if exact:
    assert found <= oracles.FLOAT32_RULE
  else:  # a spec that changed nothing would be a bug
    assert found > 2 * oracles.FLOAT32_RULE
  # The two programs may differ in the last bit of A; where that turns a
  # rounding the other way, it moves a small part of the error.
  limit = max(oracles.FLOAT32_RULE, found / 4)
  assert error(out, rule_with(p, np.float64(inverses))) <= limit


def test_the_envelope_scale_comes_from_the_gates():
  """With beta near 2 a scale fixed for 1 saturates: off by a tenth and more."""
  p = oracles.problem(128, beta=(1.9, 2.0))
  spec = InverseSpec(quant=QuantSpec(16, "envelope"))

  out, saturated = outputs_and_inverses(p, spec)
  truth = float64_rule.delta_rule(p)[0]
  assert error(out, truth) <= 1e-2
  assert error(rule_with(p, np.float64(saturated)), truth) > 1e-1


def test_a_rounded_inverse_gives_the_gradient_of_the_exact_one():
  """INT16 with one correction is exact to float32, and so its gradient."""
  spec = InverseSpec(quant=QuantSpec(16, "dynamic"), refine=1)
  rule = functools.partial(short_chunks, spec=spec)
  assert_gradients(rule, oracles.problem(40))
