"""The sampler as a whole: its interface, its one scan, its bits."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax
from posterior_jax import (
  NFCConfig,
  Observation,
  SamplerState,
  metrics,
  nfc,
  operators,
  priors,
  run,
)
from posterior_jax.nfc_sampler import (
  Band,
  Exact,
  Jacobian,
  Langevin,
  Mean,
  Radial,
  Sigma,
  Spectrum,
)
from tests import make_sampler_fixtures
from tests.sampled import (
  CONFIGS,
  OPERATORS,
  SHAPE,
  observe,
  quick,
  the_prior,
  three_samples,
)


@pytest.fixture(scope="module")
def prior():
  return the_prior()


PAIRS = [
  ("calibrated", "resize"),
  ("calibrated", "random"),
  ("restoration", "box"),
  ("paper", "random"),
  ("gradient", "resize"),
  ("snr band", "random"),
  ("log-sigma band", "blur"),
  ("heun", "random"),
  *(
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in (
      *(("calibrated", "box"), ("calibrated", "blur"), ("paper", "resize")),
      *(("snr band", "resize"), ("snr band", "box")),
      ("two-step solver", "blur"),
    )
  ),
]


@pytest.mark.parametrize(("name", "operator"), PAIRS)
def test_every_setting_samples(name, operator, prior):
  config = CONFIGS[name]
  observation = observe(OPERATORS[operator](), prior)
  samples, info = three_samples(name)(observation, jax.random.key(1))
  chex.assert_shape(samples, (3, 2, *SHAPE))
  chex.assert_type(samples, jnp.float32)
  chex.assert_tree_all_finite((samples, info))
  chex.assert_shape(info.sigma, (config.levels,))
  chex.assert_shape(info.residual, (config.levels, 3, 2))
  assert info.sigma[0] == 100
  ramp = info.sigma[: config.levels - config.held_levels]
  assert (jnp.diff(ramp) < 0).all()
  # The step's last image is the sample itself: no noise is added after it.
  last = metrics.measurement_residual(samples, observation)
  np.testing.assert_allclose(info.residual[-1], last, rtol=1e-4)
  if isinstance(config.inner, Exact | Mean):
    limit = max(1e-4, 2 * config.stop.tolerance)
    assert float(info.solve.relative_residual.max()) < limit
    if config.fusion is None:
      assert float(last.max()) < 2  # reaches the measurement in a few levels


def test_loop_of_steps_is_run(prior):
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["resize"](), prior)
  key = jax.random.key(7)
  samples, info = three_samples("calibrated")(observation, key)
  key_init, key_steps = jax.random.split(key)
  init = jax.jit(sampler.init, static_argnums=2)
  state = init(key_init, observation, 3)
  assert isinstance(state, SamplerState)
  step = jax.jit(
    lambda state, step_key: sampler.step(
      state, prior.denoise, observation, step_key
    )
  )
  residuals = []
  for step_key in jax.random.split(key_steps, sampler.num_steps):
    state, found = step(state, step_key)
    residuals.append(found.residual)
  np.testing.assert_allclose(state.x, samples, atol=2e-5)
  np.testing.assert_allclose(
    jnp.stack(residuals), info.residual, rtol=1e-3, atol=1e-5
  )
  assert int(state.level) == sampler.num_steps


def test_observations_and_samples_differ(prior):
  one = observe(OPERATORS["random"](), prior, count=1)
  both = dataclasses.replace(one, y=jnp.concatenate([one.y, one.y]))
  samples, _ = three_samples("calibrated")(both, jax.random.key(0))
  flat = np.asarray(samples).reshape(6, -1)
  for i in range(6):
    for j in range(i):
      assert np.abs(flat[i] - flat[j]).max() > 0.05


@pytest.mark.parametrize(
  "operator",
  [
    # A mask and a kernel are new data; a box is a mask, and a resizer is none.
    "blur",
    *(
      pytest.param(x, marks=pytest.mark.slow)
      for x in ("random", "resize", "box")
    ),
  ],
)
def test_one_trace_for_new_data(operator, prior):
  """Observations, masks or kernels, noise, keys and spectra share a trace."""
  traces = []

  def denoise(x, sigma, spectrum):
    traces.append(x.shape)
    return priors.GaussianPrior(spectrum, jnp.zeros(())).denoise(x, sigma)

  def build(i):
    return {
      "resize": lambda: operators.super_resolution(SHAPE),
      "box": lambda: operators.box_inpainting(SHAPE, size=6, corner=(i, 1)),
      "random": lambda: operators.random_inpainting(SHAPE, seed=i),
      "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0 + i),
    }[operator]()

  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  for i in range(3):
    partial = jax.tree_util.Partial(
      denoise, spectrum=(1.0 + i) * prior.spectrum
    )
    observation = observe(build(i), prior, seed=i, noise_std=0.05 * (1 + i))
    run(sampler, partial, observation, jax.random.key(i), num_samples=2)
  assert len(traces) == 1, traces


@pytest.mark.parametrize(
  "name", [pytest.param("calibrated", marks=pytest.mark.slow), "restoration"]
)
def test_odd_images_under_weights_of_one(name):
  shape = (15, 13, 1)
  spectrum = priors.power_law_spectrum(*shape[:2])
  prior = priors.gaussian_prior(spectrum)
  operator = operators.gaussian_blur(shape, size=5, std=1.0)
  draw = quick(nfc(CONFIGS[name], spectrum=spectrum), prior.denoise)
  samples, _ = draw(observe(operator, prior), jax.random.key(0))
  assert samples.shape == (1, 2, *shape)
  assert np.isfinite(samples).all()


@pytest.mark.parametrize(
  "name", [pytest.param("calibrated", marks=pytest.mark.slow), "paper"]
)
def test_float64_mode_changes_nothing(name, prior):
  sampler = nfc(CONFIGS[name], spectrum=prior.spectrum)
  observation = observe(OPERATORS["random"](), prior)
  key = jax.random.key(3)
  expected, _ = three_samples(name)(observation, key)
  with jax.enable_x64(True):
    y = np.asarray(observation.y, np.float64)
    wide = Observation(jnp.asarray(y), observation.operator, 0.05)
    found, _ = run(sampler, prior.denoise, wide, key, num_samples=3)
    assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_plain_function_is_a_denoiser(prior):
  sampler = nfc(CONFIGS["gradient"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["resize"](), prior)
  key = jax.random.key(0)
  plain, _ = run(
    sampler,
    lambda x, sigma: prior.denoise(x, sigma),
    observation,
    key,
    num_samples=3,
  )
  method, _ = three_samples("gradient")(observation, key)
  np.testing.assert_allclose(plain, method, atol=1e-5)


def test_what_dropped_pixels_hold_is_never_read(prior):
  observation = observe(OPERATORS["random"](), prior)
  hole = 1 - observation.operator.mask
  other = dataclasses.replace(observation, y=observation.y + 9 * hole)
  key = jax.random.key(0)
  draw = three_samples("snr band")
  same, first = draw(observation, key)
  found, second = draw(other, key)
  np.testing.assert_array_equal(same, found)
  np.testing.assert_array_equal(first.residual, second.residual)


def test_blend_zero_and_an_open_band_are_the_plain_likelihood(prior):
  observation = observe(OPERATORS["blur"](), prior)
  config = NFCConfig(levels=3, inner=Mean(tolerance=1e-6))
  plain = nfc(config, spectrum=prior.spectrum)
  wide = Band(Radial(cutoff_start=1.0), blend_start=0.5)
  opened = nfc(config.replace(band=wide), spectrum=prior.spectrum)
  key = jax.random.key(0)
  expected, _ = quick(plain, prior.denoise)(observation, key)
  found, _ = quick(opened, prior.denoise)(observation, key)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_docstring_example_runs():
  text = posterior_jax.__doc__
  code = "\n".join(
    line[2:] for line in text.splitlines() if line.startswith("  ")
  )
  names = {}
  exec(code, names)
  shape = re.search(r"# \[([\d, ]+)\]", text)[1]
  assert names["samples"].shape == tuple(map(int, shape.split(",")))


def test_named_settings_are_those_published():
  paper = NFCConfig.paper()
  assert (paper.levels, paper.schedule.rho) == (200, 7)
  schedule = paper.schedule
  assert (schedule.sigma_max, schedule.sigma_min) == (100, 0.1)
  assert (paper.predictor.solver, paper.predictor.steps) == ("euler", 5)
  assert paper.inner == Langevin(200, step_size=5e-5, decay=0.01)
  band = paper.band
  assert (band.blend_start, band.mask.cutoff_start) == (0.35, 0.4)
  assert (band.blend_end, band.mask.cutoff_end) == (0, 1)
  fusion = paper.fusion
  assert (fusion.high, fusion.unlock_start, fusion.unlock_end) == (
    0.2,
    0.05,
    1.0,
  )
  assert (paper.width, paper.halved_misfit) == (Sigma(), False)
  assert NFCConfig.calibrated(levels=7).levels == 7
  best = NFCConfig.restoration()
  assert (best.inner, best.schedule.averaged) == (Mean(), "predicted")
  assert best.width == Jacobian(factor=2)
  assert best.stop == (1e-2, 3)
  assert NFCConfig.restoration(levels=19).stop.max_iterations == 20
  assert dataclasses.replace(best, levels=19).stop.max_iterations == 20
  spectral = NFCConfig.restoration(width=Spectrum())
  assert spectral.stop == (1e-4, 500)
  assert dataclasses.replace(best, width=Spectrum()).stop == (1e-4, 500)
  assert NFCConfig.paper(inner={"steps": 3}).inner.steps == 3
  assert len({best, NFCConfig.restoration(), paper}) == 2  # by value


PROBLEMS = [
  "paper",
  "calibrated",
  "restoration by spectrum",
  # Its solves stop early, at what rounding makes of twenty iterations.
  pytest.param("restoration", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_change_of_the_code_has_moved_a_key_or_a_level(name):
  problem = make_sampler_fixtures.problem(name)
  keys = jax.random.split(jax.random.key(0), 3)[2], jax.random.key(1)
  found, other = (run(*problem, key, num_samples=2)[0] for key in keys)
  assert np.abs(found - other).max() > 0.05
  with np.load(make_sampler_fixtures.FILE) as stored:
    # Rounding of another jaxlib or processor, no more: pixels are of order 1.
    np.testing.assert_allclose(found, stored[name], atol=1e-3)


# Last: it forgets the programs that the others share.
@pytest.mark.parametrize(
  "name",
  [
    "paper",
    *(pytest.param(x, marks=pytest.mark.slow) for x in PROBLEMS[1:3]),
    PROBLEMS[3],
  ],
)
def test_same_key_same_bits(name):
  """Compiled twice."""
  first = make_sampler_fixtures.samples(name)
  jax.clear_caches()
  again = make_sampler_fixtures.samples(name)
  assert np.asarray(first).tobytes() == again.tobytes()
