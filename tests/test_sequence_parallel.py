"""Tokens split over virtual devices against one device and float64.

Operands are hard by default: one row a family of keys (aligned, repeated,
periodic, ...), slow decays, documents with borders anywhere.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec, backends, sequence_axis
from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from tests import float64_rule, oracles
from tests.oracles import FAMILY_COUNT, Problem, assert_close
from tests.over_shards import SPECS, TOKENS, mesh_of, over, sharded


def single(p, segment_ids=None, **options):
  options = {"chunk_size": 16} | options
  return p.under(neumann_jax.gated_delta_rule, segment_ids, **options)


@functools.cache
def values_of(shards, **options):
  """The rule over shards, None for one device, compiled once."""
  rule = functools.partial(sharded, shards=shards) if shards else single
  return oracles.quick_jit(functools.partial(rule, **options))


@functools.cache
def derivatives_of(shards, **options):
  """(p, ids, cotangents) -> values and gradients, compiled once."""
  rule = functools.partial(sharded, shards=shards) if shards else single

  @oracles.quick_jit
  def run(p, segment_ids, g):
    values, pull = jax.vjp(lambda p: rule(p, segment_ids, **options), p)
    return values, pull(g)[0]

  return run


def cotangents(p, seed=2):
  rng = np.random.default_rng(seed)
  shapes = p.v.shape, p.initial_state.shape
  return tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)


def one_document(length):
  return np.zeros((FAMILY_COUNT, length), np.int32)


def gradients_of(p, segment_ids):
  d_out, d_state = map(np.float64, cotangents(p))
  adjoint = functools.partial(
    float64_rule.delta_rule_adjoint, d_out=d_out, d_state=d_state
  )
  return Problem(*p.under(adjoint, segment_ids))


def assert_rule(p, ids, shards, *, allowance=1, check_vma=True, chunk_size=16):
  """Values and gradients are those of one device and of float64."""
  g = cotangents(p)
  form = derivatives_of(shards, chunk_size=chunk_size, check_vma=check_vma)
  found = form(p, ids, g)
  one = derivatives_of(None, chunk_size=chunk_size)(p, ids, g)
  values, gradients = float64_rule.delta_rule(p, ids), gradients_of(p, ids)
  tolerance = allowance * oracles.FLOAT32_RULE
  assert_close(found, one, tolerance)
  assert_close(found[0], values, tolerance)
  tolerance = allowance**2 * oracles.FLOAT32_RULE_GRADIENT
  assert_close(found[1], gradients, tolerance)


# --- The rule ----------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_values_and_gradients(packed):
  """Eight shards, each half a chunk."""
  ids = oracles.documents(64) if packed else one_document(64)
  assert_rule(oracles.problem(64), ids, 8)


def test_negative_eigenvalues():
  """beta up to 2, where T may reach 2: the allowance of one device."""
  p = oracles.problem(64, beta=(1.0, 2.0))
  assert_rule(p, one_document(64), 8, allowance=2)


def test_tokens_that_forget_all_next_to_tokens_that_keep_all():
  p = oracles.problem(64)
  rng = np.random.default_rng(5)
  strength = rng.choice([0.0, -1e-3, -20.0, -1e3, -np.inf], p.log_decay.shape)
  p = p._replace(log_decay=strength.astype(np.float32))
  assert_rule(p, one_document(64), 8)


@pytest.mark.slow
def test_chunks_that_are_not_those_of_one_device():
  p = oracles.problem(80, ratio=3, key_heads=1)
  assert_rule(p, oracles.documents(80), 2)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("check_vma", [False, True])
def test_a_token_a_shard(shards, check_vma):
  """With and without the check of what varies over the mesh."""
  p, ids = oracles.problem(shards), oracles.documents(shards)
  assert_rule(p, ids, shards, check_vma=check_vma)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("length", [16, 136, 256, 512])
def test_more_values_and_gradients(length, shards, chunk_size, packed):
  p = oracles.problem(length, seed=1)
  ids = oracles.documents(length, seed=1) if packed else one_document(length)
  assert_rule(p, ids, shards, chunk_size=chunk_size)


def test_derivatives_taken_inside():
  """Of a loss summed over shards: the state's gradient is the sum as well."""
  p, ids = oracles.problem(32), oracles.documents(32)
  g = cotangents(p)

  def gradients(p, ids, g):
    def loss(p):
      out, state = p.under(
        sharded_delta_rule, ids, axis_name="tokens", chunk_size=16
      )
      own = jnp.sum(out * g[0])
      return lax.psum(own, "tokens") + jnp.sum(state * g[1])

    return jax.grad(loss)(p)

  form = over(4, gradients, (SPECS, TOKENS, (TOKENS, P())), SPECS)
  found = oracles.quick_jit(form)(p, ids, g)
  want = gradients_of(p, ids)
  assert_close(found, want, oracles.FLOAT32_RULE_GRADIENT)


