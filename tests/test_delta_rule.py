"""Values: chunked, recurrent and one-token forms are the float64 token loop.

Gradients and arithmetic are in test_delta_rule_gradients.py, bad input in
test_delta_rule_input.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from experiments.data import key_families
from tests import float64_rule, oracles
from tests.oracles import FAMILY_COUNT, Problem, assert_close

# Around every border of the chunks of 64; the other lengths up to 200 are
# below as documents, and as calls in the slow set.
LENGTHS = (
  *(1, 63, 64, 65, 200),
  *(
    pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 100, 127, 129, 192)
  ),
)


@functools.partial(oracles.quick_jit, static_argnames=("chunk_size",))
def chunked(p, segment_ids=None, **options):
  return p.under(neumann_jax.gated_delta_rule, segment_ids, **options)


@oracles.quick_jit
def recurrent(p, segment_ids=None):
  return p.under(neumann_jax.gated_delta_recurrent, segment_ids)


# Three chunks of 16 for 40 tokens: cheap to compile, same code as 64.
short_chunks = functools.partial(chunked, chunk_size=16)


def assert_forms(p, segment_ids=None, *, by_chunks=chunked, allowance=1):
  """Chunked == recurrent == float64 loop, outputs and final state."""
  tolerance = allowance * oracles.FLOAT32_RULE
  found, serial = by_chunks(p, segment_ids), recurrent(p, segment_ids)
  truth = float64_rule.delta_rule(p, segment_ids)
  assert_close(found, truth, tolerance)
  assert_close(serial, truth, tolerance)
  assert_close(found, serial, tolerance)


def assert_length(length, seed):
  """One compilation serves a single document and packed ones."""
  p = oracles.problem(length, seed=seed)
  for ids in (
    np.zeros((FAMILY_COUNT, length), np.int32),
    oracles.documents(length, seed=seed),
  ):
    assert_forms(p, ids)


@pytest.mark.parametrize("length", LENGTHS)
def test_ragged_lengths(length):
  assert_length(length, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("length", range(1, 201))
def test_every_length(length):
  assert_length(length, seed=1)


@pytest.mark.parametrize(
  "chunk_size", [16, pytest.param(64, marks=pytest.mark.slow)]
)
def test_documents_of_every_length(chunk_size):
  """Row i packs i + 1 and 200 - i tokens: all lengths, all borders, at once."""
  sets = [oracles.problem(201, seed=seed, key_heads=1) for seed in range(25)]
  p = Problem(*(np.concatenate(x) for x in zip(*sets)))  # 200 rows
  rows, tokens = np.arange(200)[:, None], np.arange(201)
  ids = (tokens > rows).astype(np.int32)
  assert sorted((ids == 0).sum(1)) == sorted((ids == 1).sum(1))
  assert set((ids == 0).sum(1)) == set(range(1, 201))
  by_chunks = functools.partial(chunked, chunk_size=chunk_size)
  assert_forms(p, ids, by_chunks=by_chunks)


def test_as_users_call_it():
  """Outside of jit and with every default."""
  p = oracles.problem(100)
  tape = float64_rule.delta_rule_loop(*p[:5])
  found = neumann_jax.gated_delta_rule(*p[:5])
  assert_close(found, (tape.out, tape.states[-1]), oracles.FLOAT32_RULE)


@pytest.mark.parametrize(
  "ratio, key_heads", [(1, 2), (2, 1), (2, 2), (3, 2), (4, 2)]
)
def test_grouped_value_heads(ratio, key_heads):
  p = oracles.problem(40, ratio=ratio, key_heads=key_heads)
  assert_forms(p, oracles.documents(40), by_chunks=short_chunks)


@pytest.mark.parametrize("chunk_size", [1, 2, 32, 128])
def test_any_chunk_size(chunk_size):
  p, ids = oracles.problem(40), oracles.documents(40)
  found = chunked(p, ids, chunk_size=chunk_size)
  assert_close(found, float64_rule.delta_rule(p, ids), oracles.FLOAT32_RULE)


def test_both_forms_in_float64_are_the_loop():
  p, ids = oracles.problem(40), oracles.documents(40)
  truth = float64_rule.delta_rule(p, ids)
  with jax.enable_x64(True):
    wide = Problem(*(jnp.asarray(x, jnp.float64) for x in p))
    serial = recurrent(wide, ids)
    found = short_chunks(wide, ids)
    assert found[0].dtype == found[1].dtype == jnp.float64
    assert serial[0].dtype == serial[1].dtype == jnp.float64
    assert_close(serial, truth, 1e-13)
    assert_close(found, truth, 1e-12)


# --- State -------------------------------------------------------------------


def assert_carries(p, cuts, forms):
  """Pieces of a sequence, each by the next of `forms`, are the whole."""
  state, pieces = p.initial_state, []
  borders = zip((0, *cuts), (*cuts, p.v.shape[1]), strict=True)
  for i, (start, stop) in enumerate(borders):
    piece = Problem(*(x[:, start:stop] for x in p[:5]), state)
    out, state = forms[i % len(forms)](piece)
    pieces.append(out)
  found = np.concatenate(pieces, 1), state
  assert_close(found, float64_rule.delta_rule(p), oracles.FLOAT32_RULE)


@pytest.mark.parametrize(
  "cuts, forms",
  [
    ((20,), (short_chunks,)),
    ((1, 21), (short_chunks,)),
    ((20,), (recurrent,)),
    ((21, 30), (short_chunks, recurrent)),
  ],
)
def test_state_carries_across_calls(cuts, forms):
  assert_carries(oracles.problem(40), cuts, forms)


@pytest.mark.slow
@pytest.mark.parametrize("cut", range(1, 40))
def test_state_carries_across_any_cut(cut):
  forms = (short_chunks, recurrent)
  assert_carries(oracles.problem(40, seed=1), (cut,), forms)


def test_steps_are_the_loop():
  p = oracles.problem(40)
  state, pieces = p.initial_state, []
  for t in range(40):
    out, state = neumann_jax.gated_delta_step(*(x[:, t] for x in p[:5]), state)
    pieces.append(out)
  found = np.stack(pieces, 1), state
  assert_close(found, float64_rule.delta_rule(p), oracles.FLOAT32_RULE)


def test_scale_and_missing_state():
  p = oracles.problem(20)
  tape = float64_rule.delta_rule_loop(*p[:5], scale=3.0)
  truth = (tape.out, tape.states[-1])
  found = neumann_jax.gated_delta_rule(*p[:5], scale=3.0, chunk_size=16)
  assert_close(found, truth, oracles.FLOAT32_RULE)
  found = neumann_jax.gated_delta_recurrent(*p[:5], scale=3.0)
  assert_close(found, truth, oracles.FLOAT32_RULE)
  zero = np.zeros_like(p.initial_state)
  out, _ = neumann_jax.gated_delta_step(
    *(x[:, 0] for x in p[:5]), zero, scale=3.0
  )
  assert_close(out, tape.out[:, 0], oracles.FLOAT32_RULE)


# --- Documents ---------------------------------------------------------------


def test_documents_read_nothing_of_each_other():
  """Bit for bit: other neighbours, and another state before them."""
  p, other = oracles.problem(40), oracles.problem(40, seed=7)
  ids = np.tile(np.repeat(np.int32([0, 1, 2]), [21, 9, 10]), (FAMILY_COUNT, 1))
  middle = slice(21, 30)
  mixed = Problem(
    *(
      np.concatenate([b[:, :21], a[:, middle], b[:, 30:]], 1)
      for a, b in zip(p[:5], other)
    ),
    other.initial_state,
  )
  for form in (short_chunks, recurrent):
    chex.assert_trees_all_equal(
      form(p, ids)[0][:, middle], form(mixed, ids)[0][:, middle]
    )


def test_a_document_is_the_sequence_alone():
  """Outputs and the final state of the last one, as if called by itself."""
  p = oracles.problem(40)
  ids = np.tile((np.arange(40) >= 30).astype(np.int32), (FAMILY_COUNT, 1))
  alone = Problem(*(x[:, 30:] for x in p[:5]), np.zeros_like(p[5]))
  truth = float64_rule.delta_rule(alone)
  for form in (short_chunks, recurrent):
    out, state = form(p, ids)
    assert_close((out[:, 30:], state), truth, oracles.FLOAT32_RULE)


def test_only_the_borders_of_ids_count():
  p, ids = oracles.problem(40), oracles.documents(40)
  for form in (short_chunks, recurrent):
    chex.assert_trees_all_equal(form(p, ids), form(p, 5 * ids - 70))


# --- Extremes ----------------------------------------------------------------


def test_negative_eigenvalues():
  """Contractions still, but up to beta = 2 values grow: T may reach 2."""
  p = oracles.problem(40, beta=(1.0, 2.0))
  assert_forms(p, by_chunks=short_chunks, allowance=2)


def test_strong_decay_keeps_its_digits():
  """Tokens that forget all, -inf included, next to tokens that keep all."""
  p = oracles.problem(40)
  rng = np.random.default_rng(5)
  strength = rng.choice([0.0, -1e-3, -20.0, -1e3, -np.inf], p.log_decay.shape)
  assert_forms(
    p._replace(log_decay=strength.astype(np.float32)), by_chunks=short_chunks
  )


def test_tokens_that_write_nothing():
  """beta = 0 and no decay leave the state, whatever keys and values are."""
  p = oracles.problem(40)
  still = p._replace(
    beta=np.zeros_like(p.beta), log_decay=np.zeros_like(p.log_decay)
  )
  for form in (short_chunks, recurrent):
    chex.assert_trees_all_equal(np.asarray(form(still)[1]), p.initial_state)


# --- Chunk matrices ----------------------------------------------------------


def test_chunk_matrices_are_the_definition():
  p, ids = oracles.problem(100, ratio=3), oracles.documents(100)
  matrices = functools.partial(neumann_jax.chunk_matrices, chunk_size=32)
  found = oracles.quick_jit(matrices)(p.k, p.log_decay, p.beta, segment_ids=ids)
  assert found.a.shape == (FAMILY_COUNT, 6, 4, 32, 32)
  pad = [(0, 0), (0, 28)]
  for head in range(6):
    chunks = key_families.Chunks(
      np.pad(p.k[:, :, head // 3], [*pad, (0, 0)]).reshape(-1, 32, 16),
      np.pad(p.beta[..., head], pad).reshape(-1, 32),
      np.pad(np.float64(p.log_decay[..., head]), pad).reshape(-1, 32),
    )
    same = np.pad(ids, pad, mode="edge").reshape(-1, 32)
    same = same[:, :, None] == same[:, None]
    want = np.where(same, chunks.a, 0).reshape(FAMILY_COUNT, 4, 32, 32)
    got = np.asarray(found.a[:, head])
    assert np.abs(got - want).max() <= 1e-6
    assert not got[~same.reshape(got.shape)].any()
    chex.assert_trees_all_equal(
      np.asarray(found.beta[:, head]).reshape(-1, 32), chunks.beta
    )
    chex.assert_trees_all_equal(
      np.asarray(found.log_decay[:, head]).reshape(-1, 32),
      np.float32(chunks.log_decay),
    )
