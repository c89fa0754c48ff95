"""Samplers of small images under a Gaussian prior, for the tests."""

import functools

import jax
import jax.numpy as jnp

from posterior_jax import NFCConfig, Observation, nfc, operators, priors, run
from posterior_jax.nfc_sampler import (
  Band,
  Fusion,
  Gradient,
  Ode,
  Radial,
  Sigma,
  Snr,
)
from tests import oracles

SHAPE = (16, 16, 1)
PAPER = NFCConfig.paper(levels=4, inner={"steps": 5})
CONFIGS = {
  "calibrated": NFCConfig.calibrated(levels=4),
  "restoration": NFCConfig.restoration(
    levels=20, inner={"max_iterations": 200}
  ),
  "paper": PAPER,
  "gradient": NFCConfig(levels=4, inner=Gradient(steps=5)),
  "snr band": NFCConfig(levels=4, band=Band(Snr(), blend="additive")),
  "log-sigma band": NFCConfig(
    levels=4, band=Band(Radial("log_sigma", shape="gaussian"))
  ),
  "heun": NFCConfig(levels=3, predictor=Ode("heun"), width=Sigma()),
  "two-step solver": NFCConfig(
    levels=3,
    predictor=Ode("dpm_solver_2m"),
    fusion=Fusion("bior4.4", levels=2, high=0.5, unlock="base"),
  ),
}
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE),
  "box": lambda: operators.box_inpainting(SHAPE, size=6),
  "random": lambda: operators.random_inpainting(SHAPE),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


@functools.cache
def the_prior():
  spectrum = priors.power_law_spectrum(*SHAPE[:2])
  return priors.GaussianPrior(spectrum, jnp.zeros(()))


def observe(operator, prior, seed=0, noise_std=0.05, count=2):
  keys = jax.random.split(jax.random.key(seed))
  truth = prior.sample(keys[0], (count,), channels=1)
  clean = operator.forward(truth)
  noise = noise_std * jax.random.normal(keys[1], clean.shape)
  return Observation(clean + noise, operator, noise_std)


def quick(sampler, denoise, num_samples=1):
  """`run` on (observation, key), compiled in half the time."""

  def draw(observation, key):
    return run(sampler, denoise, observation, key, num_samples=num_samples)

  return oracles.quick_jit(draw)


@functools.cache
def three_samples(name):
  """`quick` of a setting: one program for all tests of an operator."""
  prior = the_prior()
  sampler = nfc(CONFIGS[name], spectrum=prior.spectrum)
  return quick(sampler, prior.denoise, 3)