@pytest.mark.slow
def test_rows_split_as_well():
  p, ids = oracles.problem(32), oracles.documents(32)
  both = P("rows", "tokens")
  rule = functools.partial(
    sharded_delta_rule, axis_name="tokens", chunk_size=16
  )

  def run(state, p, ids):
    p = p._replace(initial_state=p.initial_state if state else None)
    return p.under(rule, ids)

  for state in (True, False):
    form = jax.shard_map(
      functools.partial(run, state),
      mesh=mesh_of(4, rows=2),
      in_specs=(Problem(*[both] * 5, P("rows")), both),
      out_specs=(both, P("rows")),
    )
    found = oracles.quick_jit(form)(p, ids)
    start = p.initial_state if state else np.zeros_like(p.initial_state)
    want = float64_rule.delta_rule(p._replace(initial_state=start), ids)
    assert_close(found, want, oracles.FLOAT32_RULE)


@pytest.mark.parametrize("form", ["gated_delta_rule", "gated_delta_recurrent"])
def test_rows_split_without_a_state(form):
  """The zero state of a scan has to vary as its operands do."""
  p = oracles.problem(20)
  run = jax.shard_map(
    lambda *operands: getattr(neumann_jax, form)(*operands),
    mesh=mesh_of(1, rows=8),
    in_specs=P("rows"),
    out_specs=P("rows"),
  )
  want = float64_rule.delta_rule(p._replace(initial_state=0 * p.initial_state))
  assert_close(oracles.quick_jit(run)(*p[:5]), want, oracles.FLOAT32_RULE)


@pytest.mark.slow
def test_a_rounded_inverse_is_that_of_one_device():
  """Whole chunks a shard: the matrices, and so their errors, are the same."""
  p, ids = oracles.problem(64), oracles.documents(64)
  spec = InverseSpec(quant=QuantSpec(8))
  found, one = (values_of(n, spec=spec)(p, ids) for n in (4, None))
  assert_close(found, one, oracles.FLOAT32_RULE)
  assert oracles.error(one[0], float64_rule.delta_rule(p, ids)[0]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    {"fused": True, "implementation": "interpret"},
    {"scale": 3.0},
    {"implementation": "interpret"},
    {"spec": InverseSpec(precision="bfloat16")},
    {"spec": InverseSpec("newton", residual_steps=2)},
  ],
)
def test_options_reach_the_rule(options):
  p, ids = oracles.problem(64), oracles.documents(64)
  found, one, other = (
    values_of(n, **o)(p, ids)
    for n, o in ((4, options), (None, options), (4, {}))
  )
  assert_close(found, one, oracles.FLOAT32_RULE)
  assert (np.asarray(found[0]) != np.asarray(other[0])).any()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["auto", "interpret"])
