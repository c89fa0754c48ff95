"""Operators beside their decomposition, which no run makes again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import posterior_jax as pj
from posterior_jax import baselines, operators
from tests import oracles

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


def decompositions(jaxpr):
  found = 0
  for equation in jaxpr.eqns:
    found += equation.primitive.name == "svd"
    found += sum(map(decompositions, jaxprs_in_params(equation.params)))
  return found


@pytest.mark.parametrize("name", OPERATORS)
def test_no_run_decomposes_it(name):
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(*SHAPE[:2]))
  sampler = baselines.diffpir(baselines.DiffPIRConfig.tuned(levels=3))
  plain = OPERATORS[name]
  y = jnp.zeros((1, *plain.measurement_shape))

  def count(operator):
    program = jax.make_jaxpr(
      lambda observation, key: pj.run(sampler, prior.denoise, observation, key)
    )(pj.Observation(y, operator, 0.1), jax.random.key(0))
    return decompositions(program.jaxpr)

  assert count(plain) > 0 and count(plain.prepared()) == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_solves_are_those_of_the_operator(name):
  plain = OPERATORS[name]
  prepared = plain.prepared()
  assert prepared.prepared() is prepared
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
  found = np.ravel(operator.prepared().svd().values)
  np.testing.assert_array_equal(found, np.float32(exact))


@pytest.mark.parametrize("name", WITHOUT)
def test_what_needs_none_is_left_as_it_is(name):
  assert WITHOUT[name].prepared() is WITHOUT[name]


def test_it_is_the_operator_in_all_else():
  """Also with borders beyond the picture, and under a precision that varies."""
  plain = operators.super_resolution((20, 20, 1), factor=2, boundary="valid")
  prepared = plain.prepared()
  for name in ("image_shape", "measurement_shape", "margin", "even"):
    assert getattr(prepared, name) == getattr(plain, name), name
  for name in ("pictorial", "gridded", "gain_is_exact", "is_linear"):
    assert getattr(prepared, name) == getattr(plain, name), name
  np.testing.assert_array_equal(prepared.gram_gain, plain.gram_gain)
  x = np.float32(np.random.default_rng(3).standard_normal((1, 20, 20, 1)))
  solves = [
    each.normal_solve(x, precision=jnp.full((20, 20), 2.0), noise_std=0.1)[0]
    for each in (plain, prepared)
  ]
  np.testing.assert_array_equal(*solves)
  assert prepared.interior(x).shape == plain.interior(x).shape


def test_no_part_of_it_is_replaced_without_a_word():
  """A decomposition of another matrix would go on to be used."""
  with pytest.raises(TypeError, match="matrix"):
    dataclasses.replace(OPERATORS["dense"].prepared(), matrix=MATRIX)
  with oracles.refused(ValueError, "NaN or infinity has no decomposition"):
    dataclasses.replace(
      OPERATORS["dense"], matrix=np.full((9, 64), np.nan)
    ).prepared()


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
