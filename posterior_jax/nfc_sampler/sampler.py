"""Noise-frequency continuation as a pure-functional sampler.

One level (arXiv 2602.00176; skeleton of DAPS, arXiv 2407.01521) has six parts:
predict the clean image, find the width of the tie to that prediction, choose a
band of the measurement, move the prediction by the banded likelihood, fuse the
two in a wavelet domain, add fresh noise of the next level.
"""

import chex
import jax
import jax.numpy as jnp

from posterior_jax import diagnostics, equal_samplers
from posterior_jax.base import (
  Denoiser,
  Info,
  Observation,
  Sampler,
  SamplerState,
  normalised_residual,
)
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.from_config import parts_of
from posterior_jax.nfc_sampler.levels import Level, levels_of
from posterior_jax.nfc_sampler.parts import Parts, Probes


@equal_samplers.from_settings
def nfc(config: NFCConfig, *, spectrum: jax.Array | None = None) -> Sampler:
  """Diffusion posterior sampling by noise-frequency continuation.

  `compose` of the parts and levels that the settings name; to put a part of
  one's own in its place, see there.

  Args:
    config: see `NFCConfig`, its `paper`, `restoration`, `fast`, `perceptual`,
      `guided`, `calibrated`, `tuned`.
    spectrum: the prior's power spectrum on the image grid, [H, W] or
      [H, W, C], > 0, as in `priors.GaussianPrior`; needed by the widths
      `Spectrum` and `Probed`, by the mask `Snr` and by a start from the
      measurement, ignored otherwise.

  Returns:
    Sampler(init, step, num_steps), for `run` or a loop of one's own.

  Raises:
    TypeError: if `config` is no `NFCConfig`.
    ValueError: if the spectrum is missing, has a wrong rank or is not
      positive and finite.

  Example:
    >>> import posterior_jax as pj
    >>> spectrum = pj.priors.power_law_spectrum(32, 32)
    >>> config = pj.NFCConfig.calibrated(levels=10)
    >>> sampler = pj.nfc(config, spectrum=spectrum)
    >>> sampler.num_steps
    10
  """
  return compose(parts_of(config, spectrum), levels_of(config))