def test_the_kernels_of_a_tpu_scan_both_columns(implementation, monkeypatch):
  """Values, and zeros that read an identity, as two heads of one key head."""
  monkeypatch.setattr(tpu_rule.pltpu, "InterpretParams", lambda: True)
  monkeypatch.setattr(backends.pltpu, "InterpretParams", lambda: True)
  p = oracles.problem(100, ratio=1, key_heads=1, dk=128, dv=128)
  p, ids = Problem(*(x[:3] for x in p)), oracles.documents(100)[:3]
  options = {
    "chunk_size": 64,
    "fused": True,
    "implementation": implementation,
  }

  def loss(p):
    out, state = sharded(p, ids, shards=2, check_vma=False, **options)
    return jnp.sum(jnp.sin(out)) + jnp.sum(state), (out, state)

  step = jax.grad(loss, has_aux=True)
  assert "neumann_rule_forward" in str(jax.make_jaxpr(step)(p))
  gradient, found = oracles.quick_jit(step)(p)
  truth = float64_rule.delta_rule(p, ids)
  assert_close(found, truth, oracles.FLOAT32_RULE)
  want = p.under(
    functools.partial(
      float64_rule.delta_rule_adjoint,
      d_out=np.cos(truth[0]),
      d_state=np.ones_like(truth[1]),
    ),
    ids,
  )
  assert_close(tuple(gradient), want, oracles.FLOAT32_RULE_GRADIENT)


def without_roundings():
  """Eight shards of eight tokens whose products need no more than 8 bits.

  Keys are rows of a Hadamard matrix, all those of a shard different: A = 0 and
  T = I. A query is the sum of four rows, so that it reads several values.
  Decays are 0 or infinite and beta a power of two, or 0.
  """
  p, rng = oracles.problem(64), np.random.default_rng(11)
  rows = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]])] * 4) / 4
  spread = (FAMILY_COUNT, 8, 2)  # [B, shards, Hk]
  order = rng.permuted(np.tile(np.arange(16), (*spread, 1)), axis=-1)[..., :8]
  gates = p.beta.shape
  return p._replace(
    q=rows[rng.integers(0, 16, (*p.q.shape[:3], 4))].sum(-2),
    k=rows[order.swapaxes(2, 3)].reshape(p.k.shape),
    log_decay=rng.choice([0, -np.inf], gates, p=[0.95, 0.05]),
    beta=rng.choice([0, 0.5, 1, 2], gates),
  )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_operands_are_rounded_once(dtype):
  """Nothing is rounded but the output where no operand of a product is.

  So sums, a shard's map, what shards send and the state are all float32.
  """
  p, rounded = oracles.narrow(without_roundings(), dtype)
  ids = oracles.documents(64)
  out, state = values_of(8)(p, ids)
  assert out.dtype == dtype and state.dtype == jnp.float32
  assert oracles.error(state.astype(dtype), state) > 1e-4  # it has more bits
  want, last = float64_rule.delta_rule(rounded, ids)
  assert_close(state, last, oracles.FLOAT32_RULE)
  np.testing.assert_allclose(
    np.float64(out),
    want,
    rtol=float(jnp.finfo(dtype).eps) / 2,
    atol=oracles.FLOAT32_RULE * np.abs(want).max(),
  )


def by_maps(p, shards):
  """The last state from shards' maps S -> M S + b, each of one device."""
  state = np.float64(p.initial_state)
  dk, dv = state.shape[-2:]
  identity = np.broadcast_to(np.eye(dk), (*state.shape[:-1], dk))
  start = np.concatenate([np.zeros_like(state), identity], -1)
  v = jnp.pad(p.v, [(0, 0)] * 3 + [(0, dk)])
  parts = (jnp.split(x, shards, axis=1) for x in p._replace(v=v)[:5])
  for arrays in zip(*parts):
    part = Problem(*arrays, jnp.asarray(np.float32(start)))
    b, m = np.split(np.float64(values_of(None)(part)[1]), [dv], axis=-1)
    state = m @ state + b
  return state


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 8])
def test_narrow_operands_are_rounded_as_on_one_device(shards):
  """Products round what they do where one device is given a shard's columns.

  One device that is given the state instead rounds S where shards round b and
  M: the two are equally near to float64, and no nearer to each other.
  """
  p, rounded = oracles.narrow(oracles.problem(64), "bfloat16")
  found, one = (values_of(n)(p, one_document(64)) for n in (shards, None))
  assert_close(found[1], by_maps(p, shards), oracles.FLOAT32_RULE)
  for values in (found, one):
    for a, b in zip(values, float64_rule.delta_rule(rounded), strict=True):
      allowance = oracles.NARROW_RULE_ANY["bfloat16"]
      assert oracles.rms_error(a, b).max() <= allowance


