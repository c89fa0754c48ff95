"""Solves (A^T A / s^2 + P) x = b, P diagonal in Fourier space.

Where A has a known singular value decomposition and P is a scalar, in closed
form; otherwise by conjugate gradients with a Fourier-diagonal preconditioner.
"""

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Linear, Operator, SolveInfo
from posterior_jax.linalg import fourier, krylov
from posterior_jax.linalg.svd import Svd


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
  inside = svd.to_right(rhs)  # coefficients of what A sees
  outside = rhs - svd.from_right(inside)
  outside = outside - svd.from_right(svd.to_right(outside))
  seen = inside * (weight / (values**2 + weight * precision))
  x = svd.from_right(seen) + outside / precision
  return x, SolveInfo.closed_form()


def masked_convolution(
  transfer: jax.Array | None,
  mask: jax.Array,
  rhs: jax.Array,
  *,
  precision: jax.Array,
  noise_std: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo]:
  """Solves (K^T M K / s^2 + P) x = b, K and P diagonal in Fourier space.

  Only what the mask hides is unknown. With B = K^T K + s^2 P, diagonal, and
  h = (1 - M) K x the hidden measurement,

    x = B^-1 (s^2 b + K^T h),
    H (1 - K B^-1 K^T) H h = H K B^-1 s^2 b,  H = 1 - M,

  where the inverse of the Fourier-diagonal matrix, cut to the hidden pixels,
  is a far better preconditioner than any diagonal of the full system, as long
  as these lie together.

  Args:
    transfer: of K, [H, W], real or complex Hermitian; None: K = 1.
    mask: M, [H, W, 1] of zeros and ones.
    rhs: b, [..., H, W, C].
    precision: Fourier diagonal of P, [], [H, W] or [..., H, W, C], > 0.
    noise_std: scalar s.
    tolerance: relative residual of the hidden system.
    max_iterations: its limit.

  Returns:
    x, and how it went.
  """
  weight = jnp.asarray(noise_std, rhs.dtype) ** 2
  scaled = fourier.on_grid(weight * jnp.asarray(precision, rhs.dtype))
  own = jnp.ones((), rhs.dtype) if transfer is None else transfer
  wide = np.promote_types(own.dtype, rhs.dtype)
  gain = fourier.on_grid(own.astype(wide))
  inverse = 1.0 / (jnp.abs(gain) ** 2 + scaled)  # B^-1
  # 1 - K B^-1 K^T as a quotient: the difference would cancel to nothing where
  # the prior leaves everything to the data.
  left = scaled * inverse
  hidden = 1.0 - mask.astype(rhs.dtype)

  def within(transfer: jax.Array) -> Linear:
    return lambda h: hidden * fourier.apply_transfer(hidden * h, transfer)

  known = weight * rhs
  if transfer is None:
    # B^-1 = 1 - left, and what the mask shows has no part in H: under little
    # noise B^-1 itself would put its rounding there, and 1 / left is large.
    start = hidden * (known - fourier.apply_transfer(known, left))
  else:
    start = hidden * fourier.apply_transfer(known, gain * inverse.astype(wide))
  h, iterations = krylov.conjugate_gradients(
    within(left),
    start,
    precondition=within(1.0 / left),
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  back = jnp.conj(gain)
  x = fourier.apply_transfer(known + fourier.apply_transfer(h, back), inverse)
  seen = (1.0 - hidden) * fourier.apply_transfer(x, gain)
  image = fourier.apply_transfer(seen, back) + fourier.apply_transfer(x, scaled)
  return x, krylov.report(known, image, iterations)


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
    gram_gain: Fourier diagonal of A^T A, [], [H, W] or [..., H, W, C], >= 0;
      the preconditioner is (gram_gain / noise_std^2 + precision)^-1.
    rhs: b, [..., H, W, C].
    precision: Fourier diagonal of P, [], [H, W] or [..., H, W, C], > 0.
    noise_std: scalar s.
    tolerance: relative residual at which an element of the batch stops.
    max_iterations: limit for all of them.

  Returns:
    x, and how it went.
  """
  # Times s^2: (A^T A + s^2 P) x = s^2 b has entries of order 1 at any noise.
  weight = jnp.asarray(noise_std, rhs.dtype) ** 2
  b = rhs * weight
  scaled = fourier.on_grid(weight * jnp.asarray(precision, rhs.dtype))
  inverse = 1.0 / (fourier.on_grid(gram_gain.astype(rhs.dtype)) + scaled)

  def matrix(x: jax.Array) -> jax.Array:
    return gram(x) + fourier.apply_transfer(x, scaled)

  x, iterations = krylov.conjugate_gradients(
    matrix,
    b,
    tolerance=tolerance,
    max_iterations=max_iterations,
    precondition=lambda r: fourier.apply_transfer(r, inverse),
  )
  return x, krylov.report(b, matrix(x), iterations)


class Iterative(Operator):
  """An operator without a closed form: its systems by conjugate gradients."""

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Conjugate gradients, preconditioned by `gram_gain`."""
    return normal_equations(
      lambda x: self.adjoint(self.forward(x)),
      self.gram_gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
