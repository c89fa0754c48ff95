"""Samples of the three named settings: what a change must not move.

`python -m tests.make_sampler_fixtures` writes fixtures/nfc_samples.npz. The
file there was written before the sampler was taken apart into parts
(revision 9a951c5, jax 0.10.2, CPU), so it holds the order in which keys are
split and levels are stepped, which no closed form does.
"""

import pathlib

import jax
import numpy as np

from posterior_jax import NFCConfig, Observation, nfc, operators, priors, run
from posterior_jax.nfc_sampler import Spectrum

FILE = pathlib.Path(__file__).parent / "fixtures" / "nfc_samples.npz"
SETTINGS = {
  "paper": NFCConfig.paper(levels=4, inner={"steps": 5}),
  "restoration": NFCConfig.restoration(levels=5),
  "calibrated": NFCConfig.calibrated(levels=4),
  # Without products of the denoiser's Jacobian, whose solves stop early.
  "restoration by spectrum": NFCConfig.restoration(levels=5, width=Spectrum()),
}


def problem(name: str):
  """A sampler, a denoiser and the observation of a blurred Gaussian draw."""
  spectrum = priors.power_law_spectrum(8, 8)
  prior = priors.gaussian_prior(spectrum)
  operator = operators.gaussian_blur((8, 8, 1), size=5, std=1.0)
  keys = jax.random.split(jax.random.key(0), 3)
  clean = operator.forward(prior.sample(keys[0], (1,), channels=1))
  y = clean + 0.05 * jax.random.normal(keys[1], clean.shape)
  sampler = nfc(SETTINGS[name], spectrum=spectrum)
  return sampler, prior.denoise, Observation(y, operator, 0.05)


def samples(name: str) -> np.ndarray:
  """[2, 1, 8, 8, 1]."""
  key = jax.random.split(jax.random.key(0), 3)[2]
  return np.asarray(run(*problem(name), key, num_samples=2)[0])


if __name__ == "__main__":
  np.savez(FILE, **{name: samples(name) for name in SETTINGS})
