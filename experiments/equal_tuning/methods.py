"""The methods, NFC's presets among them: their knobs, and how they run.

A call of the network and a product with its Jacobian (VJP) are one evaluation
each. Knobs are operands of a program, so that a search compiles it once.
"""

from collections.abc import Callable
from typing import Any

import jax

from experiments.few_calls.contenders import (
  BASELINES,
  DPIR,
  Contender,
  Restore,
  built,
  scanned,
  share,
)
from experiments.few_calls.search import Knob, Point
from posterior_jax import NFCConfig, Observation, baselines
from posterior_jax.base import Denoiser
from posterior_jax.nfc_sampler import (
  Jacobian,
  Mean,
  Ode,
  Schedule,
  compose,
  levels_of,
  parts_of,
)

# DiffPIR's quadratic spacing has no more timesteps.
_MOST = 500
# Of the linear solves of motion blur, which otherwise take longer than the
# network: their first levels, where they are slow, are forgotten.
_SOLVE: dict[str, Any] = {"tolerance": 1e-3, "max_iterations": 100}
_FEW = 50  # evaluations; below, levels with several of them would be too few


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
  return baselines.DiffPIRConfig.tuned(levels=min(evaluations, _MOST), **_SOLVE)


def ddnm(evaluations: int) -> baselines.DDNMConfig:
  """One call for each level."""
  return baselines.DDNMConfig.tuned(levels=evaluations, **_SOLVE)


def pigdm(evaluations: int) -> baselines.PiGDMConfig:
  """A call and a VJP for each level."""
  return baselines.PiGDMConfig.tuned(levels=evaluations // 2, **_SOLVE)


def nfc(config: Callable[[int], NFCConfig], *knobs: Knob) -> Contender:
  """Settings of `nfc`: a knob `factor` is the width's, others the schedule's.

  Numbers of the schedule make the levels, which are operands.
  """

  def operands(evaluations: int, point: Point) -> dict[str, Any]:
    schedule = {name: v for name, v in point.items() if name != "factor"}
    made = config(evaluations).replace(schedule=schedule)
    beside = {n: point[n] for n in ("factor", "renewal") if n in point}
    return {"levels": levels_of(made), **beside}

  def restore(evaluations: int) -> Restore:
    made = config(evaluations)

    def run(
      operands: dict[str, Any],
      denoise: Denoiser,
      observation: Observation,
      key: jax.Array,
      spectrum: jax.Array,
    ) -> jax.Array:
      renewal = {n: operands[n] for n in ("renewal",) if n in operands}
      now = made.replace(width={"factor": operands["factor"]}, schedule=renewal)
      sampler = compose(parts_of(now, spectrum), operands["levels"])
      return scanned(sampler, denoise, observation, key)

    return run

  return Contender(lambda _: knobs, operands, restore)


def fast(evaluations: int) -> NFCConfig:
  """`fast()`, a call for each level, as it was before its own search.

  What is tuned here, and `rows.csv`, are of those numbers.
  """
  return NFCConfig.fast(
    levels=evaluations,
    schedule={"sigma_max": 0.4, "sigma_min": 0.08, "held": 0.01, "momentum": 0},
    predictor={"discrepancy": 0.0, "turned": False},
    width={"factor": 5.0},
  )


def restoration(evaluations: int) -> NFCConfig:
  """`restoration()`: a call and at most four VJPs for each level."""
  return NFCConfig.restoration(
    levels=evaluations // 5, inner=Mean(max_iterations=3)
  )


def calibrated(evaluations: int) -> NFCConfig:
  """`calibrated()`: a call and a VJP for each level."""
  return NFCConfig.calibrated(levels=evaluations // 2)


_SHORT = Schedule(sigma_max=1.0, sigma_min=0.05, start="measurement")


def by_jacobian(evaluations: int) -> NFCConfig:
  """Means under the Jacobian's width, noise drawn anew; one product and one."""
  return NFCConfig(
    levels=evaluations // 3,
    schedule=_SHORT,
    width=Jacobian(),
    inner=Mean(max_iterations=1),
  )


def perceptual(evaluations: int) -> NFCConfig:
  """`perceptual()`: two Euler steps for each level, or five."""
  steps = 2 if evaluations < _FEW else 5
  return NFCConfig.perceptual(
    levels=evaluations // steps, predictor=Ode("euler", steps)
  )


def _ends(sigma_max: float, sigma_min: float) -> tuple[Knob, Knob]:
  return Knob("sigma_max", sigma_max), Knob("sigma_min", sigma_min)


# Done last at every budget: what a cut run lacks is what matters least.
LATE = ("DDRM", "NFC, calibrated()", "DPS")
METHODS: dict[str, Contender] = {
  "NFC, fast(), first form": nfc(
    fast, Knob("factor", 5.0), Knob("sigma_min", 0.08)
  ),
  DPIR: BASELINES[DPIR],
  "DiffPIR": built(
    baselines.diffpir, diffpir, Knob("weight", 0.5), share("renewal", 0.6)
  ),
  "NFC, restoration()": nfc(
    restoration, Knob("factor", 2.0), Knob("sigma_min", 0.1)
  ),
  "NFC, by renewal": nfc(
    fast, Knob("factor", 5.0), share("renewal", 0.4), Knob("sigma_min", 0.08)
  ),
  "NFC, by Jacobian": nfc(by_jacobian, Knob("factor", 2.0), *_ends(1.0, 0.05)),
  "NFC, perceptual()": nfc(perceptual, Knob("factor", 1.0), *_ends(1.0, 0.05)),
  "DAPS": built(
    baselines.daps, daps, Knob("noise_std", 0.014), Knob("step_size", 1e-4)
  ),
  "MMPS": BASELINES["MMPS"],
  "DDNM+": built(baselines.ddnm, ddnm, *BASELINES["DDNM+"].knobs(_FEW)),
  "DDRM": BASELINES["DDRM"],
  "PiGDM": built(baselines.pigdm, pigdm, *BASELINES["PiGDM"].knobs(_FEW)),
  "SITCOM": built(
    baselines.sitcom,
    sitcom,
    Knob("rate", 0.02),
    Knob("stop", 1.02, factor=1.1),
  ),
  "NFC, calibrated()": nfc(
    calibrated, Knob("factor", 1.0), Knob("sigma_min", 0.02)
  ),
  "DPS": BASELINES["DPS"],
}
