"""Phase retrieval: does continuation lead runs to the right phases?

The amplitudes of an image's Fourier transform leave its phases open, and a run
that settles on wrong ones does not come back. Prediction: large noise first,
which is continuation too, decides coarse structure before fine, so that runs
which start at small noise end further from the picture; a band that lets every
amplitude speak where the prior's power exceeds the level's noise helps where
levels are few. Control: the levels as they are, without a band. Of four runs
on a picture the one of the least misfit counts, and the better of the image
and its turn by 180 degrees, which has the same amplitudes.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.continuation.photographs import Pictures
from experiments.phase_retrieval import up_to_a_turn
from posterior_jax import NFCConfig, Observation, noise, operators, run
from posterior_jax.base import Denoiser, Operator, normalised_residual
from posterior_jax.nfc_sampler import (
  Exact,
  Level,
  Spectrum,
  compose,
  levels_of,
  parts_of,
)

RESTARTS = 4
CONTROL = "no band"
# Where levels start that leave the coarse to chance.
LATE = 0.3


class Variant(NamedTuple):
  """A setting, and whether amplitudes wait for the prior's power."""

  config: NFCConfig
  banded: bool = False


def variants(levels: int) -> dict[str, Variant]:
  """By name; the first is the control."""
  plain = NFCConfig(levels=levels, width=Spectrum(), inner=Exact())
  return {
    CONTROL: Variant(plain),
    "S / (S + sigma^2)": Variant(plain, banded=True),
    f"from noise {LATE:g}": Variant(
      plain.replace(schedule={"sigma_max": LATE})
    ),
  }


def power_of(spectrum: jax.Array, side: int) -> np.ndarray:
  """S at the frequencies of a padded square, [side, side].

  Args:
    spectrum: S on the image's grid, [n, n].
    side: of the padded square, >= n.
  """
  size = len(spectrum)
  # The nearest frequency of the coarser grid.
  nearest = np.round(np.fft.fftfreq(side) * size).astype(int)
  return np.asarray(spectrum)[nearest][:, nearest]


def amplitude_band(
  observation: Observation, level: Level, *, power: jax.Array
) -> Observation:
  """A linearised measurement of amplitudes whose rows speak by their power."""
  weight = power / (power + level.sigma**2)
  root = jnp.sqrt(weight)[..., None]
  operator = noise.Weighted(observation.operator, root)
  return Observation(root * observation.y, operator, observation.noise_std)


def rows(
  levels: int, given: Pictures, noise_std: float, seed: int
) -> Iterator[dict[str, Any]]:
  """A row for every variant and picture.

  Args:
    levels: of a run.
    given: pictures, square ones, and what restores them.
    noise_std: of the measured amplitudes, in pixels of [0, 1].
    seed: of noise and sampler; all variants see the same.
  """
  truth = jnp.asarray(given.truth)
  height, width, channels = truth.shape[1:]
  operator = operators.phase_retrieval((height, width, channels))
  clean = operator.forward(truth)
  key = jax.random.key(seed)
  y = clean + noise_std * jax.random.normal(key, clean.shape)
  power = power_of(given.spectrum, operator.measurement_shape[0])
  for name, variant in variants(levels).items():
    found, left = jax.jit(_best(variant, operator, noise_std))(
      given.denoise, y, truth, jnp.asarray(power), given.spectrum, key
    )
    for picture, psnr, misfit_of in zip(given.names, found, left):
      yield {
        "variant": name,
        "levels": levels,
        "picture": picture,
        "psnr": float(psnr),
        "misfit": float(misfit_of),
      }


def _best(variant: Variant, operator: Operator, noise_std: float) -> Any:
  def best(
    denoise: Denoiser,
    y: jax.Array,
    truth: jax.Array,
    power: jax.Array,
    spectrum: jax.Array,
    key: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    parts = parts_of(variant.config, spectrum)
    if variant.banded:
      band = functools.partial(amplitude_band, power=power)
      parts = parts._replace(band=band)
    sampler = compose(parts, levels_of(variant.config))
    observation = Observation(y, operator, noise_std)
    x, _ = run(sampler, denoise, observation, key, num_samples=RESTARTS)
    return nearest(observation, x, truth)

  return best


def nearest(
  observation: Observation, x: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """PSNR and misfit of the run that fits best, [N] each.

  Args:
    observation: of amplitudes.
    x: runs on every picture, [B, N, H, W, C].
    truth: [N, H, W, C].
  """
  left = normalised_residual(observation, x)  # [B, N]
  chosen = jnp.argmin(left, axis=0)[None]
  psnr = up_to_a_turn(x, truth)
  psnr, left = (jnp.take_along_axis(a, chosen, axis=0)[0] for a in (psnr, left))
  return psnr, left
