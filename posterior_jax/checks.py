"""What `nfc`, besides its settings, and metrics refuse before compilation."""

import jax
import jax.numpy as jnp

from posterior_jax.linalg import fourier
from posterior_jax.nfc_sampler.config import NFCConfig


def checked_spectrum(
  config: NFCConfig, spectrum: jax.Array | None
) -> jax.Array | None:
  """The spectrum in float32 where the settings read it, else None.

  Args:
    config: settings of `nfc`.
    spectrum: [H, W] or [H, W, C] or None.

  Returns:
    The spectrum or None.

  Raises:
    ValueError: if it is needed and missing, or no power spectrum.
  """
  banded = config.blend_start > 0 and config.cutoff == "snr"
  if config.tie not in ("spectrum", "probed") and not banded:
    return None
  if spectrum is None:
    raise ValueError(
      'spectrum is needed by tie="spectrum" or "probed" and by cutoff="snr"; '
      "pass the prior's power spectrum [H, W] or [H, W, C]"
    )
  spectrum = jnp.asarray(spectrum, jnp.float32)
  fourier.check_spectrum(spectrum)
  return spectrum


def check_image(
  config: NFCConfig,
  spectrum: jax.Array | None,
  shape: tuple[int, int, int],
) -> None:
  """Refuses an image that the spectrum or the Haar levels do not fit.

  Args:
    config: settings of `nfc`.
    spectrum: from `checked_spectrum`.
    shape: (H, W, C) of the image.

  Raises:
    ValueError: if one of them does not fit.
  """
  if spectrum is not None:
    fourier.check_grid(spectrum, shape)
  unit = 2**config.haar_levels
  if config.fuses:
    if shape[0] % unit or shape[1] % unit:
      raise ValueError(
        f"image_shape {shape} must be divisible by {unit} for haar_levels = "
        f"{config.haar_levels}"
      )


def matching_images(
  x: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Both images as arrays of the wider of their types, float32 or float64.

  Args:
    x: [..., H, W, C].
    truth: the same shape or one that broadcasts to it.

  Returns:
    x and truth.

  Raises:
    ValueError: if sizes differ or leading axes do not broadcast.
    TypeError: if one is not floating point.
  """
  x, truth = jnp.asarray(x), jnp.asarray(truth)
  lead = zip(x.shape[-4::-1], truth.shape[-4::-1])
  fits = min(x.ndim, truth.ndim) >= 3 and all(
    a == b or 1 in (a, b) for a, b in lead
  )
  if not fits or x.shape[-3:] != truth.shape[-3:]:
    raise ValueError(
      "x and truth must be images [..., H, W, C] of one size, leading axes "
      "that broadcast, got "
      f"{x.shape} and {truth.shape}"
    )
  for name, image in (("x", x), ("truth", truth)):
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise TypeError(
        f"{name} must be floating point, pixels in [-1, 1], got dtype "
        f"{image.dtype}"
      )
  wide = jnp.float64 in (x.dtype, truth.dtype)
  dtype = jnp.float64 if wide else jnp.float32
  return x.astype(dtype), truth.astype(dtype)
