"""The hypotheses under a Gaussian prior, where the expected error is known.

Every variant stands beside its control, the same run without a band.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.continuation import chain
from experiments.continuation.chain import Law, Problem
from experiments.continuation.settings import (
  APART,
  FEW,
  GAUSSIAN,
  NOISY,
  WRONG,
  Settings,
)
from posterior_jax import NFCConfig, operators, priors

Row = dict[str, Any]


def laws(power: np.ndarray) -> dict[str, tuple[Law, Law]]:
  """Width and band of every variant; the first is the control."""
  return {
    "no band": (lambda sigma: sigma**2, lambda sigma: 1.0),
    "hard, S > sigma^2": (
      lambda sigma: sigma**2,
      lambda sigma: (power > sigma**2) * 1.0,
    ),
    "S / (S + sigma^2)": (
      lambda sigma: sigma**2,
      lambda sigma: power / (power + sigma**2),
    ),
    "width of the spectrum": (
      lambda sigma: power * sigma**2 / (power + sigma**2),
      lambda sigma: 1.0,
    ),
  }


def kernel_of(name: str, size: int) -> np.ndarray:
  """A kernel by its name in KERNELS, [h, w]."""
  shape = (size, size, 1)
  if name == GAUSSIAN:
    return np.asarray(operators.gaussian_blur(shape).kernel, np.float64)
  return np.asarray(operators.motion_blur(shape, name).kernel, np.float64)


def rows(settings: Settings) -> Iterator[Row]:
  """A row for every hypothesis, kernel, variant and number of levels."""
  size = settings.size
  power = np.asarray(priors.power_law_spectrum(size, size), np.float64)
  for name in settings.kernels:
    kernel = kernel_of(name, size)
    for found in (
      _few_calls(settings, power, kernel),
      # A turn leaves a round kernel as it is.
      () if name == GAUSSIAN else _wrong_kernel(settings, power, kernel),
      _strong_noise(settings, power, kernel),
      _tau_and_step(settings, power, kernel),
    ):
      for row in found:
        yield {"hypothesis": row.pop("hypothesis"), "kernel": name} | row


def _few_calls(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  gain, noise = chain.transfer(kernel, len(power)), settings.noise_std
  problem = Problem(power, gain, gain, noise, noise)
  for variant, (width, band) in laws(power).items():
    yield from _by_levels(settings, FEW, variant, problem, width, band)


def _wrong_kernel(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  noise = settings.noise_std
  gain = chain.transfer(kernel, len(power))
  width = laws(power)["width of the spectrum"][0]
  told = {"turned": chain.turned(kernel, settings.turn), "right": kernel}
  for words, assumed in told.items():
    mean = np.mean(chain.turns(assumed), axis=0)
    for name, centre in {"": assumed, "mean kernel, ": mean}.items():
      told_gain = chain.transfer(centre, len(power))
      problem = Problem(power, gain, told_gain, noise, noise)
      careful = chain.uncertainty_band(power, assumed, noise, centre)
      bands = {"no band": np.ones_like(power), "band": careful}
      for kind, band in bands.items():
        law = functools.partial(_always, band)
        yield from _by_levels(
          settings, WRONG, f"{words}, {name}{kind}", problem, width, law
        )


def _always(value: np.ndarray, sigma: float) -> np.ndarray:
  del sigma
  return value


def _strong_noise(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  gain, noise = chain.transfer(kernel, len(power)), settings.strong_noise_std
  for share, (variant, (width, band)) in itertools.product(
    settings.tau_shares, laws(power).items()
  ):
    problem = Problem(power, gain, gain, noise, share * noise)
    variant = f"tau {share:g} of the noise, {variant}"
    yield from _by_levels(settings, NOISY, variant, problem, width, band)


def _tau_and_step(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  """The published tau and step, and each of them alone as an exact one."""
  gain, noise = chain.transfer(kernel, len(power)), settings.noise_std
  problem = Problem(power, gain, gain, noise, noise)
  paper = NFCConfig.paper(
    levels=settings.published_levels, band=None, fusion=None
  )
  exact = {"inner_noise_std": None, "halved_misfit": True}
  steps = {"step that decays": 0.01, "step that stays": 1.0}
  for words, decay in steps.items():
    # Half the largest stable step is 5e-5 at the published tau, 2.5e-3 at s.
    for variant, tau, step in (
      ("tau as published", {}, 5e-5),
      ("tau the noise, step as published", exact, 5e-5),
      ("tau the noise, step 50 times as large", exact, 2.5e-3),
    ):
      inner = {"step_size": step, "decay": decay}
      yield {
        "hypothesis": APART,
        "variant": f"{variant}, {words}",
        "levels": paper.levels,
        "psnr": chain.published_psnr(
          problem, paper.replace(inner=inner, **tau)
        ),
      }


def _by_levels(
  settings: Settings,
  hypothesis: str,
  variant: str,
  problem: Problem,
  width: Law,
  band: Law,
) -> Iterator[Row]:
  for levels in settings.levels:
    psnr = chain.expected_psnr(problem, levels, width, band)
    about = {"hypothesis": hypothesis, "variant": variant}
    yield about | {"levels": levels, "psnr": psnr}
