"""What `nfc` refuses besides its settings, before any compilation."""

import jax
import jax.numpy as jnp

from posterior_jax import spectral
from posterior_jax.config import NFCConfig


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
  spectral.check_spectrum(spectrum)
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
    spectral.check_grid(spectrum, shape)
  unit = 2**config.haar_levels
  if config.fuses:
    if shape[0] % unit or shape[1] % unit:
      raise ValueError(
        f"image_shape {shape} must be divisible by {unit} for haar_levels = "
        f"{config.haar_levels}"
      )
