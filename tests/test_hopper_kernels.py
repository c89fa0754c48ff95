"""The kernels of a Hopper GPU, simulated on the CPU, against the recurrence.

jax's simulator of Mosaic GPU has programs, warpgroups, copies and barriers, and
hangs or stops where one waits for what never comes. What it lacks, products of
the tensor cores and layouts of registers, is played here. What only a card can
show is in `experiments.rule_speed`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neumann_jax.delta_rule import hopper
from neumann_jax.delta_rule.hopper import passes, pieces
from neumann_jax.delta_rule.hopper.tiles import CHUNK
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.recurrent import gated_delta_recurrent
from tests import oracles

if jax.__version_info__ < (0, 11):
  pytest.skip("Mosaic GPU needs jax 0.11 for these", allow_module_level=True)

from jax.experimental.pallas import mosaic_gpu as plgpu

SCALE = 0.25
SIMULATOR = "jax._src.pallas.mosaic_gpu.interpret.shared_memory"


def accumulate(*chains, meanwhile=lambda: None):
  """`tiles.accumulate` by XLA: 16-bit operands, sums in float32."""
  found = []
  for start, pairs in chains:
    if isinstance(start, tuple):
      start = jnp.zeros(start, jnp.float32)
    for pair in pairs:
      left, right = (x[...] for x in pair)
      assert left.dtype == right.dtype == jnp.bfloat16
      product = jnp.dot(left, right, preferred_element_type=jnp.float32)
      start = start + product
    found.append(start)
  meanwhile()
  return found


def released(barrier):
  with barrier.cv:
    barrier.ref_count -= 1


@pytest.fixture
def simulated(monkeypatch):
  played = {
    "accumulate": accumulate,
    "zeros": lambda shape, dtype=jnp.float32: jnp.zeros(shape, dtype),
    "registers": lambda ref, **_: ref[...],
  }
  for kernels in vars(hopper).values():
    for name, form in played.items():
      if hasattr(kernels, name):
        monkeypatch.setattr(kernels, name, form)
  # It wants every barrier to be waited for as often as it is reached; what
  # tells a loader that a slot is free is not, once nothing more is to load.
  monkeypatch.setattr(f"{SIMULATOR}.Barrier.deallocate", released)
  # Traced as they are: nothing of this stays in the caches of `jax.jit`.
  for module, names in (
    (passes, ("outputs", "cotangents")),
    (pieces, ("starts", "stops")),
  ):
    for name in names:
      form = getattr(module, name).__wrapped__
      monkeypatch.setattr(module, name, form)
  with plgpu.force_gpu_interpret_mode():
    yield


def inverse(k, log_decay, beta):
  """R = T - I of every chunk: [T, Dk] and [T] -> [T, C], float64."""
  found = []
  for at in range(0, len(k), CHUNK):
    rows = slice(at, at + CHUNK)
    gate = np.cumsum(log_decay[rows])
    weight = np.tril(np.exp(gate[:, None] - gate[None, :]), -1)
    a = beta[rows, None] * (k[rows] @ k[rows].T) * weight
    found.append(np.linalg.inv(np.eye(CHUNK) + a) - np.eye(CHUNK))
  return np.concatenate(found)


def inverses(arrays):
  """[B, Hv, N C, C], as `passes.inverse` gives it."""
  wide = (np.asarray(x.astype(jnp.float32), np.float64) for x in arrays)
  _, k, _, log_decay, beta = (
    np.pad(x, [(0, 0), (0, -x.shape[1] % CHUNK)] + [(0, 0)] * (x.ndim - 2))
    for x in wide
  )
  (b, _, hk, _), hv = k.shape, beta.shape[2]
  found = [
    [
      inverse(k[i, :, j // (hv // hk)], log_decay[i, :, j], beta[i, :, j])
      for j in range(hv)
    ]
    for i in range(b)
  ]
  return jnp.asarray(np.stack(found), jnp.bfloat16)


def drawn(dk, dv, tokens=100):
  """Operands, an initial state and cotangents."""
  rng = np.random.default_rng(0)
  normal = rng.standard_normal
  q, k = normal((2, 1, tokens, 1, dk))
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  v, do = normal((2, 1, tokens, 2, dv))
  gates = -0.1 * rng.random((1, tokens, 2)), rng.random((1, tokens, 2))
  q, k, v, do = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, do))
  gates = (jnp.asarray(x, jnp.float32) for x in gates)
  state, dfinal = jnp.asarray(normal((2, 1, 2, dk, dv)), jnp.float32)
  return Operands(q, k, v, *gates), state, do, dfinal


def recurrence(arrays, state, do, dfinal):
  """((out, final), (cotangents of the operands and of the state)), float64."""
  with jax.enable_x64(True):
    given = jax.tree.map(
      lambda x: jnp.asarray(np.asarray(x.astype(jnp.float32), np.float64)),
      ((*arrays, state), (do, dfinal)),
    )
    found, pull = jax.vjp(
      lambda *x: gated_delta_recurrent(*x[:5], scale=SCALE, initial_state=x[5]),
      *given[0],
    )
    return found, pull(given[1])


@pytest.mark.parametrize(
  "dk, dv",
  [
    (256, 256),
    pytest.param(128, 128, marks=pytest.mark.slow),
    pytest.param(128, 256, marks=pytest.mark.slow),
    pytest.param(256, 128, marks=pytest.mark.slow),
  ],
)
def test_kernels_are_the_recurrence(simulated, dk, dv):
  """Two value heads of a key head, a chunk cut short, a state that enters."""
  compare(*drawn(dk, dv))


@pytest.mark.parametrize(
  "dk, dv", [(256, 128), pytest.param(128, 128, marks=pytest.mark.slow)]
)
def test_pieces_of_a_row_are_the_recurrence(simulated, monkeypatch, dk, dv):
  """Of four chunks a piece each, and every buffer filled again.

  Of the first head nothing decays: two programs have half of its columns each.
  The second forgets within a chunk: its pieces begin a chunk or two early.
  """
  monkeypatch.setattr(pieces, "_PIECE", 1)
  arrays, *rest = drawn(dk, dv, tokens=200)
  decay = arrays.log_decay * jnp.array([0.0, 20.0])
  compare(arrays._replace(log_decay=decay), *rest)


def compare(arrays, state, do, dfinal):
  """All kernels, forward and backward, with the recurrence in float64."""
  t, scale = inverses(arrays), jnp.float32(SCALE)
  found = passes.outputs(arrays, scale, state, t)
  operands, _, dstate = passes.cotangents(arrays, scale, state, t, do, dfinal)
  values, cotangents = recurrence(arrays, state, do, dfinal)
  errors = {
    name: oracles.rms_error(x, y).max()
    for name, x, y in zip(
      ("out", "final", *Operands._fields, "state"),
      (*found, *operands, dstate),
      (*values, *cotangents),
      strict=True,
    )
  }
  # Those of the gates are what is left of sums that cancel.
  gates = {name: errors.pop(name) for name in ("log_decay", "beta")}
  assert max(errors.values()) <= oracles.NARROW_RULE["bfloat16"], errors
  assert max(gates.values()) <= oracles.NARROW_RULE_ANY["bfloat16"], gates
