"""The parts that the settings name, chosen once per sampler."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from posterior_jax.base import Denoiser, Observation, SolveInfo
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import bands, covariance, gaussian
from posterior_jax.nfc_sampler import (
  checks,
  chosen_width,
  first_state,
  fusion,
  records,
  states,
)
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.parts import Parts, Prediction, Refined, Width
from posterior_jax.nfc_sampler.records import (
  Denoise,
  Exact,
  Gradient,
  Jacobian,
  Mean,
  Ode,
  Probed,
  Sigma,
)
from posterior_jax.nfc_sampler.weights import Band, Fusion, Snr
from posterior_jax.operators.tangent import Tangent

# Of a nonlinear measurement at every level, where the settings leave it open.
_LINEARISATIONS = 3
# Products for the square root of a width that is known by them (`krylov.root`):
# a Jacobian's spread is small at all levels but the first, which are forgotten.
_ROOT_STEPS = 6


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
  spectrum = checks.spectrum_of(config, spectrum)
  return Parts(
    start=first_state.starting(config.schedule, config.width, spectrum),
    assume=_assume(config),
    predict=_predict(config),
    width=chosen_width.part_of(config.width, spectrum),
    band=_band(config.band, spectrum),
    likelihood=_likelihood(config),
    # Weights of 1 return z: no transform, and odd sides are welcome.
    fuse=_fuse(config.fusion if config.fuses else None),
    hold=_hold(config.schedule.averaged),
    renoise=states.renoising(config.schedule.renewal),
    keep=_keep(config),
    fill=_fill(config),
    check=checks.checking(config, spectrum),
    probes=isinstance(config.width, Probed)
    + chosen_width.inflates(config.width),
    averages=config.held_levels > 0,
    heed=_heed(config.predictor),
    lead=states.leading if _acts(config.schedule.momentum) else None,
    linearisations=_linearisations(config),
  )


def _assume(config: NFCConfig) -> Callable[[Observation], Observation]:
  # exp(-|r|^2 / tau^2) is exp(-|r|^2 / (2 s^2)) at s = tau / sqrt(2).
  unit = 1.0 if config.halved_misfit else 2**0.5

  def assume(observation: Observation) -> Observation:
    own = config.inner_noise_std
    noise = observation.noise_std if own is None else own
    return Observation(observation.y, observation.operator, noise / unit)

  return assume


def _predict(config: NFCConfig) -> Callable[..., Prediction]:
  ode, calls = config.predictor, config.predictor.calls
  turned = isinstance(ode, Denoise) and ode.turned

  def shown(denoise: Denoiser, level: Level) -> Denoiser:
    return predictor.turned(denoise, level.way) if turned else denoise

  def differentiated(
    denoise: Denoiser, x: jax.Array, level: Level
  ) -> Prediction:
    own = shown(denoise, level)
    x0, product = predictor.linearise(own, x, level.sigma)
    return Prediction(x0, 1, product)

  def once(denoise: Denoiser, x: jax.Array, level: Level) -> Prediction:
    own = shown(denoise, level)
    return Prediction(predictor.clean(own, x, level.sigma), 1)

  def flow(denoise: Denoiser, x: jax.Array, level: Level) -> Prediction:
    assert isinstance(ode, Ode)  # the other of two
    x0 = predictor.predict(
      denoise,
      x,
      level.sigma,
      kind=ode.solver,
      steps=ode.steps,
      sigma_end=ode.sigma_end,
      rho=config.schedule.rho,
    )
    return Prediction(x0, calls)

  if isinstance(config.width, Probed | Jacobian):
    return differentiated
  return once if isinstance(ode, Denoise) else flow


def _likelihood(config: NFCConfig) -> Callable[..., Refined]:
  stop: dict[str, Any] = config.stop._asdict()
  inner = config.inner

  def by_products(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    del level
    assert width.product is not None  # of the same tie
    if width.guess is not None:
      return Refined(
        *covariance.guessed_mean(
          observation,
          x0,
          width.product,
          width.guess,
          restrained=isinstance(observation.operator, Tangent),
          **stop,
        )
      )
    if isinstance(inner, Mean):
      return Refined(*covariance.mean(observation, x0, width.product, **stop))
    assert isinstance(inner, Exact)  # `NFCConfig` refuses another method
    return Refined(
      *covariance.draw(
        key,
        observation,
        x0,
        width.product,
        root_steps=inner.root_steps or _ROOT_STEPS,
        **stop,
      )
    )

  def by_diagonal(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    assert width.diagonal is not None  # of the same tie
    target = gaussian.Target(observation, x0, width.diagonal)
    if isinstance(inner, Exact):
      return Refined(*gaussian.draw(key, target, **stop))
    if isinstance(inner, Mean):
      return Refined(*gaussian.mean(target, **stop))
    if isinstance(inner, Gradient):
      z = gaussian.descend(target, steps=inner.steps)
    else:
      z = gaussian.langevin(
        key, target, steps=inner.steps, step_size=level.step_size
      )
    return Refined(z, SolveInfo.closed_form())

  part = by_products if isinstance(config.width, Jacobian) else by_diagonal
  return _relaxed(part) if _acts(config.schedule.relaxation - 1) else part


def _relaxed(part: Callable[..., Refined]) -> Callable[..., Refined]:
  """Another part that goes further, by the level's reach."""

  def relaxed(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    refined = part(key, observation, x0, width, level)
    return refined._replace(z=x0 + level.reach * (refined.z - x0))

  return relaxed


def _keep(config: NFCConfig) -> Callable[..., jax.Array] | None:
  if config.schedule.noise != "kept":
    return None
  return states.keeping(config.schedule.renewal)


def _fill(config: NFCConfig) -> Callable[..., Any] | None:
  if config.schedule.noise != "filled":
    return None
  assert isinstance(config.width, Sigma)  # `NFCConfig` refuses another width
  return states.filling(
    config.schedule.renewal, config.width, config.stop._asdict()
  )


def _heed(
  record: records.Predictor,
) -> Callable[[Level, jax.Array], Level] | None:
  if not isinstance(record, Denoise):
    return None
  if not _acts(record.discrepancy):
    return None
  return functools.partial(states.heeding, discrepancy=record.discrepancy)


def _linearisations(config: NFCConfig) -> int:
  if config.schedule.noise == "filled":
    return 1  # what it leads to has noise, about which nothing is linearised
  if isinstance(config.inner, Exact | Mean):
    return config.linearisations or _LINEARISATIONS
  return 0  # updates ask for the tangent wherever they are


def _acts(value: jax.Array | float) -> bool:
  # One that is traced may be 0 only when it runs.
  return isinstance(value, jax.core.Tracer) or bool(value != 0)


def _band(
  record: Band | None, spectrum: jax.Array | None
) -> Callable[[Observation, Level], Observation]:
  if record is None:
    # A filter of ones would cost the operator's closed form.
    return lambda observation, level: observation

  def band(observation: Observation, level: Level) -> Observation:
    shape = observation.operator.measurement_shape[:2]
    if isinstance(record.mask, Snr):
      assert spectrum is not None  # `checks.spectrum_of` refused that
      mask = bands.snr_band(spectrum, shape, level.sigma)
    else:
      mask = bands.radial_band(shape, level.cutoff, record.mask.shape)
    weight = bands.weight(
      mask, level.blend, record.blend, record.power
    )  # B, of the mask's shape
    return bands.apply_band(observation, weight)

  return band


def _fuse(record: Fusion | None) -> Callable[..., jax.Array]:
  def refined(x0: jax.Array, z: jax.Array, level: Level) -> jax.Array:
    del x0, level
    return z

  def fuse(x0: jax.Array, z: jax.Array, level: Level) -> jax.Array:
    assert record is not None  # nothing is fused then
    return fusion.fuse(
      x0,
      z,
      low=record.low,
      high=level.details,
      levels=record.levels,
      wavelet=record.wavelet,
    )

  return refined if record is None else fuse


def _hold(averaged: str) -> Callable[..., tuple]:
  def hold(
    average: jax.Array | None, x0: jax.Array, fused: jax.Array, level: Level
  ) -> tuple[jax.Array, jax.Array | None]:
    if average is None:
      return fused, None
    added = x0 if averaged == "predicted" else fused
    average = average + level.share * (added - average)
    # The result of a run is the average; on the way the chain goes on.
    return jnp.where(level.following > 0, fused, average), average

  return hold
