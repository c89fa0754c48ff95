"""Measurements of next to no noise, in float32: the box that is filled in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import NFCConfig, Observation, baselines, nfc, operators, run
from tests import oracles
from tests.sampled import SHAPE, the_prior

LITTLE = [1e-4, 1e-6]


def _box(noise):
  """An observation whose noise is the same draw at any size."""
  prior = the_prior()
  operator = operators.box_inpainting(SHAPE, size=6)
  truth = prior.sample(jax.random.key(0), (1,), 1)
  draw = jax.random.normal(jax.random.key(1), truth.shape)
  y = operator.forward(truth + noise * draw)
  return prior, Observation(y, operator, noise)


@pytest.mark.parametrize("noise", LITTLE)
def test_a_hole_is_solved_for_under_little_noise(noise):
  """(M / s^2 + P) x = b against float64: 1 / s^2 made rounding the answer."""
  prior, observation = _box(noise)
  operator, spectrum = observation.operator, prior.spectrum
  x, info = operator.normal_solve(
    operator.adjoint(observation.y) / noise**2,
    precision=1 / spectrum,
    noise_std=jnp.float32(noise),
  )
  tie = oracles.fourier_diagonal(1 / np.asarray(spectrum, np.float64))
  seen = np.asarray(operator.mask, np.float64).ravel()
  y = np.asarray(observation.y, np.float64).ravel() * seen
  system = np.diag(seen) + noise**2 * tie
  # Unknown are the hidden alone: the whole has no digits left in float64.
  hidden = seen == 0
  expected = y.copy()
  expected[hidden] = np.linalg.solve(
    tie[np.ix_(hidden, hidden)], -tie[np.ix_(hidden, ~hidden)] @ y[~hidden]
  )
  assert np.abs(system @ expected - y).max() < 1e3 * noise**2
  np.testing.assert_allclose(np.ravel(x), expected, atol=2e-3)
  assert info.relative_residual < 1e-5


def _error(sampler, noise):
  prior, observation = _box(noise)
  key = jax.random.key(2)
  x, _ = run(sampler, prior.denoise, observation, key, num_samples=2)
  truth = prior.sample(jax.random.key(0), (1,), 1)
  return float(jnp.sqrt(jnp.mean((x - truth) ** 2)))


SAMPLERS = {
  name: lambda name=name: nfc(
    getattr(NFCConfig, name)(levels=10), spectrum=the_prior().spectrum
  )
  for name in ("restoration", "fast", "perceptual", "guided", "calibrated")
} | {
  name: lambda name=name: getattr(baselines, name.lower())(
    getattr(baselines, f"{name}Config").tuned("box_inpainting")
  )
  for name in ("PiGDM", "MMPS", "DAPS", "DiffPIR", "DDRM", "DDNM", "PnPDM")
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] if name == "DAPS" else [])
    for name in SAMPLERS
  ],
)
def test_an_image_comes_as_near_as_under_more_noise(name):
  """Of 1e-3, below which noise no longer says anything."""
  make = SAMPLERS[name]
  errors = [_error(make(), noise) for noise in (1e-3, *LITTLE)]
  assert max(errors) < 1.2 * errors[0] + 0.02, errors
