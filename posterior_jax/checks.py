"""What a sampler refuses, in one sentence and before any compilation."""

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import spectral
from posterior_jax.config import NFCConfig
from posterior_jax.types import Observation, Operator


def check_observation(observation: Observation) -> None:
  """Refuses an observation that no sampler can use, in one sentence.

  Values are checked on concrete arrays only.

  Args:
    observation: y [N, h, w, C], its operator and noise.

  Raises:
    TypeError: if the operator is not an `Operator`.
    ValueError: as `run`.
  """
  y, operator, noise_std = (
    observation.y,
    observation.operator,
    observation.noise_std,
  )
  if not isinstance(operator, Operator):
    raise TypeError(
      f"operator must be a posterior_jax Operator, got "
      f"{type(operator).__name__}"
    )
  expected = operator.measurement_shape
  if y.ndim != 4 or y.shape[1:] != expected:
    raise ValueError(
      f"y must have shape [N, {', '.join(map(str, expected))}] for this "
      f"operator, got {y.shape}"
    )
  concrete = not isinstance(noise_std, jax.core.Tracer)
  if concrete and not (np.ndim(noise_std) == 0 and 0 < noise_std < np.inf):
    raise ValueError(
      f"noise_std must be a positive, finite scalar, got {noise_std}"
    )
  if not isinstance(y, jax.core.Tracer):
    if not np.isfinite(np.asarray(y)).all():
      raise ValueError("y must be finite everywhere, dropped pixels included")


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
  if config.tie != "spectrum" and not banded:
    return None
  if spectrum is None:
    raise ValueError(
      'spectrum is needed by tie="spectrum" and cutoff="snr"; pass the '
      "prior's power spectrum [H, W] or [H, W, C]"
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
  if spectrum is not None and not (
    spectrum.shape[:2] == shape[:2]
    and (spectrum.ndim == 2 or spectrum.shape[2] in (1, shape[2]))
  ):
    raise ValueError(
      f"spectrum of shape {spectrum.shape} must be that of the image {shape}"
    )
  unit = 2**config.haar_levels
  whole = config.haar_low == config.haar_high == config.unlock_start == 1
  if not (whole and config.unlock_end == 1):
    if shape[0] % unit or shape[1] % unit:
      raise ValueError(
        f"image_shape {shape} must be divisible by {unit} for haar_levels = "
        f"{config.haar_levels}"
      )
