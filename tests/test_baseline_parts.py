"""What every baseline shares: settings, noise levels, transitions, products."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from posterior_jax import fields, priors, schedule
from posterior_jax.baselines import TASKS, adam, diffusion, tasks
from posterior_jax.denoising import predictor
from posterior_jax.linalg import reduce
from tests import oracles


def test_ddpm_levels_are_those_of_the_thousand_steps():
  found = schedule.ddpm(1000)
  kept, expected = 1.0, []
  for t in range(1000):
    kept *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
    expected.append(((1 - kept) / kept) ** 0.5)
  np.testing.assert_allclose(found, [*expected[::-1], 0], rtol=1e-12)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found[-2], (1e-4 / (1 - 1e-4)) ** 0.5, rtol=1e-9)


def test_ddpm_spacing():
  every = schedule.ddpm(1000)[::-1][1:]  # by timestep
  np.testing.assert_array_equal(schedule.ddpm(1), [every[999], 0])
  np.testing.assert_array_equal(
    schedule.ddpm(4), [every[999], every[666], every[333], every[0], 0]
  )
  quadratic = [999, 499, 292, 133, 0]  # 999 - floor(1000 sqrt(i / 4))
  np.testing.assert_array_equal(
    schedule.ddpm(5, spacing="quadratic"), [*every[quadratic], 0]
  )
  for spacing, most in (("uniform", 1000), ("quadratic", 500)):
    for levels in (2, 3, 100, most):
      found = schedule.ddpm(levels, spacing=spacing)
      assert found.shape == (levels + 1,) and (np.diff(found) < 0).all()
      assert (found[0], found[-2]) == (every[999], every[0])


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    (dict(levels=0), r"levels must lie in \[1, 1000\] for uniform"),
    (dict(levels=1001), r"levels must lie in \[1, 1000\]"),
    (dict(levels=501, spacing="quadratic"), r"levels must lie in \[1, 500\]"),
    (dict(levels=5, spacing="cubic"), "spacing must be one of uniform,"),
    (dict(levels=5, beta_min=0.0), "beta_min must lie in"),
    (dict(levels=5, beta_max=1.0), "beta_max below 1"),
    (dict(levels=5, beta_min=0.1), "beta_min must lie in"),
    (dict(levels=5, beta_max=np.nan), "beta_min must lie in"),
  ],
)
def test_ddpm_refuses_in_one_sentence(options, sentence):
  with oracles.refused(ValueError, sentence):
    schedule.ddpm(**options)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of every kind."""

  levels: int = 3
  scale: float = 0.5
  width: float = 1.0
  tau: float | None = None
  clip: bool = True
  law: Literal["linear", "cosine"] = "linear"

  def __post_init__(self):
    fields.check(self, {"levels": (1, 10), "scale": (0.0, 1.0)})


def test_fields_accept_what_is_allowed():
  Settings()
  Settings(1, 0.0, 1e9, 0.1, False, "cosine")
  Settings(10, 1, 2)  # whole numbers are numbers


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    (dict(levels=0), r"levels must lie in \[1, 10\], got 0"),
    (dict(levels=2.0), "levels must be an integer, got 2.0"),
    (dict(levels=True), "levels must be an integer, got True"),
    (dict(scale=1.5), r"scale must lie in \[0, 1\], got 1.5"),
    (dict(scale=float("nan")), r"scale must lie in \[0, 1\], got nan"),
    (dict(scale="1"), "scale must be a number, got '1'"),
    (dict(scale=None), "scale must be a number, got None"),
    (dict(scale=True), "scale must be a number, got True"),
    (dict(width=0.0), "width must be positive and finite, got 0.0"),
    (dict(width=float("inf")), "width must be positive and finite, got inf"),
    (dict(width=float("nan")), "width must be positive and finite, got nan"),
    (dict(tau=-1.0), "tau must be positive and finite or None, got -1.0"),
    (dict(tau="x"), "tau must be a number or None, got 'x'"),
    (dict(clip=1), "clip must be True or False, got 1"),
    (dict(law="log"), "law must be one of linear, cosine; got 'log'"),
  ],
)
def test_fields_refuse_in_one_sentence(changes, sentence):
  with oracles.refused(ValueError, sentence):
    Settings(**changes)


def test_settings_by_task():
  by_task = {"box_inpainting": 2.0}
  assert tasks.choose("box_inpainting", by_task, 1.0) == 2.0
  assert tasks.choose("motion_blur", by_task, 1.0) == 1.0
  assert tasks.choose(None, by_task, 1.0) == 1.0
  assert len(TASKS) == 5
  with oracles.refused(ValueError, "task must be one of super_resolution, "):
    tasks.choose("deblur", by_task, 1.0)


