"""VP, VE and EDM: noise levels of the schedules, and what an answer means."""

import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax.priors import EDM, VE, VP, Flow, edm
from tests.oracles import refused

SIGMA = np.geomspace(0.02, 100, 7)


def _denoised(c, x, answer):
  """D for an answer F in float64, all [N, 4]."""
  skip, out, *_ = (np.asarray(part, np.float64)[:, None] for part in c)
  return skip * x + out * answer


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_right_answer_gives_the_clean_image(prediction):
  """F is what the network was trained for, written from its definition."""
  rng = np.random.default_rng(0)
  clean, noise = rng.standard_normal((2, len(SIGMA), 4))
  kept = 1 / (1 + SIGMA[:, None] ** 2)  # the share of the image's power
  right = {
    "epsilon": noise,
    "sample": clean,
    "v_prediction": np.sqrt(kept) * noise - np.sqrt(1 - kept) * clean,
  }[prediction]
  c = VP(prediction=prediction).scalings(jnp.asarray(SIGMA, jnp.float32))
  x = clean + SIGMA[:, None] * noise
  found = _denoised(c, x, right)
  # x is up to 400, and float32 scalings have 1e-7 of it.
  np.testing.assert_allclose(found, clean, rtol=0, atol=1e-4)
  seen = np.asarray(c.inner)[:, None] * x
  expected = np.sqrt(kept) * clean + np.sqrt(1 - kept) * noise
  np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_steps_have_their_noise_levels(schedule):
  vp = VP(schedule=schedule)
  levels = vp.sigmas
  assert levels.shape == (1000,) and (np.diff(levels) > 0).all()
  told = vp.scalings(jnp.asarray(levels, jnp.float32)).noise
  # Neighbours are 0.4 % apart at least and float32 has 6e-8 of each.
  np.testing.assert_allclose(told, np.arange(1000), rtol=0, atol=1e-4)
  between = np.sqrt(levels[10] * levels[11])
  told = vp.scalings(jnp.float32([between, 1e-5, 1e9])).noise
  np.testing.assert_allclose(told, [10.5, 0, 999], rtol=0, atol=1e-5)


def test_noise_levels_of_the_usual_schedules():
  """The product of 1 - beta in other ways: logarithms, and a closed form."""
  linear = np.log1p(-(1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999)).sum()
  np.testing.assert_allclose(VP().sigmas[-1], np.sqrt(np.expm1(-linear)))
  np.testing.assert_allclose(VP().sigmas[0], np.sqrt(1e-4 / (1 - 1e-4)))
  root = 0.01 + (np.sqrt(0.02) - 0.01) * np.arange(1000) / 999
  scaled = np.log1p(-(root**2)).sum()
  found = VP(schedule="scaled_linear").sigmas[-1]
  np.testing.assert_allclose(found, np.sqrt(np.expm1(-scaled)))
  # a_t = cos^2(u_t) / cos^2(u_-1): sigma is nearly tan(u_t).
  t = np.arange(1, 900) / 1000
  u, start = ((s + 0.008) / 1.008 * np.pi / 2 for s in (t, 0))
  kept = (np.cos(u) / np.cos(start)) ** 2
  found = VP(schedule="cosine").sigmas[: len(t)]
  np.testing.assert_allclose(found, np.sqrt(1 / kept - 1), rtol=1e-6)


def test_score_networks_answer_sigma_times_the_score():
  """The score of x0 ~ N(0, 1) is -x / (1 + sigma^2); D is the linear mean."""
  sigma = SIGMA[:, None]
  x = np.random.default_rng(1).standard_normal((len(SIGMA), 4)) * sigma
  c = VE().scalings(jnp.asarray(SIGMA, jnp.float32))
  found = _denoised(c, x, -sigma * x / (1 + sigma**2))
  # The mean is what is left of x, which is sigma^2 times larger.
  np.testing.assert_allclose(found, x / (1 + sigma**2), rtol=0, atol=2e-5)
  np.testing.assert_allclose(c.noise, np.log(SIGMA), rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(c.inner, 1)


@pytest.mark.parametrize("steps", [1.0, 1000.0])
def test_flows_answer_the_velocity(steps):
  """Of x0 ~ N(0, 1): E[n - x0 | x_t] = (2 t - 1) x_t / (t^2 + (1 - t)^2)."""
  sigma = SIGMA[:, None]
  x = np.random.default_rng(1).standard_normal((len(SIGMA), 4)) * (1 + sigma)
  c = Flow(steps=steps).scalings(jnp.asarray(SIGMA, jnp.float32))
  t = sigma / (1 + sigma)
  velocity = (2 * t - 1) * (x / (1 + sigma)) / (t**2 + (1 - t) ** 2)
  found = _denoised(c, x, velocity)
  np.testing.assert_allclose(found, x / (1 + sigma**2), rtol=0, atol=2e-5)
  np.testing.assert_allclose(c.noise, steps * t[:, 0], rtol=1e-6)
  np.testing.assert_allclose(c.inner, 1 - t[:, 0], rtol=1e-4)


def test_edm_is_that_of_the_shipped_prior():
  sigma = jnp.asarray(SIGMA, jnp.float32)
  for found, expected in zip(
    EDM(0.7).scalings(sigma), edm.precondition(sigma, 0.7)
  ):
    np.testing.assert_array_equal(found, expected)


def test_refusals():
  with refused(ValueError, "schedule must be one of linear.*'sigmoid'"):
    VP(schedule="sigmoid")
  with refused(ValueError, "prediction must be one of"):
    VP(prediction="noise")
  for ends in ((0, 0.02), (0.02, 1e-4), (0.1, 1.0)):
    with refused(ValueError, "beta_start and beta_end must lie"):
      VP(beta_start=ends[0], beta_end=ends[1])
  with refused(ValueError, "steps must be at least 2"):
    VP(steps=1)
  with refused(ValueError, "sigma_data must be positive"):
    EDM(0.0)
