"""Operators of equal tuning that carry their decomposition, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.degradations import FROZEN, Degradation, frozen_operator
from experiments.equal_tuning.programs.decomposed import decomposed
from posterior_jax import operators
from posterior_jax.linalg import krylov

SHAPE = (12, 8, 3)


def motion():
  """A kernel that no flip leaves as it is, wide enough to meet both borders."""
  kernel = np.random.default_rng(0).uniform(size=(7, 7)) ** 4
  return operators.blur(SHAPE, np.float32(kernel / kernel.sum()))


OPERATORS = {
  "motion blur": motion,
  "Gaussian blur": lambda: operators.gaussian_blur(SHAPE, size=7, std=1.0),
  "super-resolution": lambda: operators.super_resolution(SHAPE),
  "box": lambda: operators.box_inpainting(SHAPE, size=4),
}


def matrix_of(operator):
  """A of one channel, [m, H * W], float64."""
  height, width, _ = operator.image_shape
  basis = np.zeros((height * width, height, width, 3), np.float32)
  basis.reshape(height * width, -1, 3)[
    np.arange(height * width), np.arange(height * width)
  ] = 1
  found = np.asarray(operator.forward(basis), np.float64)[..., 0]
  return found.reshape(height * width, -1).T


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("precision", [1e-3, 1.0, 400.0])
def test_it_solves_without_iterations(name, precision, monkeypatch):
  def iterated(*_, **__):
    raise AssertionError("no closed form")

  monkeypatch.setattr(krylov, "conjugate_gradients", iterated)
  plain = OPERATORS[name]()
  operator, noise = decomposed(plain), 0.05
  rhs = np.random.default_rng(1).normal(size=(2, 1, *SHAPE))
  found, _ = operator.normal_solve(
    jnp.float32(rhs), precision=jnp.float32(precision), noise_std=noise
  )
  a = matrix_of(plain)
  k = a.T @ a / noise**2 + precision * np.eye(a.shape[1])
  flat = np.moveaxis(rhs.reshape(2, -1, 3), 1, 0).reshape(a.shape[1], -1)
  expected = np.linalg.solve(k, flat).reshape(-1, 2, 3)
  expected = np.moveaxis(expected, 0, 1).reshape(rhs.shape)
  # Directions that A does not see hold 1 / precision.
  atol = 3e-5 * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, atol=atol)


def test_it_is_the_operator_that_it_was_made_of():
  """Measurements, and solves under a precision that is no scalar."""
  plain = motion()
  operator = decomposed(plain)
  x = np.random.default_rng(2).normal(size=(2, *SHAPE)).astype(np.float32)
  for name in ("forward", "adjoint"):
    np.testing.assert_array_equal(
      getattr(operator, name)(x), getattr(plain, name)(x)
    )
  spectrum = jnp.full(SHAPE[:2], 2.0)
  solves = [
    each.normal_solve(x, precision=spectrum, noise_std=0.1)[0]
    for each in (operator, plain)
  ]
  np.testing.assert_array_equal(*solves)


def test_masks_are_left_as_they_are_and_motion_blur_has_no_svd():
  """DDRM stays without a form for it."""
  box = frozen_operator(Degradation("box_inpainting"), (32, 32, 3))
  assert decomposed(box) is box
  with pytest.raises(ValueError, match="svd needs"):
    decomposed(motion()).svd()


def test_a_program_takes_any_kernel_of_the_benchmark():
  """Short and long kernels run the program of the medium one."""
  kinds = [kind for kind in FROZEN if kind.kernel]
  shapes = {
    str(jax.tree.map(jnp.shape, frozen_operator(kind, (64, 64, 3))))
    for kind in kinds
  }
  assert len(kinds) == 3 and len(shapes) == 1


def test_any_number_of_pixels_is_decomposed():
  """Also one that no whole number of groups makes up."""
  shape = (20, 14, 1)
  plain = operators.motion_blur(shape, np.eye(5, dtype="f") / 5)
  operator = decomposed(plain)
  rhs = jnp.float32(np.random.default_rng(0).normal(size=(1, 1, *shape)))
  given = dict(precision=jnp.float32(1.0), noise_std=0.1)
  found, _ = operator.normal_solve(rhs, **given)
  expected, _ = plain.normal_solve(rhs, **given, tolerance=1e-6)
  np.testing.assert_allclose(found, expected, atol=1e-4)
