"""Noise-frequency continuation as a pure-functional sampler, and its run.

One level (arXiv 2602.00176; skeleton of DAPS, arXiv 2407.01521): predict the
clean image, move the prediction by a band-limited likelihood, fuse the two in
a wavelet domain, add fresh noise of the next level.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax import checks, diagnostics
from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  SamplerState,
  State,
  check_observation,
  normalised_residual,
)
from posterior_jax.denoising import predictor
from posterior_jax.nfc_sampler import fusion
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.levels import levels
from posterior_jax.nfc_sampler.refinement import refined


def nfc(config: NFCConfig, *, spectrum: jax.Array | None = None) -> Sampler:
  """Diffusion posterior sampling by noise-frequency continuation.

  Args:
    config: see `NFCConfig` and its `paper`, `restoration` and `calibrated`.
    spectrum: the prior's power spectrum on the image grid, [H, W] or
      [H, W, C], > 0, as in `priors.GaussianPrior`; needed by tie="spectrum",
      tie="probed" and cutoff="snr", ignored otherwise.

  Returns:
    Sampler(init, step, num_steps), for `run` or a loop of one's own.

  Raises:
    TypeError: if `config` is no `NFCConfig`.
    ValueError: if the spectrum is missing, has a wrong rank or is not
      positive and finite.
  """
  if not isinstance(config, NFCConfig):
    raise TypeError(f"config must be an NFCConfig, got {type(config).__name__}")
  spectrum = checks.checked_spectrum(config, spectrum)
  schedule = levels(config)

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SamplerState:
    checks.check_image(config, spectrum, observation.operator.image_shape)
    shape = (batch, observation.y.shape[0], *observation.operator.image_shape)
    x = schedule.sigma[0] * jax.random.normal(key, shape, jnp.float32)
    average = jnp.zeros_like(x) if config.held_levels else None
    return SamplerState(x, jnp.zeros((), jnp.int32), average)

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    key_inner, key_noise = jax.random.split(key)
    now = jax.tree.map(lambda a: a[state.level], schedule)
    x0, z, solve, products = refined(
      config, spectrum, key_inner, denoise, state.x, observation, now
    )
    fused = z
    if config.fuses:
      fused = fusion.fuse(
        x0,
        z,
        low=config.haar_low,
        high=now.details,
        levels=config.haar_levels,
        wavelet=config.wavelet,
      )
    image, average = fused, state.average
    if average is not None:
      added = x0 if config.averaged == "predicted" else fused
      average = average + now.share * (added - average)
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

  return Sampler(init, step, config.passes * config.levels)


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
    TypeError: if `sampler` is no `Sampler`, `denoise` not callable, the
      operator no `Operator`, y no array of floating point, or num_samples no
      integer.
    ValueError: for a measurement of the wrong shape or not finite, a noise
      level that is not positive, num_samples < 1, an image that spectrum or
      Haar levels do not fit, or a denoiser that returns another shape; before
      any compilation.
  """
  if not isinstance(sampler, Sampler):
    raise TypeError(
      f"sampler must be a Sampler, as nfc returns, got {type(sampler).__name__}"
    )
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