def compose(parts: Parts, levels: Level) -> Sampler:
  """The sampler that goes through the levels, calling the parts at each.

  Args:
    parts: `parts_of` the settings, or with parts of one's own.
    levels: `levels_of` the settings.

  Returns:
    Sampler(init, step, number of levels).

  Example:
    A band of one's own in the place of the settings': only frequencies that
    lie below 1 / (8 sigma) cycles per pixel speak.

    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> from posterior_jax.likelihood import bands
    >>> from posterior_jax.linalg import fourier
    >>> from posterior_jax.nfc_sampler import Sigma
    >>> from posterior_jax.nfc_sampler import compose, levels_of, parts_of
    >>> traced = []
    >>> def lowest(observation, level):
    ...   shape = observation.operator.measurement_shape[:2]
    ...   traced.append(shape)  # once: levels share one program
    ...   radius = fourier.radial_frequency(*shape)  # [h, w]
    ...   weight = jnp.where(radius < 1 / (8 * level.sigma), 1.0, 0.01)
    ...   return bands.apply_band(observation, weight)
    >>> config = pj.NFCConfig(levels=3, width=Sigma())
    >>> parts = parts_of(config)._replace(band=lowest)
    >>> sampler = compose(parts, levels_of(config))
    >>> prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(8, 8))
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> observation = pj.Observation(jnp.zeros((1, 8, 8, 1)), operator, 0.1)
    >>> x, _ = pj.run(sampler, prior.denoise, observation, jax.random.key(0))
    >>> x.shape, traced
    ((1, 1, 8, 8, 1), [(8, 8)])
  """

  def init(
    key: jax.Array, observation: Observation, batch: int
  ) -> SamplerState:
    if not isinstance(observation, Observation):
      raise TypeError(
        "init takes a key, an Observation and a batch, got "
        f"{type(observation).__name__} for the Observation"
      )
    parts.check(observation.operator)
    shape = (batch, observation.y.shape[0], *observation.operator.image_shape)
    first = jax.tree.map(lambda entry: entry[0], levels)
    x = parts.start(key, parts.assume(observation), shape, first)
    average = jnp.zeros_like(x) if parts.averages else None
    # Nothing was predicted yet that could have left too much.
    misfit = jnp.ones(shape[:2], jnp.float32) if parts.heed else None
    # The first level goes on from nothing: its pace is 0.
    before = jnp.zeros_like(x) if parts.lead else None
    return SamplerState(x, jnp.zeros((), jnp.int32), average, misfit, before)

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    _check_state(state, parts)
    key_inner, key_noise = jax.random.split(key)
    key_inner, probes = _split_off(key_inner, parts.probes)
    level = jax.tree.map(lambda entry: entry[state.level], levels)
    assumed = parts.assume(observation)

    heeded, misfit = level, None
    if parts.heed is not None:
      assert state.misfit is not None  # `_check_state` refused that
      heeded = parts.heed(level, state.misfit)
    predicted = parts.predict(denoise, state.x, heeded)  # x0
    if parts.heed is not None:
      # Of the noise as it is, whatever the likelihood assumes.
      misfit = normalised_residual(observation, predicted.x0)
    x0, before = predicted.x0, None
    if parts.lead is not None:
      assert state.predicted is not None  # likewise
      x0, before = parts.lead(x0, state.predicted, level), x0
    local = assumed.linearised(x0)
    width = parts.width(probes, local, predicted, level)  # C
    given = local if parts.linearisations else assumed
    banded = parts.band(given, level)  # B in y and A
    if parts.fill is not None:
      banded, x0 = parts.fill(
        key_noise, banded, state.x, predicted.x0, x0, level
      )
    refined = parts.likelihood(key_inner, banded, x0, width, level)
    if not assumed.operator.is_linear:
      # Gauss-Newton: the same draw again, about the image that it led to.
      for _ in range(parts.linearisations - 1):
        banded = parts.band(assumed.linearised(refined.z), level)
        again = parts.likelihood(key_inner, banded, x0, width, level)
        refined = again._replace(products=refined.products + again.products)
    fused = parts.fuse(x0, refined.z, level)
    image, average = parts.hold(state.average, predicted.x0, fused, level)
    x = image
    if parts.keep is not None:
      x = parts.keep(key_noise, state.x, image, level)
    elif parts.fill is None:
      x = parts.renoise(key_noise, image, level)
    else:
      # Of the clean image: the state's own residual is that of its noise.
      image = jnp.where(level.following > 0, predicted.x0, image)

    info = Info(
      level.sigma,
      normalised_residual(observation, image),
      refined.solve,
      diagnostics.band_energy(observation, image),
      calls=predicted.calls,
      products=width.products + refined.products,
    )
    return SamplerState(x, state.level + 1, average, misfit, before), info

  return Sampler(init, step, len(levels.sigma))


def _check_state(state: SamplerState, parts: Parts) -> None:
  """Refuses a state that another sampler made, which would go on unaveraged."""
  kept = {
    "average": parts.averages,
    "misfit": parts.heed is not None,
    "predicted": parts.lead is not None,
  }
  for name, needed in kept.items():
    if (getattr(state, name) is not None) != needed:
      raise ValueError(
        "state must be from init of the same sampler, got one "
        f"{'without' if needed else 'with'} its field {name}"
      )


def _split_off(key: chex.PRNGKey, count: int) -> tuple[chex.PRNGKey, Probes]:
  """What is left of a key and `count` keys taken from it, one after another.

  The key itself where none is asked for, so that a width without probes leaves
  the draws of the likelihood as they are.
  """
  taken = []
  for _ in range(count):
    key, one = jax.random.split(key)
    taken.append(one)
  return key, taken
