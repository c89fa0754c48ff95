"""Levels that are held: samples average to the posterior mean."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import NFCConfig, nfc, operators, priors
from posterior_jax.nfc_sampler import Exact, Mean, Schedule, Spectrum, levels_of
from tests import oracles
from tests.sampled import OPERATORS, SHAPE, observe, quick, the_prior


@pytest.fixture(scope="module")
def prior():
  return the_prior()


@pytest.mark.parametrize(
  "inner", [pytest.param(Exact, marks=pytest.mark.slow), Mean]
)
def test_held_levels_average_to_the_posterior_mean(inner, prior):
  """Exact draws make them a Gibbs sampler; means have the same fixed point."""
  observation = observe(OPERATORS["random"](), prior, count=1)
  mean, _ = priors.posterior_mean(prior, observation)
  errors = {}
  for held in (0.0, 0.8):
    config = NFCConfig(
      levels=300,
      schedule=Schedule(sigma_min=1.0, held=held),
      inner=inner(tolerance=1e-6),
    )
    draw = quick(nfc(config, spectrum=prior.spectrum), prior.denoise)
    found, info = draw(observation, jax.random.key(3))
    errors[held] = float(jnp.sqrt(jnp.mean((found[0] - mean) ** 2)))
  held = NFCConfig(levels=300, schedule=Schedule(held=0.8))
  assert held.held_levels == 240
  np.testing.assert_array_equal(info.sigma[60:], jnp.ones(240))

  assert errors[0.8] < 0.3 * errors[0.0]
  assert errors[0.8] < 0.03


@pytest.mark.parametrize(
  "name",
  [
    "random",
    *(
      pytest.param(x, marks=pytest.mark.slow) for x in ("blur", "resize", "box")
    ),
  ],
)
def test_restoration_as_it_is_comes_near_the_posterior_mean(name, prior):
  """Its width is doubled for photographs' sake, not for such a prior."""
  observation = observe(OPERATORS[name](), prior, count=1)
  mean, _ = priors.posterior_mean(prior, observation)
  # Of the posterior, (A^T A / s^2 + C^-1)^-1 in float64: what an exact sample
  # is off by.
  a = oracles.dense(
    lambda x: np.asarray(
      observation.operator.forward(jnp.asarray(np.float32(x))[..., None]),
      np.float64,
    ),
    SHAPE[:2],
  )
  tie = oracles.fourier_diagonal(1 / np.asarray(prior.spectrum, np.float64))
  covariance = np.linalg.inv(a.T @ a / 0.05**2 + tie)
  deviation = np.sqrt(np.trace(covariance) / len(covariance))
  best = quick(nfc(NFCConfig.restoration()), prior.denoise)
  found, _ = best(observation, jax.random.key(3))
  error = jnp.sqrt(jnp.mean((found[0] - mean) ** 2))
  assert error < 0.6 * deviation


def test_held_levels_leave_one_of_the_ramp():
  assert NFCConfig(levels=1, schedule=Schedule(held=0.9)).held_levels == 0
  assert NFCConfig(levels=10, schedule=Schedule(held=0.99)).held_levels == 9
  with pytest.raises(ValueError, match=r"held must lie in \[0, 0.99\], got 1"):
    Schedule(held=1.0)


