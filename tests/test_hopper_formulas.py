"""The arithmetic of the rule's kernels on a Hopper GPU, without the card.

Their formulas in float64, which piece of a row does what, and the kernel of the
inverse in interpret mode.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import key_families
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.delta_rule.hopper import pieces as hopper_pieces
from neumann_jax.delta_rule.kernels import wy_gpu
from neumann_jax.delta_rule.recurrent import gated_delta_recurrent
from tests import oracles

C, D = 64, 128
SPEC = InverseSpec(precision="float16")


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
      k, g, b, spec=resolve(SPEC, C), chunk_size=C, interpret=True
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
