"""What users of other restoration packages reported, where no test had it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from configs import restore as config
from experiments.restore.measurement.degradation import degradation
from experiments.restore.measurement.observed import observe
from experiments.restore.picture_files import kernel_file
from posterior_jax import operators
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

KERNEL = np.arange(1.0, 10).reshape(3, 3) / 45


@pytest.mark.parametrize("boundary", ["reflect", "circular", "valid"])
def test_one_convention_of_kernels_whatever_the_border(boundary, tmp_path):
  """deepinv/deepinv#954: even kernels had two, one for each border.

  claroche-r/DMBSR#4: which of an operator and its transpose flips.
  """
  operator = operators.blur((9, 9, 1), KERNEL, boundary=boundary)
  height, width, _ = operator.measurement_shape
  impulse = jnp.zeros((9, 9, 1)).at[4, 4].set(1)
  rows = slice(height // 2 - 1, height // 2 + 2)
  found = operator.forward(impulse)[rows, rows, 0]
  np.testing.assert_allclose(found, KERNEL[::-1, ::-1], atol=1e-6)
  impulse = jnp.zeros((height, width, 1)).at[height // 2, width // 2].set(1)
  found = operator.adjoint(impulse)[3:6, 3:6, 0]
  np.testing.assert_allclose(found, KERNEL, atol=1e-6)
  with refused(ValueError, r"kernel must have shape \[k, k\] with k odd"):
    operators.blur((9, 9, 1), np.ones((4, 4)) / 16, boundary=boundary)
  np.save(tmp_path / "even.npy", np.ones((4, 4)))
  with refused(ValueError, "kernel must have two odd sides"):
    kernel_file.read(str(tmp_path / "even.npy"))


@pytest.mark.parametrize(
  "name", [pytest.param("nfc", marks=pytest.mark.slow), "ddnm"]
)
def test_a_mask_may_have_any_size(name):
  """wyhuai/DDNM#73: no degradation for a random mask on an odd size."""
  shape = (41, 37, 3)
  # Narrow, so that a sampler which clips to [-1, 1] clips nothing.
  spectrum = pj.priors.power_law_spectrum(*shape[:2], pixel_std=0.2)
  prior = pj.priors.gaussian_prior(spectrum)
  operator = operators.random_inpainting(shape, fraction=0.5)
  truth = prior.sample(jax.random.key(0), (1,), channels=3)
  noise = 0.02 * jax.random.normal(jax.random.key(1), truth.shape)
  given = pj.Observation(operator.forward(truth + noise), operator, 0.02)
  sampler = {
    "nfc": pj.nfc(pj.NFCConfig.fast(levels=5), spectrum=prior.spectrum),
    "ddnm": pj.baselines.ddnm(pj.baselines.DDNMConfig.tuned(levels=20)),
  }[name]
  x, _ = pj.run(sampler, prior.denoise, given, jax.random.key(2))
  error = jnp.abs(x[0] - truth)
  seen = jnp.broadcast_to(operator.mask, shape) > 0
  assert jnp.mean(error[:, seen]) < 0.1
  assert jnp.mean(error[:, ~seen]) < 0.75 * jnp.mean(jnp.abs(truth))


def test_a_picture_that_is_degraded_already_is_measured_as_it_is():
  """wyhuai/DDNM#63, #70: one's own small picture was made smaller first."""
  picture = np.random.default_rng(0).uniform(-1, 1, (32, 40, 3))
  how = degradation("super_resolution", factor=4)
  given = observe(
    picture.astype(np.float32),
    how.build,
    enlarge=how.enlarge,
    noise_std=0.02,
    degrade=config.get_config().degrade,  # what a command leaves out
    seed=0,
    margin=how.margin,
  )
  assert given.truth is None
  np.testing.assert_array_equal(
    given.observation.y[0], picture.astype(np.float32)
  )
  operator = given.observation.operator
  inside = operator.interior(jnp.zeros(operator.image_shape))
  assert inside.shape == (128, 160, 3)


@pytest.mark.parametrize(
  "task",
  ["gaussian_blur", pytest.param("super_resolution", marks=pytest.mark.slow)],
)
def test_noise_does_not_ruin_ddnm(task):
  """wyhuai/DDNM#82: below 10 dB with noise of 0.05, or not implemented."""
  shape = (16, 16, 3)
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(*shape[:2]))
  operator = {
    "gaussian_blur": operators.gaussian_blur(shape, size=5, std=1.0),
    "super_resolution": operators.super_resolution(shape),
  }[task]
  truth = prior.sample(jax.random.key(0), (1,), channels=3)
  clean = operator.forward(truth)
  noise = 0.05 * jax.random.normal(jax.random.key(1), clean.shape)
  given = pj.Observation(clean + noise, operator, 0.05)
  sampler = pj.baselines.ddnm(pj.baselines.DDNMConfig.tuned(levels=10))
  x, _ = pj.run(sampler, prior.denoise, given, jax.random.key(2))
  exact, _ = pj.priors.posterior_mean(prior, given)
  error, least = (float(jnp.mean((a - truth) ** 2)) for a in (x[0], exact))
  assert error < 3 * least
