"""A run of NFC level by level, beside what a test computes by NumPy."""

import itertools

import jax
import numpy as np

from posterior_jax.nfc_sampler import compose, levels_of, parts_of
from tests import oracles


def denoise(x, sigma):
  """Of a prior N(0, 1/4) of every pixel by itself."""
  return x * (0.25 / (0.25 + sigma**2))[:, None, None, None]


def run(config, observation, nodes):
  """The first image, and an iterator over the levels.

  Args:
    config: of a run without draws, the keys of all steps are the same.
    observation: of [B, H, W, C].
    nodes: the noise levels and the end, 0.

  Returns:
    x [B, H, W, C] float64, and of every level (sigma, the noise that its tie
    has, the state after it).
  """
  sampler = compose(parts_of(config), levels_of(config))
  state = sampler.init(jax.random.key(0), observation, 1)
  step = oracles.quick_jit(
    lambda state: sampler.step(state, denoise, observation, jax.random.key(1))[
      0
    ]
  )

  def levels(state):
    for sigma, following in itertools.pairwise(nodes):
      state = step(state)
      yield sigma, following if following > 0 else sigma, state

  return np.asarray(state.x[0], np.float64), levels(state)