def test_tokens_that_write_nothing():
  """beta = 0 and no decay leave the state bit for bit."""
  p = oracles.problem(64)
  p = p._replace(beta=0 * p.beta, log_decay=0 * p.log_decay)
  found = values_of(8)(p, one_document(64))
  chex.assert_trees_all_equal(np.asarray(found[1]), p.initial_state)


def test_same_bits_again_and_in_every_shard():
  p, ids = oracles.problem(64), oracles.documents(64)
  first, again = (values_of(8)(p, ids) for _ in range(2))
  chex.assert_trees_all_equal(first, again)
  copies = [np.asarray(s.data) for s in first[1].addressable_shards]
  assert len(copies) == 8
  chex.assert_trees_all_equal(*copies)


# --- Documents ---------------------------------------------------------------

# Shards of 8: a document of three shards, a border between two shards, one
# token alone, and one whose last token opens the last shard.
SIZES = (19, 5, 1, 7, 25, 7)
IDS = np.tile(np.repeat(np.int32([0, 1, 4, 5, 6, 9]), SIZES), (FAMILY_COUNT, 1))
ENDS = np.cumsum(SIZES)


def test_documents_are_sequences_alone():
  p = oracles.problem(64)
  out, state = values_of(8)(p, IDS)
  for stop, size in zip(ENDS, SIZES):
    alone = Problem(
      *(x[:, stop - size : stop] for x in p[:5]),
      p.initial_state if stop == size else np.zeros_like(p.initial_state),
    )
    want, last = float64_rule.delta_rule(alone)
    found = out[:, stop - size : stop]
    assert_close(found, want, oracles.FLOAT32_RULE)
  assert_close(state, last, oracles.FLOAT32_RULE)


def test_documents_read_nothing_of_each_other():
  """Bit for bit: other neighbours, and another state before them."""
  p, other = oracles.problem(64), oracles.problem(64, seed=7)
  one = values_of(8)(p, IDS)[0]
  for stop, size in zip(ENDS[1:], SIZES[1:]):
    own = np.zeros(64, bool)
    own[stop - size : stop] = True
    mixed = Problem(
      *(
        np.where(own.reshape(-1, *[1] * (a.ndim - 2)), a, b)
        for a, b in zip(p[:5], other)
      ),
      other.initial_state,
    )
    found = values_of(8)(mixed, IDS)[0]
    chex.assert_trees_all_equal(found[:, own], one[:, own])
    assert oracles.error(found[:, ~own], one[:, ~own]) > 1e-2


def test_no_gradient_crosses_a_border():
  """Exactly zero, not small, whichever document is asked."""
  p = oracles.problem(64)

  for stop, size in zip(ENDS, SIZES):
    own = np.zeros(64, bool)
    own[stop - size : stop] = True
    d_out, d_state = cotangents(p)
    d_out = np.where(own[:, None, None], d_out, 0)
    g = (d_out, d_state if stop == 64 else 0 * d_state)
    _, found = derivatives_of(8, chunk_size=16, check_vma=True)(p, IDS, g)
    for name, gradient in found._asdict().items():
      gradient = np.asarray(gradient)
      if name == "initial_state":
        assert gradient.any() == (stop == size)
      else:
        assert not gradient[:, ~own].any(), name
        assert gradient[:, own].any() or (name, size) == ("log_decay", 1)


# --- Refusals ----------------------------------------------------------------


def test_tokens_a_shard():
  mesh = mesh_of(4)
  assert sequence_axis.local_length(64, mesh, "tokens") == 16
  with oracles.refused(ValueError, "multiple of the 4 shards .* got 66"):
    sequence_axis.local_length(66, mesh, "tokens")
  with oracles.refused(ValueError, "4 shards .* got 0"):
    sequence_axis.local_length(0, mesh, "tokens")
  with oracles.refused(ValueError, "axes rows, tokens; got 'heads'"):
    sequence_axis.local_length(64, mesh, "heads")


def test_operands_are_checked_as_on_one_device():
  p = oracles.problem(8)
  short = p._replace(v=p.v[:, :4])
  with oracles.refused(ValueError, "v must have shape"):
    sharded(short, shards=4)
  with oracles.refused(ValueError, "chunk_size must be a power of two, got 3"):
    sharded(p, shards=4, chunk_size=3)
