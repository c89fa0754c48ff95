"""Noise-frequency continuation as a pure-functional sampler, and its run.

One level (arXiv 2602.00176; skeleton of DAPS, arXiv 2407.01521): predict the
clean image, move the prediction by a band-limited likelihood, fuse the two in
a wavelet domain, add fresh noise of the next level.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax import (
  bands,
  checks,
  consistency,
  diagnostics,
  jacobian,
  likelihood,
  predictor,
  schedule,
)
from posterior_jax.config import NFCConfig
from posterior_jax.types import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  SamplerState,
  SolveInfo,
  State,
  check_observation,
  normalised_residual,
)


class _Levels(NamedTuple):
  """What changes from level to level, each [levels] or, of one level, [].

  `following` is the noise of the next level, 0 after the last; `share` the
  weight of the level's image in the average, 0 before the held levels.
  """

  sigma: jax.Array
  following: jax.Array
  cutoff: jax.Array
  blend: jax.Array
  details: jax.Array
  step_size: jax.Array
  share: jax.Array


def nfc(config: NFCConfig, *, spectrum: jax.Array | None = None) -> Sampler:
  """Diffusion posterior sampling by noise-frequency continuation.

  Args:
    config: see `NFCConfig` and its `paper`, `restoration` and `calibrated`.
    spectrum: the prior's power spectrum on the image grid, [H, W] or
      [H, W, C], > 0, as in `priors.GaussianPrior`; needed by tie="spectrum"
      and cutoff="snr", ignored otherwise.

  Returns:
    Sampler(init, step, num_steps), for `run` or a loop of one's own.

  Raises:
    ValueError: if the spectrum is missing, has a wrong rank or is not
      positive and finite.
  """
  spectrum = checks.checked_spectrum(config, spectrum)
  levels = _levels(config)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SamplerState:
    checks.check_image(config, spectrum, observation.operator.image_shape)
    shape = (batch, observation.y.shape[0], *observation.operator.image_shape)
    x = levels.sigma[0] * jax.random.normal(key, shape, jnp.float32)
    average = jnp.zeros_like(x) if config.held_levels else None
    return SamplerState(x, jnp.zeros((), jnp.int32), average)

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    key_inner, key_noise = jax.random.split(key)
    now = jax.tree.map(lambda a: a[state.level], levels)
    banded = _banded(config, spectrum, observation, now)
    level = _by_jacobian if config.tie == "jacobian" else _by_spectrum
    x0, z, solve, products = level(
      config, spectrum, key_inner, denoise, state.x, banded, now
    )
    fused = z
    if config.fuses:
      fused = consistency.fuse(
        x0,
        z,
        low=config.haar_low,
        high=now.details,
        levels=config.haar_levels,
        wavelet=config.wavelet,
      )
    image, average = fused, state.average
    if average is not None:
      average = average + now.share * (fused - average)
      image = jnp.where(now.following > 0, fused, average)
    info = Info(
      now.sigma,
      normalised_residual(observation, image),
      solve,
      diagnostics.band_energy(observation, image),
      calls=predictor.calls(config.predictor, config.predictor_steps),
      products=products,
    )
    noise = jax.random.normal(key_noise, image.shape, image.dtype)
    x = image + now.following * noise
    return SamplerState(x, state.level + 1, average), info

  return Sampler(init, step, config.levels)


def _levels(config: NFCConfig) -> _Levels:
  held = config.held_levels
  ramp_down = schedule.karras(
    config.levels - held,
    sigma_max=config.sigma_max,
    sigma_min=config.sigma_min,
    rho=config.rho,
  )
  sigma = np.concatenate(
    [ramp_down[:-1], np.full(held, config.sigma_min), ramp_down[-1:]]
  )
  share = np.concatenate(
    [np.zeros(config.levels - held), 1 / np.arange(1, held + 1)]
  )
  by_step = bands.linear_progress(sigma[:-1], "step")
  widening = by_step
  if config.cutoff == "log_sigma":
    widening = bands.linear_progress(sigma[:-1], "log_sigma")

  def ramp(start: float, end: float, progress: np.ndarray) -> np.ndarray:
    return start + (end - start) * progress

  parts = (
    sigma[:-1],
    sigma[1:],
    ramp(config.cutoff_start, config.cutoff_end, widening),
    bands.cosine_blend(config.blend_start, by_step),
    config.detail_weights(by_step),
    config.step_size * ramp(1.0, config.step_size_decay, by_step),
    share,
  )
  return _Levels(*(jnp.asarray(part, jnp.float32) for part in parts))


def _banded(
  config: NFCConfig,
  spectrum: jax.Array | None,
  observation: Observation,
  now: _Levels,
) -> Observation:
  """The observation that the level believes: assumed noise and band."""
  if config.inner_noise_std is not None or not config.halved_misfit:
    noise = config.inner_noise_std or observation.noise_std
    noise = noise if config.halved_misfit else noise / np.sqrt(2)
    observation = Observation(observation.y, observation.operator, noise)
  if config.blend_start == 0:
    return observation
  shape = observation.operator.measurement_shape[:2]
  if config.cutoff == "snr":
    assert spectrum is not None
    band = bands.snr_band(spectrum, shape, now.sigma)
  else:
    band = bands.radial_band(shape, now.cutoff, config.band_shape)
  weight = bands.weight(band, now.blend, config.blend)
  return likelihood.apply_band(observation, weight)


class _Moved(NamedTuple):
  """A level's prediction, its refinement, and what that took."""

  x0: jax.Array
  z: jax.Array
  solve: SolveInfo
  products: jax.Array | int


