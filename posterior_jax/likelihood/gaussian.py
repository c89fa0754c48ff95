"""The inner target of one noise level, and four ways to move towards it.

  U(z) = (A z - y)^T B (A z - y) / (2 s^2) + (z - c)^T C^-1 (z - c) / 2

with c the prediction, C the width of the tie (diagonal in Fourier space) and B
the band's weight on the measurement's spectrum. exp(-U) is Gaussian, so its
exact draw is known: perturb the data and the prediction, then solve.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import Observation, Operator, SolveInfo
from posterior_jax.linalg import fourier, reduce


class Target(NamedTuple):
  """One level's U.

  Attributes:
    observation: y, A and s; with the band already in both (`bands.apply_band`).
    centre: c, [B, N, H, W, C].
    variance: Fourier diagonal of C, [], [H, W] or [..., H, W, C], whose
      leading axes broadcast against those of the centre.
  """

  observation: Observation
  centre: jax.Array
  variance: jax.Array


def draw(
  key: jax.Array, target: Target, *, tolerance: float, max_iterations: int
) -> tuple[jax.Array, SolveInfo]:
  """An exact draw from exp(-U): perturb, then solve.

  z = c + d with (A^T A / s^2 + C^-1) d = A^T (y - A c + s e) / s^2 +
  C^(-1/2) e', e and e' standard normal.
  """
  # Perturb and solve (Papandreou & Yuille 2010): noise whose covariance is the
  # precision matrix K itself, so that K^-1 of it has covariance K^-1.
  key_data, key_tie = jax.random.split(key)
  observation, centre, variance = target
  shape = centre.shape[:-3] + observation.operator.measurement_shape
  data = observation.noise_std * jax.random.normal(
    key_data, shape, centre.dtype
  )
  tie = jax.random.normal(key_tie, centre.shape, centre.dtype)
  return _solve(
    target,
    data,
    fourier.apply_transfer(tie, jax.lax.rsqrt(variance)),
    tolerance,
    max_iterations,
  )


def mean(
  target: Target, *, tolerance: float, max_iterations: int
) -> tuple[jax.Array, SolveInfo]:
  """The minimiser of U, which is the mean of exp(-U)."""
  zero = jnp.zeros((), target.centre.dtype)
  return _solve(target, zero, zero, tolerance, max_iterations)


def _solve(
  target: Target,
  data_noise: jax.Array,
  tie_noise: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo]:
  (y, operator, noise_std), centre, variance = (
    _parts(target.observation),
    target.centre,
    target.variance,
  )
  # About the centre: the shift is small where the image is not, so the solver's
  # relative residual and float32 are spent on what changes.
  misfit = y - operator.forward(centre) + data_noise  # [B, N, h, w, C]
  rhs = operator.adjoint(misfit) / noise_std**2 + tie_noise  # [B, N, H, W, C]
  shift, info = operator.normal_solve(
    rhs,
    precision=1.0 / variance,
    noise_std=noise_std,
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  return centre + shift, info


def gradient(target: Target, z: jax.Array) -> jax.Array:
  """dU/dz = A^T (A z - y) / s^2 + C^-1 (z - c); A^T of the tangent at z."""
  y, operator, noise_std = _parts(target.observation)
  misfit = operator.forward(z) - y
  data = operator.tangent(z).adjoint(misfit) / noise_std**2
  return data + fourier.apply_transfer(z - target.centre, 1.0 / target.variance)


def descend(target: Target, *, steps: int) -> jax.Array:
  """Steepest descent on U from c, each step the exact line minimum.

  Of a nonlinear A, that by its tangent at z.
  """
  _, operator, noise_std = _parts(target.observation)

  def body(_: jax.Array, z: jax.Array) -> jax.Array:
    g = gradient(target, z)
    along = operator.tangent(z).forward(g) / noise_std
    tie = g * fourier.apply_transfer(g, 1.0 / target.variance)
    curvature = reduce.total(along**2) + reduce.total(tie)
    # Length of the exact line minimum; tiny: no division by zero at the
    # minimum.
    width = reduce.total(g**2) / jnp.maximum(curvature, jnp.finfo(z.dtype).tiny)
    return z - width * g

  return lax.fori_loop(0, steps, body, target.centre)


def langevin(
  key: jax.Array, target: Target, *, steps: int, step_size: jax.Array
) -> jax.Array:
  """Unadjusted Langevin from c: z <- z - h dU/dz + sqrt(2 h) e.

  Args:
    key: one normal image is drawn per step.
    target: U.
    steps: number of updates.
    step_size: h, in pixel^2; stable below 2 / (largest curvature of U).

  Returns:
    [B, N, H, W, C].
  """
  spread = jnp.sqrt(2 * step_size)

  def body(i: jax.Array, z: jax.Array) -> jax.Array:
    # A key per update by its number: no array of keys in the loop's carry.
    noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
    return z - step_size * gradient(target, z) + spread * noise

  return lax.fori_loop(0, steps, body, target.centre)


def _parts(
  observation: Observation,
) -> tuple[jax.Array, Operator, jax.Array]:
  # float32, so that a scalar of NumPy promotes nothing where x64 is on.
  return (
    observation.y,
    observation.operator,
    jnp.asarray(observation.noise_std, jnp.float32),
  )
