"""Muon of stacked matrices beside optax's own, one matrix after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness.training import muon, optimiser
from experiments.train_prior.optim import PriorOptim, is_matrix
from posterior_jax import priors
from posterior_jax.priors import learned
from tests.oracles import quick_jit, refused

SHAPES = {
  "a.kernel": (3, 3, 4, 6),
  "b.kernel": (3, 3, 4, 6),
  "c.kernel": (8, 4),
  "enter.kernel": (3, 4),
  "a.bias": (6,),
}


@pytest.fixture(autouse=True)
def standard():
  """optax raises a float to the integer count of steps."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def _arrays(seed):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(np.float32(rng.standard_normal(shape)))
    for name, shape in SHAPES.items()
  }


def test_stacked_matrices_move_as_each_of_them_alone():
  params = _arrays(0)
  own = muon.muon(0.01, optax.sgd(0.5), is_matrix, decay=0.1)
  alone = {
    name: optax.contrib.muon(
      0.01,
      weight_decay=0.1,
      consistent_rms=muon.SCALE,
      muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(
        tuple(range(x.ndim - 1)), x.ndim - 1
      ),
    )
    for name, x in params.items()
    if is_matrix(name)
  }
  assert sorted(alone) == ["a.kernel", "b.kernel", "c.kernel"]

  @quick_jit
  def run(seeds):
    state = own.init(params)
    states = {name: rule.init(params[name]) for name, rule in alone.items()}
    found = []
    for gradient in seeds:  # the momentum remembers the first
      updates, state = own.update(gradient, state, params)
      expected = {name: -0.5 * x for name, x in gradient.items()}
      for name, rule in alone.items():
        expected[name], states[name] = rule.update(
          gradient[name], states[name], params[name]
        )
      found.append((updates, expected))
    return found

  for updates, expected in run([_arrays(1), _arrays(2)]):
    assert updates.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(updates[name], value, rtol=1e-3, atol=1e-6)


def test_an_update_has_the_singular_values_of_a_rotation():
  """All near 1 before the scale, however uneven the gradient's are."""
  gradient = _arrays(3)["c.kernel"] * np.float32([1, 3, 10, 30])
  rule = muon.muon(1.0, optax.sgd(1.0), is_matrix)
  params = {"c.kernel": jnp.zeros((8, 4))}
  update, _ = quick_jit(rule.update)(
    {"c.kernel": gradient}, rule.init(params), params
  )
  # Times the root of the larger side: a root mean square of 0.2 or so.
  values = np.linalg.svd(update["c.kernel"], compute_uv=False)
  values = values / (muon.SCALE * np.sqrt(8))
  assert 0.6 < values.min() and values.max() < 1.3


def test_the_prior_s_kernels_between_features_are_matrices():
  config = priors.UNetConfig(
    widths=(8, 16), blocks=(1, 1), embedding=16, normed=True
  )
  shapes = learned.param_shapes(config)
  found = {name for name in shapes if is_matrix(name)}
  blocks = ("down.0.0", "up.0.0", "middle.0", "middle.1")
  kernels = {f"{b}.{c}.kernel" for b in blocks for c in ("inner", "outer")}
  assert found == kernels | {"reduce.0.kernel", "enlarge.0.kernel"}


@pytest.mark.parametrize("muon_rate", [0.0, 0.05])
def test_a_rate_of_muon_moves_the_matrices_alone(muon_rate):
  """And follows the schedule: half of both rates in the middle of the fall."""
  optim = PriorOptim(rate=1e-3, warmup=0, constant=0.0, muon_rate=muon_rate)
  plain = optimiser.OptimSettings(rate=1e-3, warmup=0, constant=0.0)
  params, gradient = _arrays(4), _arrays(5)

  @functools.partial(quick_jit, static_argnums=0)
  def moved(optim):
    state = optimiser.init(params, optim)._replace(step=jnp.int32(5))
    after, _ = optimiser.moved(state, 0.0, gradient, jnp.float32(10), optim)
    return {name: after.params[name] - x for name, x in params.items()}

  found, adamw = moved(optim), moved(plain)
  for name, step in found.items():
    if muon_rate and is_matrix(name):
      size = float(jnp.sqrt(jnp.mean(step**2)))
      assert 0.5 < size / (0.5 * muon_rate * muon.SCALE) < 1.5
    else:
      np.testing.assert_allclose(step, adamw[name], rtol=1e-6)


def test_refusals():
  with refused(ValueError, "muon_rate must be at least 0, got -1"):
    PriorOptim(muon_rate=-1)
  with refused(ValueError, "decays must be None with a muon_rate"):
    PriorOptim(muon_rate=1e-3).rule(1e-3, is_matrix)
