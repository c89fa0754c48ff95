"""What shards tell each other on a Hopper GPU, with kernels played by XLA.

The kernels themselves run on a card alone, see `experiments.rule_speed`, and
`test_hopper_rule` for what else a CPU host can see of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax.delta_rule import layout
from neumann_jax.delta_rule.hopper import passes as hopper_passes
from neumann_jax.delta_rule.hopper import pieces as hopper_pieces
from neumann_jax.delta_rule.hopper import rule as hopper_rule
from neumann_jax.delta_rule.hopper.tiles import CHUNK
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from tests import float64_rule, oracles
from tests.oracles import FAMILY_COUNT, Problem, assert_close

TOKENS = P(None, "tokens")


def one_device(arrays, scale, state):
  return neumann_jax.gated_delta_rule(
    *arrays, scale=scale, initial_state=state, chunk_size=16
  )


@pytest.fixture
def kernels(monkeypatch):
  """Each by its definition, from the rule of one device."""

  def cotangents(arrays, scale, state, t, do, dfinal):
    del t
    return jax.vjp(one_device, arrays, scale, state)[1]((do, dfinal))

  def initial_cotangent(arrays, scale, t, do, dfinal):
    b, _, hv, dv = arrays.v.shape
    state = jnp.zeros((b, hv, arrays.k.shape[-1], dv))
    state = layout.varying_as(state, arrays)
    # Any state: the rule is affine in it.
    return cotangents(arrays, scale, state, t, do, dfinal)[2]

  def final_state(arrays, scale, state, t):
    del t
    # As many columns as the state has: a map's are those of keys.
    v = arrays.v[..., : state.shape[-1]]
    return one_device(arrays._replace(v=v), scale, state)[1]

  of_rule = {
    "takes": lambda arrays, how: how.sequence_axis is not None,
    "on_hopper": lambda how, kernels, elsewhere, *args: kernels(*args),
  }
  of_passes = {
    "inverse": lambda arrays, spec: jnp.zeros(()),
    "outputs": lambda arrays, scale, state, t: one_device(arrays, scale, state),
    "final_state": final_state,
    "cotangents": cotangents,
    "initial_cotangent": initial_cotangent,
  }
  for home, played in ((hopper_rule, of_rule), (hopper_passes, of_passes)):
    for name, form in played.items():
      monkeypatch.setattr(home, name, form)


@pytest.mark.parametrize(
  "packed, check_vma, dv",
  [
    (True, True, 16),
    pytest.param(False, True, 16, marks=pytest.mark.slow),
    pytest.param(True, False, 16, marks=pytest.mark.slow),
    pytest.param(False, False, 16, marks=pytest.mark.slow),
    pytest.param(True, True, 32, marks=pytest.mark.slow),
  ],
)
def test_values_and_gradients_are_those_of_one_device(
  kernels, packed, check_vma, dv
):
  """Hard keys, slow decays, a state that enters, borders anywhere."""
  # Of a length that no other test has: what is compiled here stays here.
  p = oracles.problem(76, dk=16, dv=dv)
  ids = oracles.documents(76) if packed else np.zeros((FAMILY_COUNT, 76), int)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("tokens",))
  rule = jax.shard_map(
    lambda p, ids: p.under(sharded_delta_rule, ids, axis_name="tokens"),
    mesh=mesh,
    in_specs=(Problem(*[TOKENS] * 5, P()), TOKENS),
    out_specs=(TOKENS, P()),
    check_vma=check_vma,
  )
  rng = np.random.default_rng(2)
  shapes = p.v.shape, p.initial_state.shape
  g = tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)

  @oracles.quick_jit
  def run(p, ids):
    values, pull = jax.vjp(lambda p: rule(p, ids), p)
    return values, pull(g)[0]

  values, gradients = run(p, ids)
  adjoint = functools.partial(
    float64_rule.delta_rule_adjoint,
    d_out=np.float64(g[0]),
    d_state=np.float64(g[1]),
  )
  assert_close(values, float64_rule.delta_rule(p, ids), oracles.FLOAT32_RULE)
  truth = Problem(*p.under(adjoint, ids))
  assert_close(gradients, truth, oracles.FLOAT32_RULE_GRADIENT)


@pytest.mark.parametrize("over", ["one_device", "shards"])
def test_tangents_are_refused_in_a_sentence(kernels, over):
  p = oracles.problem(64, dk=16, dv=16)
  arrays = Operands(*map(jnp.asarray, p[:5]))
  how = RuleOptions(fused=True)

  def alone(arrays):
    return hopper_rule.rule(arrays, jnp.float32(1), None, None, how, None)

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tokens",))
  shards = jax.shard_map(
    lambda arrays: sharded_delta_rule(*arrays, axis_name="tokens"),
    mesh=mesh,
    in_specs=(Operands(*[TOKENS] * 5),),
    out_specs=(TOKENS, P()),
  )
  rule = shards if over == "shards" else alone
  forward = jax.jit(lambda x: jax.jvp(rule, (x,), (x,)))
  sentence = "first derivatives in reverse mode only: for second ones"
  with oracles.refused(NotImplementedError, sentence):
    forward.lower(arrays)


def test_the_gradient_of_a_scale_of_zero(monkeypatch):
  """Of outputs without it; the kernels, which divide by it, get another."""
  rng = np.random.default_rng(4)
  p = oracles.problem(CHUNK, dk=16, dv=16)
  arrays = Operands(*(jnp.asarray(x[:1]) for x in p[:5]))
  state = jnp.asarray(p.initial_state[:1])
  do = jnp.asarray(np.float32(rng.standard_normal(arrays.v.shape)))
  dfinal = jnp.asarray(np.float32(rng.standard_normal(state.shape)))

  @oracles.quick_jit
  def pulled(scale):
    return jax.vjp(one_device, arrays, scale, state)[1]((do, dfinal))

  def reverse(*given):
    scale = given[-3]
    assert scale.shape == (1,) and scale[0] != 0
    found, _, dstate = pulled(scale[0])
    return found.v, None, jnp.swapaxes(dstate, 2, 3)

  def gradients(*given):
    scale = given[-3]
    assert scale.shape == (1,) and scale[0] != 0
    found = pulled(scale[0])[0]
    decay, beta = (jnp.swapaxes(x, 1, 2) for x in (found.log_decay, found.beta))
    # Of the sums within the chunk, which `cotangents` adds up.
    decay = -jnp.diff(decay, append=0.0)
    return found.q, found.k, decay, beta

  monkeypatch.setattr(hopper_passes.scan, "states", lambda *_: (None, None))
  monkeypatch.setattr(hopper_passes.reverse, "reverse", reverse)
  monkeypatch.setattr(hopper_passes.gradients, "gradients", gradients)
  given = arrays, jnp.float32(0), state, None, do, dfinal
  # Without `jax.jit`, whose cache would keep what is played here.
  found, dscale, dstate = hopper_passes.cotangents.__wrapped__(*given)
  want, want_dscale, want_dstate = pulled(jnp.float32(0))
  assert not found.q.any()
  for x, y in zip(
    (*found[1:], dscale, dstate),
    (*want[1:], want_dscale, want_dstate),
    strict=True,
  ):
    assert oracles.whole_error(x, y) <= oracles.FLOAT32_RULE_GRADIENT
  given = arrays, jnp.float32(0), None, do, dfinal
  first = hopper_passes.initial_cotangent.__wrapped__(*given)
  assert oracles.whole_error(first, want_dstate) <= (
    oracles.FLOAT32_RULE_GRADIENT
  )


@pytest.mark.parametrize("decay", [0.0, 0.05, 40.0])
@pytest.mark.parametrize("rows", [1, 200])
def test_maps_take_the_chunks_that_matter_and_write_none(decay, rows):
  """What a state becomes at the far end, by one program or two a row."""
  count = 100
  log_decay = -decay * np.random.default_rng(3).random((1, rows, count, CHUNK))
  gates = np.cumsum(log_decay * np.log2(np.e), -1)
  gates = jnp.asarray(np.float32(gates.reshape(1, rows, -1)))
  total = np.cumsum(log_decay.sum(-1), -1) * np.log2(np.e)
  total = np.pad(total, ((0, 0), (0, 0), (1, 0)))
  halves = [1, 2] if rows == 1 else [3]
  for form, ending in (
    (hopper_pieces.to_the_end, count),
    (hopper_pieces.to_the_start, 0),
  ):
    found = np.asarray(form(gates))
    assert found.shape == (1, rows, len(halves), 4)
    run, write, end, carried = np.moveaxis(found, -1, 0)
    assert (end == ending).all() and (write == end).all()
    assert (carried == halves).all()
    whole = count - ending
    far = np.take_along_axis(total, run[..., :1], -1)[..., 0]
    if form is hopper_pieces.to_the_end:
      lost = total[..., -1] - far
    else:
      lost = far
    # All chunks, or as many as it takes to forget the others.
    assert ((run[..., 0] == whole) | (lost <= -29.9)).all()
    if decay == 0:
      assert (run == whole).all()
    if decay:
      assert (np.abs(run - end) < 50).all()
