"""Singular value decompositions that are fast on images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.base import Linear


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


def separable(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
  """rows x columns^T on the image axes: [h, H], [w, W], [..., H, W, C]."""
  return jnp.einsum(
    "hH,wW,...HWc->...hwc",
    rows.astype(x.dtype),
    columns.astype(x.dtype),
    x,
    # A measurement operator is not a layer: three digits would be its noise.
    precision=lax.Precision.HIGHEST,
  )


def factors(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """U, values and V^T of a matrix [m, n].

  On the host and by float64 where the matrix is known, within a program as
  wide as arrays may be: float32, mostly, which is some roundings off, on GPUs
  by far more than on CPUs (`docs/limits.md`).

  Raises:
    ValueError: for a known matrix that is not finite.
  """
  widest = jax.dtypes.canonicalize_dtype(jnp.float64)
  if isinstance(matrix, jax.core.Tracer):
    u, values, v = jnp.linalg.svd(matrix.astype(widest), full_matrices=False)
    return u, values, v
  wide = np.asarray(matrix, np.float64)
  if not np.isfinite(wide).all():
    raise ValueError("an operator with NaN or infinity has no decomposition")
  u, values, v = (
    jnp.asarray(x, widest) for x in np.linalg.svd(wide, full_matrices=False)
  )
  return u, values, v


def separable_svd(rows: jax.Array, columns: jax.Array) -> Svd:
  """Of x -> rows x columns^T: the Kronecker product of two decompositions.

  Args:
    rows: [h, H].
    columns: [w, W].

  Returns:
    Values [min(h, H), min(w, W), 1], in no order.
  """
  (u_h, s_h, v_h), (u_w, s_w, v_w) = factors(rows), factors(columns)

  def applied(rows: jax.Array, columns: jax.Array) -> Linear:
    return jax.tree_util.Partial(separable, rows, columns)

  return Svd(
    values=(s_h[:, None] * s_w)[..., None],
    to_right=applied(v_h, v_w),
    from_right=applied(v_h.T, v_w.T),
    to_left=applied(u_h.T, u_w.T),
    from_left=applied(u_h, u_w),
  )


def fourier_svd(transfer: jax.Array) -> Svd:
  """Of a circular blur: orthonormal Fourier vectors, turned by its phase.

  Args:
    transfer: gain of every Fourier vector, [H, W] complex.

  Returns:
    Values [H, W, 1] in FFT order; coefficients are complex.
  """
  transfer = transfer[..., None]  # [H, W, 1]
  # By its angle: transfer / |transfer| would be 0 / 0 where the blur has a
  # zero.
  angle = jnp.angle(transfer)
  phase = lax.complex(jnp.cos(angle), jnp.sin(angle))
  partial = jax.tree_util.Partial
  return Svd(
    values=jnp.abs(transfer),
    to_right=partial(_to_fourier),
    from_right=partial(_to_image),
    to_left=partial(_turned_to_fourier, jnp.conj(phase)),
    from_left=partial(_turned_to_image, phase),
  )


def _to_fourier(x: jax.Array) -> jax.Array:
  return jnp.fft.fft2(x, axes=(-3, -2), norm="ortho")


def _to_image(f: jax.Array) -> jax.Array:
  return jnp.fft.ifft2(f, axes=(-3, -2), norm="ortho").real


def _turned_to_fourier(phase: jax.Array, x: jax.Array) -> jax.Array:
  f = _to_fourier(x)
  return f * phase.astype(f.dtype)


def _turned_to_image(phase: jax.Array, f: jax.Array) -> jax.Array:
  return _to_image(f * phase.astype(f.dtype))
