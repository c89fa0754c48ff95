"""Linear solves of the operators against dense ones in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import priors
from tests import oracles
from tests.small_operators import (
  NAMES,
  NOISE,
  SOLVED,
  build,
  define,
  normal,
)


def precisions():
  """Scalar ties, and those of a natural spectrum at three noise levels."""
  yield "scalar", 1.0
  yield "scalar", 100.0
  s = np.asarray(priors.power_law_spectrum(*SOLVED[:2]), np.float64)
  for sigma in (100.0, 1.0, 0.1):
    yield "spectral", 1 / s + 1 / sigma**2


def cases(quick):
  """Operators and `precisions`: of each operator one is fast, others slow."""
  return pytest.mark.parametrize(
    "name, case",
    [
      pytest.param(*case, marks=[] if case in quick else pytest.mark.slow)
      for case in itertools.product(NAMES, range(5))
    ],
  )


# The first and the last, by turns: what one type has, the other has not.
TURNS = [*zip(NAMES, itertools.cycle((0, 4)))]
OTHERS = [(name, 4 - case) for name, case in TURNS]


def normal_matrix(name, precision):
  a = oracles.dense(define(name, SOLVED), SOLVED[:2])
  grid = np.broadcast_to(precision, SOLVED[:2])
  return a.T @ a / NOISE**2 + oracles.fourier_diagonal(grid)


@functools.partial(
  oracles.quick_jit, static_argnames=("tolerance", "max_iterations")
)
def solve(operator, rhs, **options):
  """One program: eagerly, all around the iterations compiles its own."""
  return operator.normal_solve(rhs, **options)


@cases(TURNS)
def test_normal_solve_float64(name, case):
  """To the accuracy of the float32 operator, by perturbation of the matrix."""
  _, precision = list(precisions())[case]
  matrix = normal_matrix(name, precision)
  rhs = normal((2, *SOLVED))
  with jax.enable_x64(True):
    x, info = solve(
      build(name, SOLVED),
      jnp.asarray(rhs),
      precision=jnp.asarray(precision),
      noise_std=jnp.asarray(NOISE),
      tolerance=1e-10,
      max_iterations=1000,
    )
  assert float(info.relative_residual) <= 1e-9
  expected = np.linalg.solve(matrix, rhs.reshape(2, -1).T).T
  error = np.linalg.norm(np.asarray(x).reshape(2, -1) - expected, axis=1)
  bound = np.linalg.cond(matrix) * 1e-7  # kernels and weights are float32
  assert (error <= bound * np.linalg.norm(expected, axis=1)).all()


@cases(OTHERS)
def test_normal_solve_float32_reports_the_truth(name, case):
  _, precision = list(precisions())[case]
  matrix = normal_matrix(name, precision)
  rhs = normal((2, *SOLVED)).astype(np.float32)
  x, info = solve(
    build(name, SOLVED),
    jnp.asarray(rhs),
    precision=jnp.asarray(np.float32(precision)),
    noise_std=jnp.float32(NOISE),
  )
  b = rhs.reshape(2, -1).astype(np.float64)
  x = np.asarray(x, np.float64).reshape(2, -1)
  residual = np.linalg.norm(b - x @ matrix, axis=1) / np.linalg.norm(b, axis=1)
  # Rounding x alone moves the residual by eps |K| |x| / |b|.
  rounding = 1e-7 * np.linalg.norm(matrix, 2) * np.linalg.norm(x, axis=1)
  rounding = float((rounding / np.linalg.norm(b, axis=1)).max())
  print(name, case, residual.max(), float(info.relative_residual), rounding)
  assert abs(residual.max() - float(info.relative_residual)) <= 4 * rounding
  assert residual.max() <= 2e-6 + 4 * rounding


@pytest.mark.parametrize("name", ["resize", "box", "random", "circular"])
def test_weak_scalar_tie_keeps_the_data(name):
  """sigma = 100: the observed part must not drown in the free one's scale."""
  operator = build(name, SOLVED)
  truth = normal(SOLVED).clip(-1, 1).astype(np.float32)
  y = operator.forward(jnp.asarray(truth))
  x, _ = operator.normal_solve(
    operator.adjoint(y) / NOISE**2,
    precision=jnp.float32(1e-4),
    noise_std=jnp.float32(NOISE),
  )
  misfit = np.abs(operator.forward(x) - y).max()
  assert misfit <= 1e-3 * NOISE + 1e-4, misfit


@pytest.mark.slow
def test_solve_does_not_depend_on_the_batch():
  precision = jnp.asarray(list(precisions())[3][1], jnp.float32)
  scale = np.array([1e-3, 1.0, 1e3])[:, None, None, None]
  rhs = jnp.asarray(scale * normal((3, *SOLVED)), jnp.float32)
  for name in ("resize", "box", "random", "blur", "scene blur"):
    operator = build(name, SOLVED)
    solve = jax.jit(
      lambda b, operator=operator: operator.normal_solve(
        b, precision=precision, noise_std=jnp.float32(NOISE)
      )[0]
    )
    together = np.asarray(solve(rhs))
    alone = np.concatenate([solve(rhs[i : i + 1]) for i in range(3)])
    size = np.abs(alone).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(together / size, alone / size, atol=1e-6)
