"""Fourier helpers on images [..., H, W, C]: filters and radial frequencies.

A *transfer* or *spectrum* lives on the full FFT grid, [H, W] or [H, W, C], in
numpy's FFT order, and has the symmetry that keeps images real: even, or
Hermitian where complex. A power spectrum S holds the variance of each
coefficient of the orthonormal FFT, so its mean is the variance of a pixel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Called outside of any program, as in a notebook, a function is one small
# program instead of one for each of its operations; within one it is inlined.
as_one_program = functools.partial(jax.jit, inline=True)


def radial_frequency(height: int, width: int) -> np.ndarray:
  """Radius of every FFT bin in cycles per pixel, [H, W], 0 to sqrt(1/2)."""
  fy = np.fft.fftfreq(height)[:, None]
  fx = np.fft.fftfreq(width)[None, :]
  return np.hypot(fy, fx)


def on_grid(transfer: jax.Array) -> jax.Array:
  """[], [H, W] or [..., H, W, C] -> broadcastable [..., H, W, C]."""
  transfer = jnp.asarray(transfer)
  return transfer[..., None] if transfer.ndim == 2 else transfer


@as_one_program
def apply_transfer(x: jax.Array, transfer: jax.Array) -> jax.Array:
  """Multiplies the 2-D spectrum of x by a transfer function.

  Args:
    x: [..., H, W, C] real.
    transfer: [], [H, W] or [..., H, W, C] with axes that broadcast against
      x's, real and even or complex Hermitian.

  Returns:
    [..., H, W, C], real, of x's dtype.
  """
  height, width = x.shape[-3:-1]
  transfer = on_grid(transfer)
  if transfer.ndim == 0:
    return x * transfer.astype(x.dtype)
  # Real images: half of the spectrum says all, and costs half.
  half = transfer[..., : width // 2 + 1, :]  # [..., H, W//2+1, C or 1]
  f = jnp.fft.rfft2(x, axes=(-3, -2))
  f = f * half.astype(f.dtype)
  return jnp.fft.irfft2(f, s=(height, width), axes=(-3, -2))


def kernel_transfer(kernel: jax.Array, height: int, width: int) -> jax.Array:
  """Gain of every Fourier vector under correlation with a kernel on a torus.

  Args:
    kernel: [k, k], k odd.
    height: H.
    width: W.

  Returns:
    [H, W] complex64.
  """
  radius = kernel.shape[0] // 2
  offset = np.arange(-radius, radius + 1)
  wave_y = np.exp(2j * np.pi * np.outer(np.fft.fftfreq(height), offset))
  wave_x = np.exp(2j * np.pi * np.outer(np.fft.fftfreq(width), offset))
  return jnp.einsum(
    "hj,jk,wk->hw",
    wave_y.astype(np.complex64),
    kernel.astype(jnp.complex64),
    wave_x.astype(np.complex64),
    precision=lax.Precision.HIGHEST,
  )


def radial_bands(height: int, width: int, count: int) -> np.ndarray:
  """Index of the radial band of every FFT bin, [H, W] int, 0 to count - 1.

  Bands have equal width in radius; the corners beyond Nyquist (1/2 cycle per
  pixel) join the last one.
  """
  radius = radial_frequency(height, width)
  # A bin on an edge belongs to the outer band, whatever its rounding.
  index = np.floor(radius / 0.5 * count + 1e-9).astype(int)
  return np.minimum(index, count - 1)


def check_spectrum(spectrum: jax.Array | np.ndarray) -> None:
  """Refuses what is no power spectrum of real images.

  Raises:
    ValueError: unless [H, W] or [H, W, C]; and, where values are known (not
      traced), unless positive, finite and even.
  """
  if spectrum.ndim not in (2, 3):
    raise ValueError(
      f"spectrum must have shape [H, W] or [H, W, C], got {spectrum.shape}"
    )
  if isinstance(spectrum, jax.core.Tracer):
    return
  values = np.asarray(spectrum)
  if not (np.isfinite(values).all() and (values > 0).all()):
    raise ValueError("spectrum must be positive and finite everywhere")
  # Index k to -k on both axes: flip, then turn by one, as 0 stays in place.
  mirrored = np.roll(values[::-1, ::-1], (1, 1), (0, 1))
  if not np.allclose(values, mirrored, rtol=1e-3, atol=0):
    raise ValueError(
      "spectrum must be even, the same at every frequency and its negative, "
      "in FFT order (zero frequency first)"
    )


def check_grid(spectrum: jax.Array, shape: tuple[int, int, int]) -> None:
  """Refuses a spectrum that is not on the grid of an image (H, W, C).

  Raises:
    ValueError: unless [H, W], [H, W, 1] or [H, W, C].
  """
  channels = spectrum.shape[2:]
  if spectrum.shape[:2] != shape[:2] or channels not in ((), (1,), shape[2:]):
    raise ValueError(
      f"spectrum of shape {spectrum.shape} must be that of the image {shape}"
    )
