"""Draws for the metrics, and bounds of what they deviate by."""

import jax.numpy as jnp
import numpy as np

# Bounds in standard errors: on one normal deviate, and on the largest of up to
# a few hundred.
ONE, MANY = 4.5, 5.0


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def f32(x):
  return jnp.asarray(np.float32(x))
