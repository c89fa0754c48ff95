"""What a sampler refuses of a spectrum, an operator and an image's sides."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from posterior_jax.base import Operator
from posterior_jax.likelihood import bands
from posterior_jax.linalg import fourier
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.weights import Snr


def spectrum_of(
  config: NFCConfig, spectrum: jax.Array | None
) -> jax.Array | None:
  """In float32 where the settings read it, else None."""
  if not config.reads_spectrum:
    return None
  if spectrum is None:
    raise ValueError(
      "spectrum is needed by the widths Spectrum and Probed, by the mask Snr "
      "and by a start from the measurement; pass the prior's power spectrum "
      "[H, W] or [H, W, C]"
    )
  spectrum = jnp.asarray(spectrum, jnp.float32)
  fourier.check_spectrum(spectrum)
  return spectrum


def checking(
  config: NFCConfig, spectrum: jax.Array | None
) -> Callable[[Operator], None]:
  """The part that refuses what does not fit, before anything is compiled."""
  fusion = config.fusion if config.fuses else None

  def check(operator: Operator) -> None:
    shape = operator.image_shape
    if config.band is not None:
      bands.check(operator)
      if isinstance(config.band.mask, Snr):
        bands.check_snr(operator)
    if spectrum is not None:
      fourier.check_grid(spectrum, shape)
    if fusion is None:
      return
    unit = 2**fusion.levels
    if shape[0] % unit or shape[1] % unit:
      raise ValueError(
        f"image_shape {shape} must be divisible by {unit} for a fusion of "
        f"{fusion.levels} levels"
      )

  return check