def test_passes_average_every_held_level(prior):
  """The schedule's weights make a plain mean; more passes come nearer."""
  config = NFCConfig(
    levels=10, schedule=Schedule(held=0.4, passes=3, sigma_min=1.0)
  )
  schedule = levels_of(config)
  np.testing.assert_array_equal(schedule.sigma[10:20], schedule.sigma[:10])
  np.testing.assert_array_equal(schedule.following[:-1], schedule.sigma[1:])
  assert schedule.following[-1] == 0
  found, kept = 0.0, []
  for number, share in enumerate(schedule.share):
    found += share * (number**2 - found)
    kept += [number**2] * bool(share > 0)
  assert len(kept) == 12
  np.testing.assert_allclose(found, np.mean(kept), rtol=1e-6)

  observation = observe(OPERATORS["random"](), prior, count=1)
  mean, _ = priors.posterior_mean(prior, observation)
  errors = []
  for passes in (1, 12):
    sampler = nfc(
      config.replace(levels=20, schedule={"passes": passes}),
      spectrum=prior.spectrum,
    )
    assert sampler.num_steps == 20 * passes
    x, info = quick(sampler, prior.denoise)(observation, jax.random.key(3))
    assert info.sigma.shape == (20 * passes,)
    errors.append(float(jnp.sqrt(jnp.mean((x[0] - mean) ** 2))))
  assert errors[1] < 0.5 * errors[0]
  with pytest.raises(ValueError, match="passes must be 1 unless levels are"):
    NFCConfig(schedule=Schedule(passes=2))


@pytest.mark.parametrize("levels", [1, 3])
def test_a_pass_ends_where_another_begins(levels):
  """By its place: one of a single level goes on at the same noise."""
  config = NFCConfig.guided(levels=levels, schedule={"passes": 3})
  last = [0] * (levels - 1)
  np.testing.assert_array_equal(
    levels_of(config).anew, [*last, 1, *last, 1, *last, 0]
  )


@pytest.mark.parametrize("levels", [1, 3])
def test_what_a_pass_ends_with_is_not_moved_too_far(levels):
  """Where it is averaged; else it is what the next pass begins with."""
  for averaged, end in (("refined", 1.0), ("predicted", 1.5)):
    config = NFCConfig.fast(
      levels=levels,
      schedule={"passes": 2, "averaged": averaged, "relaxation": 1.5},
    )
    before = [1.5] * (levels - 1)
    np.testing.assert_array_equal(
      levels_of(config).reach, [*before, end, *before, 1.0]
    )


@pytest.mark.parametrize(
  ("averaged", "factor"),
  [
    ("predicted", 2.0),  # as `restoration` has them
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (("predicted", 1.0), ("refined", 1.0), ("refined", 2.0))
    ),
  ],
)
def test_where_held_levels_settle(averaged, factor, prior):
  """The fixed point of mean steps, in closed form for a circular blur."""
  operator = operators.gaussian_blur(
    SHAPE, size=3, std=0.5, boundary="circular"
  )
  observation = observe(operator, prior)
  sigma = 0.3
  config = NFCConfig(
    levels=200,
    schedule=Schedule(sigma_min=sigma, held=0.9, averaged=averaged),
    width=Spectrum(factor),
    inner=Mean(tolerance=1e-6),
  )
  draw = quick(nfc(config, spectrum=prior.spectrum), prior.denoise, 64)
  samples, _ = draw(observation, jax.random.key(0))
  found = np.fft.fft2(np.mean(samples, 0), axes=(1, 2))
  # a (y - a z) / s^2 = (z - D z) / C with C = factor S sigma^2 / (S + sigma^2)
  # and D = S / (S + sigma^2): the prior's precision is 1 / (factor S).
  power = np.asarray(prior.spectrum, np.float64)[..., None]
  delta = jnp.zeros((1, *SHAPE)).at[0, 0, 0].set(1)
  gain = np.fft.fft2(np.asarray(operator.forward(delta)), axes=(1, 2))
  y = np.fft.fft2(np.asarray(observation.y, np.float64), axes=(1, 2))

  def settled(averaged, factor):
    precision = np.abs(gain) ** 2 / 0.05**2 + 1 / (factor * power)
    refined = np.conj(gain) * y / 0.05**2 / precision
    kept = power / (power + sigma**2) if averaged == "predicted" else 1.0
    return kept * refined

  errors = {
    other: np.linalg.norm(found - settled(*other)) / np.linalg.norm(found)
    for other in itertools.product(("refined", "predicted"), (1.0, 2.0))
  }
  own = errors.pop((averaged, factor))
  assert own < 0.005, own
  assert min(errors.values()) > 3 * own, (own, errors)
