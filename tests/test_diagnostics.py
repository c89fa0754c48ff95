"""What a run says of itself: residual by band, evaluations, stream, images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  Info,
  NFCConfig,
  Observation,
  diagnostics,
  metrics,
  nfc,
  operators,
  priors,
  recorded,
  run,
  streamed,
)
from posterior_jax.base import SolveInfo
from posterior_jax.linalg import fourier
from posterior_jax.nfc_sampler import Denoise, Ode, Sigma
from tests import oracles

SHAPE = (16, 12, 2)
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE),
  "random": lambda: operators.random_inpainting(SHAPE, fraction=0.5),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


def observe(operator, seed=0):
  shape = (2, *operator.measurement_shape)
  y = np.random.default_rng(seed).standard_normal(shape)
  return Observation(jnp.asarray(np.float32(y)), operator, 0.1)


@pytest.fixture(scope="module")
def prior():
  return priors.gaussian_prior(priors.power_law_spectrum(*SHAPE[:2]))


@pytest.fixture(scope="module")
def sampler():
  return nfc(NFCConfig(levels=3, width=Sigma()))


@pytest.mark.parametrize("name", OPERATORS)
def test_band_energy_is_the_residual_by_frequency(name):
  """Against numpy, band by band; weighted by size it is the residual."""
  observation = observe(OPERATORS[name]())
  operator = observation.operator
  x = np.random.default_rng(1).standard_normal((3, 2, *SHAPE))
  x = jnp.asarray(np.float32(x))
  found = jax.jit(diagnostics.band_energy)(observation, x)
  height, width, _ = operator.measurement_shape
  index = fourier.radial_bands(height, width, diagnostics.BANDS)
  observed = np.broadcast_to(operator.observed, operator.measurement_shape)
  misfit = np.asarray(observation.y - operator.forward(x), np.float64)
  f = np.fft.fft2(observed * misfit, axes=(-3, -2), norm="ortho")
  power = (np.abs(f) ** 2).mean(-1) / (0.1**2 * observed.mean())
  for band in range(diagnostics.BANDS):
    inside = index == band
    expected = power[..., inside].mean(-1) if inside.any() else 0.0
    np.testing.assert_allclose(found[..., band], expected, rtol=2e-4)
  sizes = np.bincount(index.ravel(), minlength=diagnostics.BANDS)
  np.testing.assert_allclose(
    found @ jnp.asarray(np.float32(sizes / sizes.sum())),
    metrics.measurement_residual(x, observation),
    rtol=1e-4,
  )


@pytest.mark.parametrize(
  ("kind", "calls"),
  [
    (Denoise(), 1),
    pytest.param(Ode("euler", steps=3), 3, marks=pytest.mark.slow),
    pytest.param(Ode("heun", steps=3), 6, marks=pytest.mark.slow),
    (Ode("dpm_solver_2m", steps=3), 3),
  ],
)
def test_info_counts_the_calls_that_are_made(kind, calls, prior):
  """The denoiser counts its own calls on the host."""
  counted = []

  def denoise(x, sigma):
    jax.debug.callback(lambda: counted.append(1))
    return prior.denoise(x, sigma)

  config = NFCConfig(levels=2, predictor=kind, width=Sigma())
  _, info = run(
    nfc(config),
    denoise,
    observe(OPERATORS["random"]()),
    jax.random.key(0),
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(info.calls, [calls, calls])
  np.testing.assert_array_equal(info.evaluations, info.calls)
  assert len(counted) == 2 * calls


def test_stream_reports_every_step_in_order(prior, sampler):
  """The samples stay the same bits, and new data does not retrace."""
  seen, traces = [], []

  def denoise(x, sigma):
    traces.append(1)
    return prior.denoise(x, sigma)

  watched = streamed(sampler, lambda step, info: seen.append((step, info)))
  for seed in range(2):
    observation = observe(OPERATORS["random"](), seed)
    key = jax.random.key(seed)
    found, info = run(watched, denoise, observation, key)
    jax.effects_barrier()
    assert [step for step, _ in seen] == [0, 1, 2]
    for step, one in seen:
      assert isinstance(one, Info)
      np.testing.assert_array_equal(one.residual, info.residual[step])
      np.testing.assert_array_equal(one.band_energy, info.band_energy[step])
    expected, _ = run(sampler, prior.denoise, observation, key)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    seen.clear()
  assert len(traces) == 1


def test_recorded_keeps_every_state(prior, sampler):
  observation = observe(OPERATORS["random"]())
  key = jax.random.key(3)
  samples, info = run(
    recorded(sampler), prior.denoise, observation, key, num_samples=2
  )
  assert info.trajectory.shape == (3, 2, 2, *SHAPE)
  np.testing.assert_array_equal(info.trajectory[-1], samples)
  keys = jax.random.split(key)

  @oracles.quick_jit
  def first_step(keys):
    state = sampler.init(keys[0], observation, 2)
    key = jax.random.split(keys[1], 3)[0]
    return sampler.step(state, prior.denoise, observation, key)[0]

  first = first_step(keys)
  np.testing.assert_allclose(info.trajectory[0], first.x, rtol=1e-4, atol=1e-3)
  expected, plain = run(sampler, prior.denoise, observation, key, num_samples=2)
  np.testing.assert_allclose(samples, expected, atol=1e-6)
  assert plain.trajectory is None


def test_info_of_three_fields_is_enough():
  """A sampler that says no more than it must."""
  none = SolveInfo(jnp.zeros((), jnp.int32), jnp.zeros(()))
  info = Info(jnp.ones(()), jnp.ones((1, 1)), none)
  stacked = jax.lax.scan(lambda c, _: (c, info), 0, length=2)[1]
  assert stacked.band_energy is None
  np.testing.assert_array_equal(stacked.evaluations, [0, 0])


def test_bad_callback_is_one_sentence(sampler):
  with pytest.raises(TypeError, match="callback must be callable, got int"):
    streamed(sampler, 3)
