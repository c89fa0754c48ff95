"""The parts that the settings name, chosen once per sampler."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from posterior_jax.base import Denoiser, Observation, SolveInfo
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import bands, covariance, gaussian
from posterior_jax.linalg import fourier
from posterior_jax.nfc_sampler import fusion, width
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.parts import Parts, Prediction, Refined, Width


def parts_of(config: NFCConfig, spectrum: jax.Array | None = None) -> Parts:
  """The parts that the settings name.

  Args:
    config: settings of `nfc`.
    spectrum: the prior's, as for `nfc`.

  Returns:
    The parts; what they do is fixed here, what changes by level is in `Level`.

  Raises:
    ValueError: if the settings need a spectrum and there is none, or no power
      spectrum.
  """
  spectrum = _checked_spectrum(config, spectrum)
  return Parts(
    assume=_assume(config),
    predict=_predict(config),
    width=_width(config, spectrum),
    band=_band(config, spectrum),
    likelihood=_likelihood(config),
    fuse=_fuse(config),
    hold=_hold(config),
    renoise=renoise,
    check=_check(config, spectrum),
    probes=(config.tie == "probed") + (config.inflation > 1),
    averages=config.held_levels > 0,
  )


def renoise(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
  """image + sigma' n: the state forgets how the image came about, as in DAPS.

  Noise that a DDIM step would keep is correlated with the error of the last
  prediction; fresh noise gives early mistakes no way to survive.
  """
  noise = jax.random.normal(key, image.shape, image.dtype)
  return image + level.following * noise


def _assume(config: NFCConfig) -> Callable[[Observation], Observation]:
  # exp(-|r|^2 / tau^2) is exp(-|r|^2 / (2 s^2)) at s = tau / sqrt(2).
  unit = 1.0 if config.halved_misfit else 2**0.5

  def assume(observation: Observation) -> Observation:
    noise = config.inner_noise_std or observation.noise_std
    return Observation(observation.y, observation.operator, noise / unit)

  return assume


def _predict(config: NFCConfig) -> Callable[..., Prediction]:
  def differentiated(
    denoise: Denoiser, x: jax.Array, level: Level
  ) -> Prediction:
    x0, product = predictor.linearise(denoise, x, level.sigma)
    return Prediction(x0, 1, product)

  def predict(denoise: Denoiser, x: jax.Array, level: Level) -> Prediction:
    x0 = predictor.predict(
      denoise,
      x,
      level.sigma,
      kind=config.predictor,
      steps=config.predictor_steps,
      sigma_end=config.predictor_sigma_min,
      rho=config.rho,
    )
    return Prediction(
      x0, predictor.calls(config.predictor, config.predictor_steps)
    )

  return differentiated if config.tie in ("probed", "jacobian") else predict


def _width(config: NFCConfig, spectrum: jax.Array | None) -> width.WidthPart:
  if config.tie == "sigma":
    part: width.WidthPart = width.isotropic
  elif config.tie == "jacobian":
    part = width.jacobian
  else:
    assert spectrum is not None  # _checked_spectrum refused that
    of = {"spectrum": width.spectral, "probed": width.probed}[config.tie]
    part = of(spectrum)
  if config.inflation > 1:
    part = width.inflating(part, config.inflation)
  # Last: inflation compares the misfit with the prior's own width.
  return width.scaled(part, config.width_factor)


def _band(
  config: NFCConfig, spectrum: jax.Array | None
) -> Callable[[Observation, Level], Observation]:
  def everything(observation: Observation, level: Level) -> Observation:
    del level
    return observation

  def band(observation: Observation, level: Level) -> Observation:
    shape = observation.operator.measurement_shape[:2]
    if config.cutoff == "snr":
      assert spectrum is not None  # _checked_spectrum refused that
      mask = bands.snr_band(spectrum, shape, level.sigma)
    else:
      mask = bands.radial_band(shape, level.cutoff, config.band_shape)
    weight = bands.weight(mask, level.blend, config.blend)  # B, as the mask
    return bands.apply_band(observation, weight)

  # A filter of ones would cost the operator's closed form.
  return band if config.blend_start > 0 else everything


def _likelihood(config: NFCConfig) -> Callable[..., Refined]:
  """The inner method under the form of width that the tie gives."""
  stop: dict[str, Any] = {
    "tolerance": config.tolerance,
    "max_iterations": config.max_iterations,
  }

  def by_products(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    del level
    assert width.product is not None  # of the same tie
    if config.inner == "mean":
      found = covariance.mean(observation, x0, width.product, **stop)
    else:
      found = covariance.draw(
        key,
        observation,
        x0,
        width.product,
        root_steps=config.root_steps,
        **stop,
      )
    return Refined(*found)

  def by_diagonal(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    assert width.diagonal is not None  # of the same tie
    target = gaussian.Target(observation, x0, width.diagonal)
    if config.inner == "exact":
      return Refined(*gaussian.draw(key, target, **stop))
    if config.inner == "mean":
      return Refined(*gaussian.mean(target, **stop))
    if config.inner == "gradient":
      z = gaussian.descend(target, steps=config.inner_steps)
    else:
      z = gaussian.langevin(
        key, target, steps=config.inner_steps, step_size=level.step_size
      )
    return Refined(z, SolveInfo.closed_form())

  return by_products if config.tie == "jacobian" else by_diagonal


def _fuse(config: NFCConfig) -> Callable[..., jax.Array]:
  def refined(x0: jax.Array, z: jax.Array, level: Level) -> jax.Array:
    del x0, level
    return z

  def fuse(x0: jax.Array, z: jax.Array, level: Level) -> jax.Array:
    return fusion.fuse(
      x0,
      z,
      low=config.haar_low,
      high=level.details,
      levels=config.haar_levels,
      wavelet=config.wavelet,
    )

  # Weights of 1 return z: no transform, and images of odd sides are welcome.
  return fuse if config.fuses else refined


def _hold(config: NFCConfig) -> Callable[..., tuple]:
  def hold(
    average: jax.Array | None, x0: jax.Array, fused: jax.Array, level: Level
  ) -> tuple[jax.Array, jax.Array | None]:
    if average is None:
      return fused, None
    added = x0 if config.averaged == "predicted" else fused
    average = average + level.share * (added - average)
    # The result of a run is the average; on the way the chain goes on.
    return jnp.where(level.following > 0, fused, average), average

  return hold


def _checked_spectrum(
  config: NFCConfig, spectrum: jax.Array | None
) -> jax.Array | None:
  """In float32 where the settings read it, else None."""
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


def _check(
  config: NFCConfig, spectrum: jax.Array | None
) -> Callable[[tuple[int, int, int]], None]:
  def check(shape: tuple[int, int, int]) -> None:
    if spectrum is not None:
      fourier.check_grid(spectrum, shape)
    unit = 2**config.haar_levels
    if config.fuses and (shape[0] % unit or shape[1] % unit):
      raise ValueError(
        f"image_shape {shape} must be divisible by {unit} for haar_levels = "
        f"{config.haar_levels}"
      )

  return check
