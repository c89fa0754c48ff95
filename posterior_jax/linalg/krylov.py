"""Krylov methods on a batch of images: three solvers and a square root.

A matrix is known by its products alone. Every element of a batch [..., H, W, C]
stops on its own, so that a result does not depend on the batch it is in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import Linear, SolveInfo
from posterior_jax.linalg import reduce

# v -> (K v, L v), where K is made of L.
Carried = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
# (matrix, b, like, *, tolerance, max_iterations) -> L x, x and the iterations
# for K x = b, from x = 0; see `carrying`.
Solver = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]

# Of a product: below it what is left of a vector is rounding in float32, and a
# basis vector made of that would point anywhere.
_EXHAUSTED = 1e-5


def conjugate_gradients(
  matrix: Linear,
  b: jax.Array,
  *,
  tolerance: float,
  max_iterations: int,
  precondition: Linear = lambda r: r,
  start: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Preconditioned conjugate gradients on a batch of images.

  From `start` where that leaves less than zero does, else from zero.

  Every element of the batch [..., H, W, C] stops on its own, so that a result
  does not depend on the batch it is in. One that meets a direction of negative
  curvature, where the matrix is not positive after all, stays where it is.

  Returns:
    x [..., H, W, C] and the iterations of the slowest, int32 scalar.
  """
  x, residual = jnp.zeros_like(b), b
  if start is not None:
    left = b - matrix(start)
    nearer = _dot(left, left) < _dot(b, b)
    x, residual = jnp.where(nearer, start, x), jnp.where(nearer, left, b)
  _, x, iterations = _conjugate(
    lambda v: (matrix(v), None),
    (None, x, residual),
    limit=tolerance**2 * _dot(b, b),
    max_iterations=max_iterations,
    precondition=precondition,
  )
  return x, iterations


