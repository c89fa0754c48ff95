"""Blur of a picture whose borders are made up: mirrored or circular."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import lax

from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import fourier, solve
from posterior_jax.linalg import svd as decompose
from posterior_jax.operators.decomposed import Decomposed
from posterior_jax.operators.scene import Correlation
from posterior_jax.operators.shapes import widened
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blur(Correlation):
  """`y[i] = sum_j kernel[j] x[i + j - k // 2]` in every channel.

  Attributes:
    kernel: [k, k], k odd; correlated as it is, not flipped.
    image_shape: (H, W, C).
    boundary: "reflect" mirrors without repeating the edge pixel (the field's
      choice); "circular" wraps around, which Fourier space diagonalises.
    separable: whether the kernel is a column times a row, so that a mirrored
      blur has a fast decomposition; chooses methods, not the result.
  """

  kernel: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  boundary: Literal["reflect", "circular"] = dataclasses.field(
    default="reflect", metadata={"static": True}
  )
  separable: bool = dataclasses.field(default=False, metadata={"static": True})

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return self.image_shape

  @property
  def pictorial(self) -> bool:
    """True."""
    return True

  @property
  def transfer(self) -> jax.Array:
    """Gain of every Fourier vector under circular borders, [H, W] complex."""
    height, width, _ = self.image_shape
    return fourier.kernel_transfer(self.kernel, height, width)

  @property
  def even(self) -> bool:
    """True."""
    return True

  @property
  def gram_gain(self) -> jax.Array:
    """|transfer|^2, [H, W]: exact for circular borders."""
    return jnp.abs(self.transfer) ** 2

  def forward(self, x: jax.Array) -> jax.Array:
    """Correlates the bordered image with the kernel."""
    x = widened("x", x, self.image_shape)
    if self.boundary == "circular":
      return fourier.apply_transfer(x, self.transfer)
    return self._correlate(x, self._padded_transfer(x.dtype))

  def adjoint(self, y: jax.Array) -> jax.Array:
    """Convolves, then folds the border back onto the image."""
    y = widened("y", y, self.image_shape)
    if self.boundary == "circular":
      return fourier.apply_transfer(y, jnp.conj(self.transfer))
    return self._transposed(y, self._padded_transfer(y.dtype))

  def svd(self) -> decompose.Svd:
    """Fourier vectors for circular borders, else those of the two axes.

    Raises:
      ValueError: for mirrored borders and a kernel that is not separable.
    """
    if self.boundary == "circular":
      return decompose.fourier_svd(self.transfer)
    if not self.separable:
      raise ValueError(
        "svd needs boundary='circular' or a separable kernel: a mirrored blur "
        "with any other has no fast one"
      )
    height, width, _ = self.image_shape
    total = jnp.sum(self.kernel)
    return decompose.separable_svd(
      _mirrored_matrix(jnp.sum(self.kernel, axis=1), height),
      _mirrored_matrix(jnp.sum(self.kernel, axis=0) / total, width),
    )

  def prepared(self) -> Operator:
    """With its decomposition, where a solve takes one."""
    if self.boundary == "circular" or not self.separable:
      return self
    return Decomposed(self, self.svd())

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Conjugate gradients, unless a closed form is known.

    One is for circular borders, and for a separable kernel under a scalar
    precision.
    """
    # Of the circular blur: for mirrored borders a preconditioner, exact inside.
    gain = self.gram_gain.astype(rhs.dtype)
    if self.boundary == "circular":
      precision = fourier.on_grid(jnp.asarray(precision, rhs.dtype))
      total = fourier.on_grid(gain) / jnp.asarray(noise_std, rhs.dtype) ** 2
      x = fourier.apply_transfer(rhs, 1.0 / (total + precision))
      done = SolveInfo.closed_form()
      return x, done
    if self.separable and jnp.ndim(precision) == 0:
      return solve.closed_form(self.svd(), rhs, precision, noise_std)
    transfer = self._padded_transfer(rhs.dtype)  # once, outside the iteration
    return solve.normal_equations(
      lambda x: self._transposed(self._correlate(x, transfer), transfer),
      gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )

  def _padded_size(self) -> tuple[int, int]:
    height, width, _ = self.image_shape
    border = self.kernel.shape[0] - 1
    # Products of small primes: an FFT of a prime size takes several times
    # longer.
    return (
      scipy.fft.next_fast_len(height + border, real=True),
      scipy.fft.next_fast_len(width + border, real=True),
    )

  def _padded_transfer(self, dtype: jnp.dtype) -> jax.Array:
    """Half spectrum of the kernel on the padded grid, [P, Q//2+1, 1]."""
    kernel = self.kernel.astype(dtype)
    return jnp.fft.rfft2(kernel, s=self._padded_size())[..., None]

  def _mirror(self, x: jax.Array) -> jax.Array:
    radius = self.kernel.shape[0] // 2
    border = ((radius, radius), (radius, radius), (0, 0))
    return jnp.pad(x, ((0, 0),) * (x.ndim - 3) + border, mode="reflect")

  @fourier.as_one_program
  def _correlate(self, x: jax.Array, transfer: jax.Array) -> jax.Array:
    height, width, _ = self.image_shape
    size = self._padded_size()
    f = jnp.fft.rfft2(self._mirror(x), s=size, axes=(-3, -2))
    y = jnp.fft.irfft2(f * jnp.conj(transfer), s=size, axes=(-3, -2))
    return y[..., :height, :width, :]

  @fourier.as_one_program
  def _transposed(self, y: jax.Array, transfer: jax.Array) -> jax.Array:
    height, width, _ = self.image_shape
    size, border = self._padded_size(), self.kernel.shape[0] - 1
    f = jnp.fft.rfft2(y, s=size, axes=(-3, -2)) * transfer
    padded = jnp.fft.irfft2(f, s=size, axes=(-3, -2))
    padded = padded[..., : height + border, : width + border, :]
    # The transpose of mirroring folds the border back; JAX knows it.
    image = jax.ShapeDtypeStruct((*y.shape[:-3], *self.image_shape), y.dtype)
    return jax.linear_transpose(self._mirror, image)(padded)[0]


def _mirrored_matrix(taps: jax.Array, size: int) -> jax.Array:
  """1-D correlation with k taps under mirrored borders, [size, size]."""
  radius = taps.shape[0] // 2
  position = np.pad(np.arange(size), radius, mode="reflect")
  source = position[np.arange(size)[:, None] + np.arange(taps.shape[0])]
  onto = source[..., None] == np.arange(size)  # [size, k, size]
  return jnp.einsum(
    "ikj,k->ij",
    onto.astype(np.float32),
    taps,
    precision=lax.Precision.HIGHEST,
  )
