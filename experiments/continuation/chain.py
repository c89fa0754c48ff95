"""A run of NFC under a Gaussian prior and circular blur, in closed form.

Every part but the fusion is diagonal in Fourier space there, so at every
frequency the state is alpha t + beta n + noise of variance v, with t the truth
and n the measurement's noise, and a level is affine in all three.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from posterior_jax import NFCConfig, schedule
from posterior_jax.nfc_sampler import Langevin, Ode

# What the operator's owner is unsure of: turns of the assumed kernel, degrees.
TURNS = (-15, -10, -5, 5, 10, 15)

Law = Callable[[float], Any]  # of sigma: a number or [n, n]


class Problem(NamedTuple):
  """A Gaussian prior measured by a circular blur.

  Attributes:
    power: S of the prior, [n, n].
    gain: transfer of the true operator, [n, n] complex.
    assumed: transfer that the sampler is told.
    noise_std: s.
    tau: noise that the likelihood assumes.
  """

  power: np.ndarray
  gain: np.ndarray
  assumed: np.ndarray
  noise_std: float
  tau: float


def expected_psnr(
  problem: Problem, levels: int, width: Law, band: Law, *, draws: bool = False
) -> float:
  """PSNR of the expected squared error of a run with one call per level, in dB.

  Args:
    problem: what is restored.
    levels: of `schedule.karras`.
    width: C of the tie, of sigma.
    band: B on the misfit, of sigma.
    draws: whether levels draw (`Exact`) or take the minimiser (`Mean`).
  """
  sigmas = schedule.karras(levels)
  state = _start(problem, sigmas[0])
  for sigma, following in itertools.pairwise(sigmas):
    tie, weight = 1 / width(sigma), band(sigma) / problem.tau**2
    precision = np.abs(problem.assumed) ** 2 * weight + tie
    kept = problem.power / (problem.power + sigma**2) * tie / precision
    taken = np.conj(problem.assumed) * weight / precision
    state = _moved(state, problem, kept, taken, draws / precision, following)
  return _psnr(state, problem.power)


def published_psnr(problem: Problem, config: NFCConfig) -> float:
  """The same of `NFCConfig.paper()` without band and fusion.

  Args:
    problem: what is restored; `tau` is the config's where it has one.
    config: with an Euler `Ode` and `Langevin` updates.
  """
  power, inner, flow = problem.power, config.inner, config.predictor
  assert isinstance(inner, Langevin) and isinstance(flow, Ode)
  sigmas = schedule.karras(config.levels)
  progress = schedule.progress(sigmas[:-1], "step")
  steps = inner.step_size * schedule.ramp(1.0, inner.decay, progress)
  tau = config.inner_noise_std or problem.tau
  weight = (1 if config.halved_misfit else 2) / tau**2
  state = _start(problem, sigmas[0])
  for step, (sigma, following) in zip(steps, itertools.pairwise(sigmas)):
    precision = np.abs(problem.assumed) ** 2 * weight + 1 / sigma**2
    # After T updates the start has the weight (1 - h P)^T, the target the rest.
    once = 1 - step * precision
    left = once**inner.steps
    kept = left + (1 - left) / sigma**2 / precision
    taken = (1 - left) * np.conj(problem.assumed) * weight / precision
    drawn = 2 * step * (1 - left**2) / (1 - once**2)
    flowed = kept * _flow(power, sigma, flow, config.schedule.rho)
    state = _moved(state, problem, flowed, taken, drawn, following)
  return _psnr(state, power)


def _flow(power: np.ndarray, sigma: float, flow: Ode, rho: float) -> np.ndarray:
  """Gain of Euler steps of the probability flow, [n, n]."""
  ends = sigma ** (1 / rho), min(flow.sigma_end, sigma) ** (1 / rho)
  gain = np.ones_like(power)
  nodes = np.linspace(*ends, flow.steps + 1) ** rho
  for now, following in itertools.pairwise(nodes):
    slope = (1 - power / (power + now**2)) / now
    gain = gain * (1 + (following - now) * slope)
  return gain


State = tuple[np.ndarray, np.ndarray, np.ndarray]  # alpha, beta, v


def _start(problem: Problem, sigma: float) -> State:
  nothing = np.zeros_like(problem.gain)
  return nothing, nothing, np.full(problem.power.shape, sigma**2)


def _moved(
  state: State,
  problem: Problem,
  kept: np.ndarray,
  taken: np.ndarray,
  drawn: np.ndarray,
  following: float,
) -> State:
  """One level: kept of the state, taken from the measurement, fresh noise."""
  alpha, beta, variance = state
  alpha = kept * alpha + taken * problem.gain
  beta = kept * beta + taken * problem.noise_std
  return alpha, beta, kept**2 * variance + drawn + following**2


def _psnr(state: State, power: np.ndarray) -> float:
  alpha, beta, variance = state
  error = np.abs(alpha - 1) ** 2 * power + np.abs(beta) ** 2 + variance
  # Pixels lie in [-1, 1]: the largest squared difference is 4.
  return float(10 * np.log10(4 / error.mean()))


def transfer(kernel: np.ndarray, size: int) -> np.ndarray:
  """Transfer function of a circular blur, [size, size] complex."""
  found = np.zeros((size, size))
  rows, columns = (np.arange(extent) - extent // 2 for extent in kernel.shape)
  # Added, not put: a kernel wider than the torus meets itself.
  np.add.at(found, (rows[:, None] % size, columns % size), kernel)
  return np.fft.fft2(found)


def turned(kernel: np.ndarray, degrees: float) -> np.ndarray:
  """A kernel turned about its middle, of sum 1."""
  found = scipy.ndimage.rotate(kernel, degrees, reshape=False, order=1)
  return found / found.sum()


def turns(kernel: np.ndarray) -> list[np.ndarray]:
  """What the kernel may be instead: turned by TURNS, all equally likely."""
  return [turned(kernel, degrees) for degrees in TURNS]


def uncertainty_band(
  power: np.ndarray, kernel: np.ndarray, noise_std: float, told: np.ndarray
) -> np.ndarray:
  """s^2 / (s^2 + S E |delta a|^2) over the turns of a kernel, [n, n].

  An error delta a of the operator adds noise of power S |delta a|^2 to the
  measurement; B is what the noise alone has of the whole.

  Args:
    power: S of the prior, [n, n].
    kernel: that turns.
    noise_std: s.
    told: kernel that the sampler assumes, from which delta a is taken: the
      same, or the mean of the turns, about which it is smallest.
  """
  gain = transfer(told, len(power))
  others = [transfer(other, len(power)) for other in turns(kernel)]
  spread = np.mean([np.abs(other - gain) ** 2 for other in others], axis=0)
  return noise_std**2 / (noise_std**2 + power * spread)