def _by_jacobian(
  config: NFCConfig,
  spectrum: jax.Array | None,
  key: jax.Array,
  denoise: Denoiser,
  x: jax.Array,
  observation: Observation,
  now: _Levels,
) -> _Moved:
  """Width from the denoiser's Jacobian at x."""
  del spectrum
  x0, covariance = jacobian.linearise(denoise, x, now.sigma)
  stop: dict[str, Any] = {
    "tolerance": config.tolerance,
    "max_iterations": config.max_iterations,
  }
  if config.inner == "mean":
    return _Moved(x0, *jacobian.mean(observation, x0, covariance, **stop))
  return _Moved(
    x0,
    *jacobian.draw(
      key,
      observation,
      x0,
      covariance,
      root_steps=config.root_steps,
      **stop,
    ),
  )


def _by_spectrum(
  config: NFCConfig,
  spectrum: jax.Array | None,
  key: jax.Array,
  denoise: Denoiser,
  x: jax.Array,
  observation: Observation,
  now: _Levels,
) -> _Moved:
  """Width diagonal in Fourier space: sigma^2, or that of a spectrum."""
  variance = now.sigma**2
  if config.tie != "sigma":
    assert spectrum is not None  # checked_spectrum refused that
    variance = spectrum * variance / (spectrum + variance)
  if config.tie == "probed":
    key, key_probe = jax.random.split(key)
    x0, covariance = jacobian.linearise(denoise, x, now.sigma)
    variance = jacobian.corrected(key_probe, covariance, variance, x)
  else:
    x0 = predictor.predict(
      denoise,
      x,
      now.sigma,
      kind=config.predictor,
      steps=config.predictor_steps,
      sigma_end=config.predictor_sigma_min,
      rho=config.rho,
    )
  target = likelihood.Target(observation, x0, variance)
  z, solve = _refine(config, key, target, now.step_size)
  return _Moved(x0, z, solve, int(config.tie == "probed"))


def _refine(
  config: NFCConfig,
  key: jax.Array,
  target: likelihood.Target,
  step_size: jax.Array,
) -> tuple[jax.Array, SolveInfo]:
  if config.inner == "exact":
    return likelihood.draw(
      key,
      target,
      tolerance=config.tolerance,
      max_iterations=config.max_iterations,
    )
  if config.inner == "mean":
    return likelihood.mean(
      target, tolerance=config.tolerance, max_iterations=config.max_iterations
    )
  none = SolveInfo(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))
  if config.inner == "gradient":
    return likelihood.descend(target, steps=config.inner_steps), none
  z = likelihood.langevin(
    key, target, steps=config.inner_steps, step_size=step_size
  )
  return z, none


def run(
  sampler: Sampler,
  denoise: Denoiser,
  observation: Observation,
  key: jax.Array,
  *,
  num_samples: int = 1,
) -> tuple[jax.Array, Any]:
  """Draws posterior samples: the package's only scan, compiled once.

  New observations, operators of the same kind and shape, noise levels, keys
  and denoisers that are pytrees (such as `GaussianPrior.denoise`) reuse the
  compiled program. A plain function is part of it: pass the same object again.

  Args:
    sampler: from `nfc`; pass the same object to reuse it.
    denoise: (x [M, H, W, C], sigma [M]) -> E[x0 | x] [M, H, W, C].
    observation: y [N, h, w, C], its operator and noise.
    key: the same key gives the same bits on one backend.
    num_samples: B, posterior samples of every observation.

  Returns:
    Samples [B, N, H, W, C] float32 and the Info of every step, stacked.

  Raises:
    TypeError: if `denoise` is not callable, the operator is no `Operator`, y
      no array, or num_samples no integer.
    ValueError: for a measurement of the wrong shape or not finite, a noise
      level that is not positive, num_samples < 1, an image that spectrum or
      Haar levels do not fit, or a denoiser that returns another shape; before
      any compilation.
  """
  if not callable(denoise):
    raise TypeError(f"denoise must be callable, got {type(denoise).__name__}")
  if not isinstance(num_samples, int):
    raise TypeError(f"num_samples must be an integer, got {num_samples!r}")
  if num_samples < 1:
    raise ValueError(f"num_samples must be at least 1, got {num_samples}")
  check_observation(observation)
  observation = Observation(
    jnp.asarray(observation.y, jnp.float32),
    observation.operator,
    jnp.asarray(observation.noise_std, jnp.float32),
  )
  if jax.tree_util.all_leaves([denoise]):
    denoise = jax.tree_util.Partial(denoise)
  return _run(sampler, denoise, observation, key, num_samples)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(
  sampler: Sampler,
  denoise: Denoiser,
  observation: Observation,
  key: jax.Array,
  num_samples: int,
) -> tuple[jax.Array, Any]:
  key_init, key_steps = jax.random.split(key)
  state = sampler.init(key_init, observation, num_samples)

  def body(state: State, key: jax.Array) -> tuple[State, Any]:
    return sampler.step(state, denoise, observation, key)

  keys = jax.random.split(key_steps, sampler.num_steps)
  state, info = lax.scan(body, state, keys)
  return state.x, info