def level(sigma, following):
  return diffusion.Level(
    jnp.int32(0), jnp.float32(sigma), jnp.float32(following)
  )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_published_step_in_other_variables(eta):
  """Song et al. 2021, eq. 12 and 16, in VP variables and float64."""
  sigma, following = 1.7, 1.2
  alpha, after = 1 / (1 + sigma**2), 1 / (1 + following**2)
  key, rng = jax.random.key(3), np.random.default_rng(0)
  x, x0 = rng.standard_normal((2, 2, 4, 4, 1)).astype(np.float32)
  noise = np.asarray(jax.random.normal(key, x.shape), np.float64)
  state = alpha**0.5 * x.astype(np.float64)
  eps = (state - alpha**0.5 * x0) / (1 - alpha) ** 0.5
  spread = eta * ((1 - after) / (1 - alpha)) ** 0.5
  spread *= (1 - alpha / after) ** 0.5
  moved = after**0.5 * x0 + (1 - after - spread**2) ** 0.5 * eps
  expected = (moved + spread * noise) / after**0.5
  found = diffusion.ddim(
    key, jnp.asarray(x), jnp.asarray(x0), level(sigma, following), eta
  )
  # A handful of float32 operations on numbers of order 1.
  np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_ends_in_the_clean_image(eta):
  x, x0 = jnp.ones((2, 4, 4, 1)), jnp.full((2, 4, 4, 1), 0.25)
  found = diffusion.ddim(jax.random.key(0), x, x0, level(0.01, 0.0), eta)
  np.testing.assert_array_equal(found, x0)


def test_products_are_those_of_the_jacobian():
  """Of a Gaussian denoiser: S / (S + sigma^2), in float64, in any batch."""
  prior = priors.gaussian_prior(priors.power_law_spectrum(4, 6))
  x, v = np.random.default_rng(1).standard_normal((2, 3, 2, 4, 6, 2))
  sigma = 0.7
  cov = oracles.fourier_diagonal(np.asarray(prior.spectrum, np.float64))
  gain = np.linalg.solve(cov + sigma**2 * np.eye(24), cov)
  x0, product = predictor.clean_with_vjp(
    prior.denoise, jnp.asarray(np.float32(x)), jnp.float32(sigma)
  )
  for given, found in ((x, x0), (v, product(jnp.asarray(np.float32(v))))):
    flat = given.reshape(6, 24, 2)
    expected = np.einsum("ij,mjc->mic", gain, flat).reshape(given.shape)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_products_stop_where_a_pixel_saturates():
  def denoise(x, sigma):
    return 2.0 * x

  x = jnp.full((1, 1, 2, 2, 1), 0.25).at[0, 0, 0, 0].set(3.0)
  x0, product = predictor.clean_with_vjp(
    denoise, x, jnp.float32(1.0), clip=True
  )
  np.testing.assert_allclose(x0[0, 0, ..., 0], [[1.0, 0.5], [0.5, 0.5]])
  pulled = product(jnp.ones_like(x))[0, 0, ..., 0]
  np.testing.assert_allclose(pulled, [[0.0, 2.0], [2.0, 2.0]])


def test_image_norm():
  x = np.random.default_rng(2).standard_normal((3, 2, 4, 5, 2))
  expected = np.linalg.norm(x.reshape(3, 2, -1), axis=-1)
  found = reduce.norm(jnp.asarray(np.float32(x)))
  assert found.shape == (3, 2, 1, 1, 1)
  np.testing.assert_allclose(found[..., 0, 0, 0], expected, rtol=1e-6)


def test_adam_is_that_of_optax():
  rng = np.random.default_rng(4)
  x = jnp.asarray(rng.standard_normal((2, 3, 3, 1)), jnp.float32)
  moments = adam.start(x)
  rule = optax.scale_by_adam(b1=0.8, b2=0.95)
  with jax.numpy_dtype_promotion("standard"):
    state = rule.init(x)
    for count in range(5):
      slope = jnp.asarray(np.float32(rng.standard_normal(x.shape)))
      expected, state = rule.update(slope, state)
      found, moments = adam.direction(
        moments,
        slope,
        jnp.int32(count),
        first_decay=0.8,
        second_decay=0.95,
      )
      np.testing.assert_allclose(found, expected, atol=1e-5)
