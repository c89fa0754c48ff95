"""NFC's settings for the one image, by noise and operator.

`NFCConfig.restoration` ties a level by the denoiser's own Jacobian. With little
noise a blur has detail that only a near-exact solve brings out, and the system
A C A^T + s^2 is then so badly conditioned that a level takes tens of VJPs.
Under a width that Fourier space diagonalises a blur's solve costs no network at
all: plug-and-play levels follow the noise, down to LEAST, in one call each, by
numbers of their own (PLUG_AND_PLAY). Fewer than FEWEST levels are plug-and-play
ones for any picture, by the numbers of `NFCConfig.fast` for all others.
"""

import math
from typing import Any

import numpy as np

from experiments.harness.subjects import samplers
from experiments.harness.subjects.samplers import TUNED
from experiments.restore.settings import FEWEST
from posterior_jax import NFCConfig, Observation
from posterior_jax.operators import Inpainting
from posterior_jax.operators.scene import Correlation

# Noise at which three iterations a level are enough: restoration()'s own.
TUNED_NOISE = 0.05
# Below it the levels of a blur are plug-and-play ones, and the last levels of a
# picture that is noisy and nothing else follow the noise.
LITTLE_NOISE = 0.015
MOST_LEVELS = 30  # of them
# A kernel that is drawn with the picture: levels, first noise, share of fresh
# noise. Without any the picture keeps what the first kernels drew into it, and
# they are chosen again by that.
SEARCH_LEVELS, SEARCH_START, SEARCH_RENEWAL = 40, 3.0, 0.5
WIDTH = 4.0  # their tie, on sigma^2
# First noise of the others, no momentum, and the last prediction for result.
# The numbers of `fast` are for TUNED_NOISE: turned and with the same last noise
# they are 0.3 to 0.9 dB below these at noise 0.01 and 2.5 to 5.7 at 0.0025, at
# 5 and 10 levels of three photographs under the short kernel. Its discrepancy
# is all of that at 0.01, and 1.1 to 3.5 dB of it at 0.0025.
PLUG_AND_PLAY = {"sigma_max": 0.4, "momentum": 0.0, "held": 0.01}
LAST, LEAST = 2.0, 0.01  # last noise, of the measurement's
# What follows the noise is part of the compiled program. It goes in steps of an
# octave's share, so that pictures whose noise was estimated to be nearly the
# same share theirs.
STEPS = 4


def config(
  given: Observation,
  levels: int,
  *,
  kernel_known: bool = True,
  any_way_up: bool = True,
) -> NFCConfig:
  """Settings for an observation in so many denoiser calls, or in fewer.

  Args:
    given: y, A and s.
    levels: denoiser calls at most.
    kernel_known: False where the kernel of a blur is drawn with the picture.
    any_way_up: whether the prior has learned pictures mirrored and transposed
      too, as the shipped ones have; a network of faces has not.
  """
  schedule: dict[str, Any] = {}
  if follows_noise(given):
    schedule = {"sigma_min": last_level(float(given.noise_std))}
  elif isinstance(given.operator, Inpainting) and _little(given):
    # The prediction of a held level takes from what is seen as well what a
    # denoiser takes out at its noise.
    schedule = {"averaged": "refined"}
  if not plug_and_play(given, levels):
    changes = solves(given)
    changes |= {f"schedule.{name}": value for name, value in schedule.items()}
    found = samplers.config("NFC", TUNED, evaluations=levels, **changes)
    assert isinstance(found, NFCConfig)  # as NFC's is
    return found
  if not blurred_little(given):
    turned = {"turned": any_way_up}
    return NFCConfig.fast(levels=levels, schedule=schedule, predictor=turned)
  schedule = PLUG_AND_PLAY | schedule
  most = MOST_LEVELS
  if not kernel_known:
    most = SEARCH_LEVELS
    schedule |= {"sigma_max": SEARCH_START, "renewal": SEARCH_RENEWAL}
  return NFCConfig.fast(
    levels=min(levels, most),
    schedule=schedule,
    predictor={"discrepancy": 0.0, "turned": False},
    width={"factor": WIDTH},
  )


def evaluations(given: Observation, levels: int = FEWEST) -> float:
  """Of the network in one of so many levels, as far as is known before."""
  if plug_and_play(given, levels):
    return 1
  # A call, and a product for each of the most iterations.
  return 1 + solves(given)["inner.max_iterations"]


def plug_and_play(given: Observation, levels: int = FEWEST) -> bool:
  """Whether so many levels are those of plug-and-play restoration."""
  return levels < FEWEST or blurred_little(given)


def blurred_little(given: Observation) -> bool:
  """Whether a blur has little noise, whose levels are of PLUG_AND_PLAY."""
  return _blurred(given) and _little(given)


def follows_noise(given: Observation) -> bool:
  """Whether the last levels do: of a blur, or noise alone, if it is little."""
  return blurred_little(given) or (_little(given) and _noisy_alone(given))


def _little(given: Observation) -> bool:
  return float(given.noise_std) < LITTLE_NOISE


def _blurred(given: Observation) -> bool:
  return isinstance(given.operator, Correlation)


def last_level(noise_std: float) -> float:
  """Noise of the last levels where there is little.

  What a denoiser takes out at a noise above the measurement's, it takes out of
  what was measured: under last levels far above s the residual of a picture
  without any blur would stay far above 1.
  """
  return stepped(max(LAST * noise_std, LEAST), LEAST)


def stepped(value: float, unit: float) -> float:
  """The value to the nearest of STEPS an octave, of which unit is one."""
  return unit * 2 ** (round(STEPS * math.log2(value / unit)) / STEPS)


def _noisy_alone(given: Observation) -> bool:
  """Whether every pixel is observed, as it is."""
  # Holes are averaged over the last levels, which must have noise for that.
  operator = given.operator
  whole = isinstance(operator, Inpainting)
  return whole and bool((np.asarray(operator.observed) == 1).all())


def effort(noise_std: float) -> float:
  """How many times more iterations a level takes than at TUNED_NOISE.

  The system A C A^T + s^2 is the worse conditioned the smaller s is: iterations
  that are enough at TUNED_NOISE leave out detail where there is less.
  """
  return stepped(max(1.0, TUNED_NOISE / noise_std) ** 0.75, 1.0)


def solves(given: Observation) -> dict[str, Any]:
  """Iterations and tolerance of `restoration`, by the noise."""
  tuned = samplers.config("NFC", TUNED).stop
  more = effort(float(given.noise_std))
  return {
    "inner.max_iterations": round(tuned.max_iterations * more),
    "inner.tolerance": tuned.tolerance / more,
  }