def minimal_residual(
  matrix: Carried,
  b: jax.Array,
  like: jax.Array,
  *,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Conjugate residuals for L x, where K x = b, from zero: Orthomin(1).

  For matrices that are symmetric and positive only nearly, as a network's
  Jacobian is (Vinsome 1976; Eisenstat, Elman & Schultz 1983). Every step takes
  the length that makes the residual smallest, so that it never grows, whatever
  the matrix; for a symmetric positive one these are conjugate residuals. Every
  element of the batch stops on its own.

  Args:
    matrix: as of `carrying`, as is all else.
    b: likewise.
    like: likewise.
    tolerance: likewise.
    max_iterations: likewise.

  Returns:
    L x, x and the iterations of the slowest, int32 scalar.
  """
  limit = tolerance**2 * _dot(b, b)

  def running(carry: tuple) -> jax.Array:
    residual, k = carry[2], carry[-1]
    return jnp.any(_dot(residual, residual) > limit) & (k < max_iterations)

  def step(carry: tuple) -> tuple:
    found, x, residual, direction, lead, image, k = carry
    product, ahead = matrix(residual)
    size = _dot(image, image)
    beta = _dot(product, image) / jnp.where(size > 0, size, 1)
    direction = residual - beta * direction
    # By recurrence, not by a product: a product is a VJP through the network.
    lead = ahead - beta * lead
    image = product - beta * image
    size = _dot(image, image)
    active = (_dot(residual, residual) > limit) & (size > 0)
    alpha = _dot(residual, image) / jnp.where(size > 0, size, 1)
    alpha = jnp.where(active, alpha, 0)
    return (
      found + alpha * lead,
      x + alpha * direction,
      residual - alpha * image,
      direction,
      lead,
      image,
      k + 1,
    )

  zero, nothing = jnp.zeros_like(b), jnp.zeros_like(like)
  start = (nothing, zero, b, zero, nothing, zero, jnp.zeros((), jnp.int32))
  found, x, *_, iterations = lax.while_loop(running, step, start)
  return found, x, iterations


def carrying(
  matrix: Carried,
  b: jax.Array,
  like: jax.Array,
  *,
  least: jax.Array | float | None = None,
  tolerance: float,
  max_iterations: int,
  precondition: Linear = lambda r: r,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Preconditioned conjugate gradients for L x, where K x = b, not for x.

  A product with K = M L + s^2 finds L v on its way. Carried along, those make
  L x without a product more at the end, which is half of the work where one
  iteration is all.

  Args:
    matrix: v -> (K v, L v).
    b: [..., h, w, C].
    like: an array of the shape of L v, with the batch of b.
    least: no eigenvalue of K lies below it. A direction that seems to have
      less, as under a network's Jacobian, counts as having that; an element of
      the batch that meets one without any stays where it is. None: unknown.
    tolerance: relative residual at which an element of the batch stops.
    max_iterations: limit for all of them.
    precondition: v -> about K^-1 v.

  Returns:
    L x, x and the iterations of the slowest.
  """
  return _conjugate(
    matrix,
    (jnp.zeros_like(like), jnp.zeros_like(b), b),
    limit=tolerance**2 * _dot(b, b),
    max_iterations=max_iterations,
    precondition=precondition,
    least=least,
  )


def _conjugate(
  matrix: Callable[[jax.Array], tuple[jax.Array, Any]],
  start: tuple[Any, jax.Array, jax.Array],
  *,
  limit: jax.Array,
  max_iterations: int,
  precondition: Linear,
  least: jax.Array | float | None = None,
) -> tuple[Any, jax.Array, jax.Array]:
  """Conjugate gradients from L x, x and the residual of x.

  Args:
    matrix: v -> (K v, L v); None for L v where start has None for L x.
    start: L x, x [..., h, w, C] and b - K x.
    limit: square of the residual at which an element stops, [..., 1, 1, 1]:
      squares are compared, so that the loop's condition has no root.
    max_iterations: limit for all of them.
    precondition: v -> about K^-1 v.
    least: as of `carrying`; None: unknown.

  Returns:
    L x, x and the iterations of the slowest, int32 scalar.
  """

  def running(carry: tuple) -> jax.Array:
    residual, k = carry[2], carry[-1]
    return jnp.any(_dot(residual, residual) > limit) & (k < max_iterations)

  def step(carry: tuple) -> tuple:
    found, x, residual, before, rho, k = carry
    active = _dot(residual, residual) > limit
    z = precondition(residual)
    new = _dot(residual, z)
    # The inner `where` keeps 0 / 0 out of gradients and of debug_nans.
    beta = jnp.where(rho > 0, new / jnp.where(rho > 0, rho, 1), 0)
    direction = z + beta * before
    image, lead = matrix(direction)
    curvature = _dot(direction, image)
    if least is not None:
      curvature = jnp.maximum(curvature, least * _dot(direction, direction))
    # A direction of negative curvature has no minimum: the image stays there.
    active = active & (curvature > 0)
    alpha = jnp.where(active, new / jnp.where(active, curvature, 1), 0)
    return (
      None if found is None else found + alpha * lead,
      x + alpha * direction,
      residual - alpha * image,
      # Of one that stays where it is this would grow from step to step.
      jnp.where(active, direction, before),
      jnp.where(active, new, rho),
      k + 1,
    )

  nothing = jnp.zeros_like(start[1]), jnp.zeros_like(limit)
  found, x, *_, iterations = lax.while_loop(
    running, step, (*start, *nothing, jnp.zeros((), jnp.int32))
  )
  return found, x, iterations


def report(b: jax.Array, image: jax.Array, iterations: jax.Array) -> SolveInfo:
  """SolveInfo of K x = `image` against b, by the true residual."""
  size = jnp.maximum(reduce.norm(b), jnp.finfo(b.dtype).tiny)
  worst = jnp.max(reduce.norm(b - image) / size)
  return SolveInfo(iterations, worst.astype(jnp.float32))


def root(covariance: Linear, x: jax.Array, steps: int) -> jax.Array:
  """C^(1/2) x by the Lanczos method: of covariance C for white x.

  The best answer in the Krylov space of x, exact once `steps` reaches the
  number of different eigenvalues; else the error falls as 1 / steps for
  eigenvalues near 0, and geometrically where they are bounded away from it.
  The basis is orthogonalised in full, twice, and keeps `steps` images in
  memory for each of the batch.

  Args:
    covariance: v -> C v, symmetric, no eigenvalue below 0.
    x: [..., H, W, C].
    steps: products with C, >= 1.

  Returns:
    [..., H, W, C].
  """
  size = reduce.norm(x)  # [..., 1, 1, 1]
  basis = jnp.zeros((steps, *x.shape), x.dtype).at[0].set(x / size)
  cells = jnp.zeros((2, steps, *size.shape), x.dtype)  # diagonal, beside it

  def step(i: jax.Array, carry: tuple) -> tuple:
    basis, cells = carry
    product = covariance(basis[i])
    rest, along = _orthogonal(product, basis)
    # Twice is enough (Kahan): once leaves what cancellation did not resolve,
    # and a basis that is not orthogonal finds the largest eigenvalues again.
    rest, _ = _orthogonal(rest, basis)
    beside = reduce.norm(rest)
    goes_on = beside > _EXHAUSTED * reduce.norm(product)
    beside = jnp.where(goes_on, beside, 0)
    following = jnp.where(goes_on, rest / jnp.where(goes_on, beside, 1), 0)
    cells = cells.at[0, i].set(along[i]).at[1, i].set(beside)
    return basis.at[i + 1].set(following, mode="drop"), cells

  basis, cells = lax.fori_loop(0, steps, step, (basis, cells))
  weights = _root_of_tridiagonal(*cells[..., 0, 0, 0])  # [steps, ...]
  return size * jnp.sum(weights[..., None, None, None] * basis, axis=0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return reduce.total(a * b)


def _root_of_tridiagonal(diagonal: jax.Array, beside: jax.Array) -> jax.Array:
  """First column of T^(1/2), [K, ...]; negative eigenvalues count as 0."""
  count = len(diagonal)
  eye = jnp.eye(count, dtype=diagonal.dtype)
  above = jnp.eye(count, k=1, dtype=diagonal.dtype)
  over = jnp.moveaxis(beside, 0, -1)[..., None] * above
  matrix = jnp.moveaxis(diagonal, 0, -1)[..., None] * eye
  matrix = matrix + over + jnp.swapaxes(over, -1, -2)  # [..., K, K]
  values, vectors = jnp.linalg.eigh(matrix)  # [..., K], [..., K, K]
  values = jnp.sqrt(jnp.maximum(values, 0))
  column = jnp.sum(vectors * (values * vectors[..., 0, :])[..., None, :], -1)
  return jnp.moveaxis(column, -1, 0)


def _orthogonal(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
  """x less its parts along the basis [K, ...], and how long those are."""
  along = reduce.total(x * basis)
  return x - jnp.sum(along * basis, axis=0), along
