"""Solves (A^T A / s^2 + P) x = b, P diagonal in Fourier space.

Where A has a known singular value decomposition and P is a scalar, in closed
form; otherwise by conjugate gradients with a Fourier-diagonal preconditioner.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import SolveInfo
from posterior_jax.linalg import fourier, reduce

Linear = Callable[[jax.Array], jax.Array]
# (matrix, b, *, tolerance, max_iterations) -> x and iterations, from zero.
Solver = Callable[..., tuple[jax.Array, jax.Array]]


class Svd(NamedTuple):
  """A = U diag(values) V^*, each factor as a function on images.

  A pytree where the functions are `jax.tree_util.Partial`s of their arrays, as
  those of this package are: a loop can carry it instead of decomposing again.

  Attributes:
    values: singular values, of the shape of the coefficients, >= 0.
    to_right: x -> V^* x, [..., H, W, C] to coefficients.
    from_right: coefficients -> V c.
    to_left: y -> U^* y, [..., h, w, C] to coefficients.
    from_left: coefficients -> U c.
  """

  values: jax.Array
  to_right: Linear
  from_right: Linear
  to_left: Linear
  from_left: Linear


def closed_form(
  svd: Svd, rhs: jax.Array, precision: jax.Array, noise_std: jax.Array
) -> tuple[jax.Array, SolveInfo]:
  """The solution for a scalar precision, from the singular values.

  What A does not see is divided by the precision alone. It is projected twice:
  where the precision is small, one rounding of what A does see would drown it.
  """
  values = svd.values.astype(rhs.dtype)
  precision = jnp.asarray(precision, rhs.dtype)
  weight = jnp.asarray(noise_std, rhs.dtype) ** 2
  inside = svd.to_right(rhs)
  outside = rhs - svd.from_right(inside)
  outside = outside - svd.from_right(svd.to_right(outside))
  seen = inside * (weight / (values**2 + weight * precision))
  x = svd.from_right(seen) + outside / precision
  return x, SolveInfo(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


def normal_equations(
  gram: Linear,
  gram_gain: jax.Array,
  rhs: jax.Array,
  *,
  precision: jax.Array,
  noise_std: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo]:
  """Solves (A^T A / s^2 + P) x = b with a Fourier-diagonal preconditioner.

  Args:
    gram: x -> A^T A x, [..., H, W, C].
    gram_gain: Fourier diagonal of A^T A, [], [H, W] or [H, W, C], >= 0; the
      preconditioner is (gram_gain / noise_std^2 + precision)^-1.
    rhs: b, [..., H, W, C].
    precision: Fourier diagonal of P, [], [H, W] or [..., H, W, C], > 0.
    noise_std: scalar s.
    tolerance: relative residual at which an element of the batch stops.
    max_iterations: limit for all of them.

  Returns:
    x, and how it went.
  """
  weight = jnp.asarray(noise_std, rhs.dtype) ** 2
  b = rhs * weight  # solve (A^T A + s^2 P) x = s^2 b
  scaled = fourier.on_grid(weight * jnp.asarray(precision, rhs.dtype))
  inverse = 1.0 / (fourier.on_grid(gram_gain.astype(rhs.dtype)) + scaled)

  def matrix(x: jax.Array) -> jax.Array:
    return gram(x) + fourier.apply_transfer(x, scaled)

  x, iterations = conjugate_gradients(
    matrix,
    b,
    tolerance=tolerance,
    max_iterations=max_iterations,
    precondition=lambda r: fourier.apply_transfer(r, inverse),
  )
  return x, report(b, matrix(x), iterations)


def conjugate_gradients(
  matrix: Linear,
  b: jax.Array,
  *,
  tolerance: float,
  max_iterations: int,
  precondition: Linear = lambda r: r,
) -> tuple[jax.Array, jax.Array]:
  """Preconditioned conjugate gradients on a batch of images from zero.

  Every element of the batch [..., H, W, C] stops on its own, so that a result
  does not depend on the batch it is in. One that meets a direction of negative
  curvature, where the matrix is not positive after all, stays where it is.

  Returns:
    x [..., H, W, C] and the iterations of the slowest, int32 scalar.
  """
  limit = tolerance**2 * _dot(b, b)

  def running(carry: tuple) -> jax.Array:
    _, residual, _, _, k = carry
    return jnp.any(_dot(residual, residual) > limit) & (k < max_iterations)

  def step(carry: tuple) -> tuple:
    x, residual, direction, rho, k = carry
    active = _dot(residual, residual) > limit  # [..., 1, 1, 1]
    image = matrix(direction)
    curvature = _dot(direction, image)
    active = active & (curvature > 0)
    alpha = jnp.where(active, rho / jnp.where(active, curvature, 1), 0)
    x = x + alpha * direction
    residual = residual - alpha * image
    z = precondition(residual)
    new = _dot(residual, z)
    beta = jnp.where(active, new / jnp.where(active, rho, 1), 0)
    direction = jnp.where(active, z + beta * direction, direction)
    return x, residual, direction, jnp.where(active, new, rho), k + 1

  z = precondition(b)
  start = (jnp.zeros_like(b), b, z, _dot(b, z), jnp.zeros((), jnp.int32))
  x, *_, iterations = lax.while_loop(running, step, start)
  return x, iterations


def minimal_residual(
  matrix: Linear,
  b: jax.Array,
  *,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, jax.Array]:
  """Conjugate residuals on a batch of images from zero: Orthomin(1).

  For matrices that are symmetric and positive only nearly, as a network's
  Jacobian is (Vinsome 1976; Eisenstat, Elman & Schultz 1983). Every step takes
  the length that makes the residual smallest, so that it never grows, whatever
  the matrix; for a symmetric positive one these are conjugate residuals. Every
  element of the batch stops on its own.

  Returns:
    x [..., H, W, C] and the iterations of the slowest, int32 scalar.
  """
  limit = tolerance**2 * _dot(b, b)

  def running(carry: tuple) -> jax.Array:
    residual, k = carry[1], carry[-1]
    return jnp.any(_dot(residual, residual) > limit) & (k < max_iterations)

  def step(carry: tuple) -> tuple:
    x, residual, direction, image, k = carry
    product = matrix(residual)
    size = _dot(image, image)
    beta = _dot(product, image) / jnp.where(size > 0, size, 1)
    direction = residual - beta * direction
    image = product - beta * image
    size = _dot(image, image)
    active = (_dot(residual, residual) > limit) & (size > 0)
    alpha = _dot(residual, image) / jnp.where(size > 0, size, 1)
    alpha = jnp.where(active, alpha, 0)
    return (
      x + alpha * direction,
      residual - alpha * image,
      direction,
      image,
      k + 1,
    )

  zero = jnp.zeros_like(b)
  start = (zero, b, zero, zero, jnp.zeros((), jnp.int32))
  x, *_, iterations = lax.while_loop(running, step, start)
  return x, iterations


def report(b: jax.Array, image: jax.Array, iterations: jax.Array) -> SolveInfo:
  """SolveInfo of K x = `image` against b, by the true residual."""
  size = jnp.maximum(reduce.norm(b), jnp.finfo(b.dtype).tiny)
  worst = jnp.max(reduce.norm(b - image) / size)
  return SolveInfo(iterations, worst.astype(jnp.float32))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return reduce.total(a * b)
