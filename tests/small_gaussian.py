"""Draws, and the width of a tie, on images of 8 x 8 for the tests of widths."""

import jax.numpy as jnp
import numpy as np

SHAPE = (8, 8, 1)
SIGMA, NOISE = 0.6, 0.1


def normal(shape, seed=0):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(np.float32(x))


def width(prior):
  """What the prior leaves at SIGMA, in Fourier space."""
  return prior.spectrum * SIGMA**2 / (prior.spectrum + SIGMA**2)
