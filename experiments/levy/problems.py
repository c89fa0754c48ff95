"""Signals, what is measured of them, and their exact posteriors."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.levy import posterior
from experiments.levy.laws import LAWS, Law
from experiments.levy.posterior import Exact, Measured
from posterior_jax import Observation, operators

SNR = 25.0  # dB, of the median signal's measurement
RMS = 0.5  # of signals as images, whose pixels samplers expect in [-1, 1]
_TAPS, _STD = 13, 2.0  # of the blur
_LOWEST = 5  # Fourier coefficients that are always seen
# Half of the points, half of the coefficients: the same ones for all laws.
_SHARE, _SEED = 0.5, 0
OPERATORS = ("denoising", "deconvolution", "imputation", "partial Fourier")


class Problem(NamedTuple):
  """N measured signals of d points, under one law and one operator."""

  law: Law  # scaled to the images' unit
  truth: np.ndarray  # [N, d]
  measured: Measured
  exact: Exact  # the posteriors

  @property
  def observation(self) -> Observation:
    """As images [1, d, 1]: y [N, m, 1, 1]."""
    matrix, y, noise_std = self.measured
    operator = operators.dense(
      (1, matrix.shape[1], 1), np.asarray(matrix, np.float32)
    )
    return Observation(
      jnp.asarray(y, jnp.float32)[..., None, None], operator, noise_std
    )

  @property
  def spectrum(self) -> np.ndarray:
    """Variance of every Fourier coefficient of a signal, [1, d]."""
    d = self.truth.shape[1]
    steps = np.arange(1, d + 1)
    covariance = self.law.variance * np.minimum(steps[:, None], steps)
    rows = np.fft.fft(covariance, axis=1, norm="ortho")
    return np.diag(np.fft.ifft(rows, axis=0, norm="ortho")).real[None]

  def log_density(self, x: np.ndarray) -> np.ndarray:
    """log p(x | y) up to a constant per signal: [..., N, d] -> [..., N]."""
    matrix, y, noise_std = self.measured
    misfit = ((x @ matrix.T - y) ** 2).sum(-1) / (2 * noise_std**2)
    u = np.diff(x, axis=-1, prepend=0.0)
    return self.law.log_density(u).sum(-1) - misfit


def make(
  name: str,  # of LAWS
  operator: str,  # of OPERATORS
  *,
  signals: int,  # N
  length: int,  # d
  burn_in: int,  # sweeps of the Gibbs sampler, and those that count
  sweeps: int,
  keep: int,  # draws of every posterior
  seed: int,  # of the signals, their noise and the chains
) -> Problem:
  """A problem whose signals have a root mean square of RMS on average."""
  law = scaled(LAWS[name], length)
  which = [*LAWS].index(name), OPERATORS.index(operator)
  # Operators measure the same signals.
  truth = law.draw(
    np.random.default_rng((seed, which[0])), (signals, length)
  ).cumsum(axis=1)
  rng = np.random.default_rng((seed, *which, 1))
  a = matrix(operator, length)
  clean = truth @ a.T
  power = np.median((clean**2).mean(axis=1))
  noise_std = float(np.sqrt(power * 10 ** (-SNR / 10)))
  y = clean + noise_std * rng.standard_normal(clean.shape)
  measured = Measured(a, y, noise_std)
  exact = posterior.sample(
    law, measured, rng, burn_in=burn_in, sweeps=sweeps, keep=keep
  )
  return Problem(law, truth, measured, exact)


def scaled(law: Law, length: int) -> Law:
  """The law in the images' unit: E x_k^2 is variance k."""
  power = law.variance * (length + 1) / 2
  return dataclasses.replace(law, scale=law.scale * RMS / power**0.5)


def matrix(operator: str, length: int) -> np.ndarray:
  """A of OPERATORS, [m, length]."""
  rng = np.random.default_rng(_SEED)
  one = np.eye(length)
  if operator == "denoising":
    return one
  if operator == "deconvolution":
    offset = np.arange(_TAPS) - _TAPS // 2
    taps = np.exp(-0.5 * (offset / _STD) ** 2)
    taps /= taps.sum()
    return sum(w * np.roll(one, k, axis=1) for w, k in zip(taps, offset))
  if operator == "imputation":
    seen = rng.permutation(length)[: int(_SHARE * length)]
    return one[np.sort(seen)]
  rows = np.fft.rfft(one, axis=0, norm="ortho")  # [length // 2 + 1, length]
  kept = rng.uniform(size=len(rows)) < _SHARE
  kept[:_LOWEST] = True
  both = np.concatenate([rows.real[kept], rows.imag[kept]])
  # The imaginary parts of the mean and of the highest frequency are nothing.
  return both[np.abs(both).max(axis=1) > 1e-9]
