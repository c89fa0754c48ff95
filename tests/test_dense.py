"""A measurement given by its matrix, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import operators, priors
from tests import oracles

SHAPE = (4, 6, 2)
SIZE = 48
NOISE = 0.1


def build(rows, seed=0):
  matrix = np.random.default_rng(seed).standard_normal((rows, SIZE))
  return operators.dense(SHAPE, matrix), np.asarray(matrix, np.float32)


def normal(shape, seed=1):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(np.float32(x))


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_forward_and_adjoint_are_the_matrix(rows):
  operator, matrix = build(rows)
  assert operator.measurement_shape == (rows, 1, 1)
  x, y = normal((2, 3, *SHAPE)), normal((2, 3, rows, 1, 1), 2)
  expected = np.asarray(x, np.float64).reshape(2, 3, -1) @ matrix.T
  np.testing.assert_allclose(
    operator.forward(x)[..., 0, 0], expected, atol=1e-4
  )
  back = np.asarray(y, np.float64).reshape(2, 3, -1) @ matrix
  np.testing.assert_allclose(
    operator.adjoint(y).reshape(2, 3, -1), back, atol=1e-4
  )


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_decomposition_puts_the_matrix_together(rows):
  operator, matrix = build(rows)
  svd = jax.jit(lambda operator: operator.svd())(operator)  # a pytree
  x, y = normal((2, *SHAPE)), normal((2, rows, 1, 1), 2)
  image = svd.from_left(svd.values * svd.to_right(x))
  np.testing.assert_allclose(image, operator.forward(x), atol=1e-4)
  back = svd.from_right(svd.values * svd.to_left(y))
  np.testing.assert_allclose(back, operator.adjoint(y), atol=1e-4)
  expected = np.linalg.svd(matrix, compute_uv=False)
  np.testing.assert_allclose(np.ravel(svd.values), expected, rtol=1e-4)


@pytest.mark.parametrize("spectral", [False, True])
def test_normal_solve_is_that_of_numpy(spectral):
  operator, matrix = build(5)
  rhs = normal((2, *SHAPE))
  precision, tie = jnp.float32(3.0), 3.0 * np.eye(SIZE)
  if spectral:
    precision = 1 / priors.power_law_spectrum(*SHAPE[:2])
    block = oracles.fourier_diagonal(np.asarray(precision, np.float64))
    tie = np.kron(block, np.eye(SHAPE[2]))  # channels run fastest
  x, info = operator.normal_solve(
    rhs, precision=precision, noise_std=jnp.float32(NOISE)
  )
  full = matrix.T.astype(np.float64) @ matrix / NOISE**2 + tie
  flat = np.asarray(rhs, np.float64).reshape(2, -1)
  expected = np.linalg.solve(full, flat.T).T
  np.testing.assert_allclose(x.reshape(2, -1), expected, atol=2e-5)
  # The recursion reaches 1e-6; in float32 the true residual does not.
  assert float(info.relative_residual) < 1e-3


def test_gram_gain_is_the_fourier_diagonal():
  operator, matrix = build(5)
  f = np.fft.fft2(matrix.reshape(5, *SHAPE), axes=(1, 2), norm="ortho")
  expected = (np.abs(f) ** 2).sum(0).mean(-1)
  np.testing.assert_allclose(operator.gram_gain, expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("matrix", "sentence"),
  [
    (np.ones((2, 47)), r"matrix must have shape \[m, 48\] for the image"),
    (np.ones((0, 48)), r"matrix must have shape \[m, 48\]"),
    (np.full((2, 48), np.nan), "matrix must be finite everywhere"),
  ],
)
def test_bad_matrices_are_one_sentence(matrix, sentence):
  with pytest.raises(ValueError, match=sentence):
    operators.dense(SHAPE, matrix)
