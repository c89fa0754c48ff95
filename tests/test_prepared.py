"""Operators that carry their decomposition: once for all steps of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import posterior_jax as pj
from posterior_jax import baselines, operators
from posterior_jax.likelihood import bands

SHAPE = (8, 8, 1)
MATRIX = np.random.default_rng(0).standard_normal((9, 64))
OPERATORS = {
  "resize": operators.super_resolution(SHAPE, factor=2),
  "blur": operators.gaussian_blur(SHAPE, size=5, std=1.0),
  "dense": operators.dense(SHAPE, MATRIX),
}
WITHOUT = {
  "circular": operators.gaussian_blur(
    SHAPE, size=5, std=1.0, boundary="circular"
  ),
  "motion": operators.motion_blur(SHAPE, np.eye(3, dtype="f") / 3),
  "box": operators.box_inpainting(SHAPE, size=4),
}


def decompositions(jaxpr, within=False):
  """How many there are outside and inside of loops."""
  found = np.zeros(2, int)
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    found[int(within)] += name == "svd"
    for inner in jaxprs_in_params(equation.params):
      found += decompositions(inner, within or name in ("scan", "while"))
  return found


def program(operator, sampler):
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(*SHAPE[:2]))
  y = jnp.zeros((1, *operator.measurement_shape))
  observation = pj.Observation(y, operator, 0.1)
  return jax.make_jaxpr(
    lambda observation, key: pj.run(sampler, prior.denoise, observation, key)
  )(observation, jax.random.key(0)).jaxpr


@pytest.mark.parametrize("name", OPERATORS)
def test_no_step_decomposes(name):
  sampler = baselines.diffpir(baselines.DiffPIRConfig.tuned(levels=3))
  outside, inside = decompositions(program(OPERATORS[name], sampler))
  assert inside == 0 and outside == (1 if name == "dense" else 2)
  prepared = OPERATORS[name].prepared()
  assert not decompositions(program(prepared, sampler)).any()


@pytest.mark.parametrize("name", OPERATORS)
def test_solves_are_those_of_the_operator(name):
  plain = OPERATORS[name]
  prepared = plain.prepared()
  assert prepared.prepared().known is prepared.known
  rng = np.random.default_rng(1)
  x = np.float32(rng.standard_normal((2, *SHAPE)))
  noise, precision = 0.1, 1.0
  rhs = plain.adjoint(plain.forward(x)) / noise**2 + precision * x
  given = dict(precision=jnp.float32(precision), noise_std=noise)
  for each in (plain, prepared):
    found, _ = each.normal_solve(rhs, **given)
    np.testing.assert_allclose(found, x, atol=1e-3)
  for method in ("forward", "adjoint"):
    same = x if method == "forward" else plain.forward(x)
    np.testing.assert_array_equal(
      getattr(prepared, method)(same), getattr(plain, method)(same)
    )


def test_known_matrices_are_decomposed_in_float64():
  matrix = np.float32(np.random.default_rng(2).standard_normal((40, 40)))
  operator = operators.dense((5, 8, 1), matrix)
  exact = np.linalg.svd(np.float64(matrix), compute_uv=False)
  found = np.ravel(operator.prepared().known.values)
  np.testing.assert_array_equal(found, np.float32(exact))


@pytest.mark.parametrize("name", WITHOUT)
def test_what_needs_none_is_left_as_it_is(name):
  assert WITHOUT[name].prepared() is WITHOUT[name]


def test_what_holds_an_operator_prepares_it():
  operator = OPERATORS["resize"]
  banded = bands.Banded(operator, jnp.ones(operator.measurement_shape[:2]))
  assert banded.prepared().operator.known is not None


def test_gradients_reach_the_matrix_of_a_program():
  operator = OPERATORS["dense"]
  rhs = jnp.ones((1, *SHAPE))

  def total(matrix):
    own = dataclasses.replace(operator, matrix=matrix).prepared()
    x, _ = own.normal_solve(rhs, precision=jnp.float32(1.0), noise_std=0.5)
    return jnp.sum(x**2)

  matrix = jnp.asarray(np.float32(MATRIX))
  step = jnp.zeros_like(matrix).at[2, 3].set(1e-2)
  slope = jax.grad(total)(matrix)[2, 3] * 2e-2
  rise = total(matrix + step) - total(matrix - step)
  np.testing.assert_allclose(slope, rise, rtol=1e-2)
