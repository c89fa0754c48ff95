"""The methods, NFC's presets among them: their knobs, and how they run.

A call of the network and a product with its Jacobian (VJP) are one evaluation
each. Knobs are operands of a program, so that a search compiles it once. Linear
solves are no evaluations; here all but those of `calibrated()` have a closed
form (`decomposed`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.equal_tuning.nfc_levels import in_passes, nfc
from experiments.few_calls.contenders import (
  BASELINES,
  DPIR,
  Contender,
  built,
  plug_and_play,
  sampled,
)
from experiments.few_calls.search import Knob, Point
from experiments.peers.dpir import FIRST
from posterior_jax import NFCConfig, baselines, fields
from posterior_jax.base import Sampler
from posterior_jax.baselines import fastdips_sampler
from posterior_jax.nfc_sampler import (
  Jacobian,
  Mean,
  Ode,
  Schedule,
  Sigma,
  tuned,
)

# DiffPIR's quadratic spacing has no more timesteps.
_MOST = 500
_FEW = 100  # evaluations; below, levels with several of them would be too few


def daps(evaluations: int) -> baselines.DAPSConfig:
  """Two Euler steps for each level where five would leave few levels."""
  steps = 2 if evaluations < _FEW else 5
  return baselines.DAPSConfig.tuned(
    levels=evaluations // steps, predictor_steps=steps
  )


def sitcom(evaluations: int) -> baselines.SITCOMConfig:
  """As `daps`; a step is a call and a VJP."""
  steps = 2 if evaluations < _FEW else 5
  return baselines.SITCOMConfig.tuned(
    levels=evaluations // (2 * steps), steps=steps
  )


def diffpir(evaluations: int) -> baselines.DiffPIRConfig:
  """One call for each level, of which there are at most 500."""
  return baselines.DiffPIRConfig.tuned(levels=min(evaluations, _MOST))


def ddnm(evaluations: int) -> baselines.DDNMConfig:
  """One call for each level."""
  return baselines.DDNMConfig.tuned(levels=evaluations)


def adamdps(evaluations: int) -> baselines.AdamDPSConfig:
  """A call and a VJP for each level."""
  return baselines.AdamDPSConfig.tuned(levels=evaluations // 2)


def fastdips(evaluations: int) -> baselines.FASTDIPSConfig:
  """One call for each level."""
  return baselines.FASTDIPSConfig.tuned(levels=evaluations)


def ddrm(evaluations: int) -> baselines.DDRMConfig:
  """One call for each level."""
  return baselines.DDRMConfig.tuned(levels=evaluations)


def mmps(evaluations: int) -> baselines.MMPSConfig:
  """A call and a VJP for each level."""
  return baselines.MMPSConfig.tuned(levels=evaluations // 2)


def pigdm(evaluations: int) -> baselines.PiGDMConfig:
  """A call and a VJP for each level."""
  return baselines.PiGDMConfig.tuned(levels=evaluations // 2)


def ball(*knobs: Knob) -> Contender:
  """Settings of `fastdips`; those of its schedule make the levels.

  The ball has the radius of the default, for every task: about as small as its
  authors', who have one norm for all of them.
  """

  def operands(evaluations: int, point: Point) -> dict[str, Any]:
    made = fields.changed(fastdips(evaluations), point)
    sigmas = np.float32(fastdips_sampler.levels_of(made))
    return {"sigmas": sigmas, "penalty": made.penalty}

  def build(
    made: baselines.FASTDIPSConfig, operands: Any, _: jax.Array
  ) -> Sampler:
    config = dataclasses.replace(made, penalty=operands["penalty"])
    return fastdips_sampler.annealed(config, operands["sigmas"])

  return sampled(build, fastdips, operands, *knobs)


def preset(name: str) -> Callable[[int], NFCConfig]:
  """One of `tuned.FORMS` with as many levels as fill a budget."""
  return functools.partial(tuned.form, NFCConfig, name)


# The knobs' first values.
_SHORT = Schedule(sigma_max=1.0, sigma_min=0.05, start="measurement")


def by_jacobian(evaluations: int) -> NFCConfig:
  """Means under the Jacobian's width, noise drawn anew; a call and a VJP."""
  return NFCConfig(
    levels=evaluations // 2,
    schedule=_SHORT,
    width=Jacobian(),
    inner=Mean(max_iterations=1),
  )


def by_ode(evaluations: int) -> NFCConfig:
  """Two Euler steps for each level, or five, and all noise drawn anew."""
  steps = 2 if evaluations < _FEW else 5
  return NFCConfig(
    levels=evaluations // steps,
    schedule=_SHORT,
    predictor=Ode("euler", steps),
    width=Sigma(0.5),
    inner=Mean(),
  )


def guided(evaluations: int) -> NFCConfig:
  """`guided()` whose levels may go further than their solve."""
  # Any relaxation but 1 does: the levels of a point have its own.
  return preset("guided")(evaluations).replace(schedule={"relaxation": 1.5})


# Bounds of the knobs: those of the settings themselves, the first noise of
# DDPM's schedule, 157, and others that keep a search from going on for ever.
_FIRST = 157.0


def _factor(start: float, high: float = 100.0) -> Knob:
  return Knob("factor", start, low=0.01, high=high)


def _ends(sigma_max: float, sigma_min: float) -> tuple[Knob, Knob]:
  return (
    Knob("sigma_max", sigma_max, low=0.02, high=_FIRST),
    _last(sigma_min),
  )


def _last(sigma_min: float) -> Knob:
  return Knob("sigma_min", sigma_min, low=0.002)


def _share(name: str, start: float) -> Knob:
  """Of noise: between many levels little of it is drawn anew."""
  return Knob(name, start, low=0.0125, high=1.0)


_PERCEPTUAL = (
  _factor(1.0, 2.0),
  Knob("most", 0.3, low=0.02, high=16.0),
  _share("renewal", 0.8),
  Knob("sigma_max", 2.0, low=0.1, high=_FIRST),
)
_GUIDED = (
  Knob("relaxation", 1.5, factor=1.5, low=0.5, high=5.0),
  _factor(2.0),
  # Less noise anew is best at ten levels alone, and in a valley of its own.
  Knob("renewal", 1.0, factor=1.5, low=0.5, high=4.0),
  Knob("sigma_max", 4.0, low=0.1, high=_FIRST),
)
# Done last at every budget: what a cut run lacks is what matters least.
LATE = ("DDRM", "AdamDPS", "NFC, calibrated()", "DPS")
METHODS: dict[str, Contender] = {
  "NFC, fast()": nfc(preset("fast"), _factor(4.35), *_ends(0.845, 0.0493)),
  "NFC, perceptual()": nfc(preset("perceptual"), *_PERCEPTUAL),
  "NFC, guided()": nfc(guided, *_GUIDED),
  "NFC, perceptual() in passes": in_passes(preset("perceptual"), *_PERCEPTUAL),
  "NFC, guided() in passes": in_passes(guided, *_GUIDED),
  DPIR: Contender(
    lambda _: (
      Knob("weight", 0.2),
      Knob("first", FIRST, low=0.05, high=_FIRST),
    ),
    BASELINES[DPIR].operands,
    # As its authors run it.
    functools.partial(plug_and_play, turned=True),
  ),
  "DiffPIR": built(
    baselines.diffpir, diffpir, Knob("weight", 0.5), _share("renewal", 0.6)
  ),
  "DDNM+": built(
    baselines.ddnm, ddnm, _share("eta", 0.8), Knob("threshold", 0.03, high=1.0)
  ),
  "NFC, by ODE": nfc(by_ode, _factor(0.5), *_ends(1.0, 0.05)),
  "PiGDM": built(
    baselines.pigdm,
    pigdm,
    _share("eta", 0.8),
    Knob("data_std", 0.5, low=0.01, high=16.0),
  ),
  "NFC, restoration()": nfc(preset("restoration"), _factor(2.0), _last(0.1)),
  "DDRM": built(
    baselines.ddrm, ddrm, _share("eta", 0.8), _share("eta_data", 1.0)
  ),
  "NFC, by Jacobian": nfc(by_jacobian, _factor(2.0), *_ends(1.0, 0.05)),
  "MMPS": built(baselines.mmps, mmps, _share("eta", 0.8)),
  "DAPS": built(
    baselines.daps, daps, Knob("noise_std", 0.014), Knob("step_size", 1e-4)
  ),
  "FAST-DIPS": ball(Knob("penalty", 0.5), *_ends(3.0, 0.1)),
  "SITCOM": built(
    baselines.sitcom,
    sitcom,
    Knob("rate", 0.02),
    Knob("stop", 1.02, factor=1.1),
  ),
  "AdamDPS": built(
    baselines.adamdps,
    adamdps,
    Knob("scale", 0.05),
    # Evenly in [0, 1), as the authors' own search has them.
    Knob("first_decay", 0.6, factor=None, step=0.2, high=0.99),
    Knob("second_decay", 0.6, factor=None, step=0.2, high=0.99),
  ),
  "NFC, calibrated()": nfc(preset("calibrated"), _factor(1.0), _last(0.02)),
  "DPS": BASELINES["DPS"],
}
