"""The sampler as a whole: its interface, its one scan, its refusals."""

import dataclasses
import functools
import itertools
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
  Fusion,
  Gradient,
  Jacobian,
  Langevin,
  Mean,
  Ode,
  Radial,
  Schedule,
  Sigma,
  Snr,
  Spectrum,
  levels_of,
)
from tests import make_sampler_fixtures, oracles

SHAPE = (16, 16, 1)
PAPER = NFCConfig.paper(levels=4, inner={"steps": 5})
CONFIGS = {
  "calibrated": NFCConfig.calibrated(levels=4),
  "restoration": NFCConfig.restoration(
    levels=20, inner={"max_iterations": 200}
  ),
  "paper": PAPER,
  "gradient": NFCConfig(levels=4, inner=Gradient(steps=5)),
  "snr band": NFCConfig(levels=4, band=Band(Snr(), blend="additive")),
  "log-sigma band": NFCConfig(
    levels=4, band=Band(Radial("log_sigma", shape="gaussian"))
  ),
  "heun": NFCConfig(levels=3, predictor=Ode("heun"), width=Sigma()),
  "two-step solver": NFCConfig(
    levels=3,
    predictor=Ode("dpm_solver_2m"),
    fusion=Fusion("bior4.4", levels=2, high=0.5, unlock="base"),
  ),
}
OPERATORS = {
  "resize": lambda: operators.super_resolution(SHAPE),
  "box": lambda: operators.box_inpainting(SHAPE, size=6),
  "random": lambda: operators.random_inpainting(SHAPE),
  "blur": lambda: operators.gaussian_blur(SHAPE, size=5, std=1.0),
}


@functools.cache
def the_prior():
  spectrum = priors.power_law_spectrum(*SHAPE[:2])
  return priors.GaussianPrior(spectrum, jnp.zeros(()))


@pytest.fixture(scope="module")
def prior():
  return the_prior()


def observe(operator, prior, seed=0, noise_std=0.05, count=2):
  keys = jax.random.split(jax.random.key(seed))
  truth = prior.sample(keys[0], (count,), channels=1)
  clean = operator.forward(truth)
  noise = noise_std * jax.random.normal(keys[1], clean.shape)
  return Observation(clean + noise, operator, noise_std)


def quick(sampler, denoise, num_samples=1):
  """`run` on (observation, key), compiled in half the time."""

  def draw(observation, key):
    return run(sampler, denoise, observation, key, num_samples=num_samples)

  return oracles.quick_jit(draw)


@functools.cache
def three_samples(name):
  """`quick` of a setting: one program for all tests of an operator."""
  prior = the_prior()
  sampler = nfc(CONFIGS[name], spectrum=prior.spectrum)
  return quick(sampler, prior.denoise, 3)


PAIRS = [("calibrated", operator) for operator in OPERATORS] + [
  ("restoration", "box"),
  ("paper", "random"),
  pytest.param("paper", "resize", marks=pytest.mark.slow),
  ("gradient", "resize"),
  ("snr band", "resize"),
  pytest.param("snr band", "box", marks=pytest.mark.slow),
  ("log-sigma band", "blur"),
  ("heun", "random"),
  ("two-step solver", "blur"),
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


@pytest.mark.parametrize("inner", [Exact, Mean])
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
    "blur",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("resize", "box")),
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


def test_loop_of_steps_is_run(prior):
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["blur"](), prior)
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
    "random",
    "blur",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("resize", "box")),
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


@pytest.mark.parametrize("name", ["calibrated", "restoration"])
def test_odd_images_under_weights_of_one(name):
  shape = (15, 13, 1)
  spectrum = priors.power_law_spectrum(*shape[:2])
  prior = priors.gaussian_prior(spectrum)
  operator = operators.gaussian_blur(shape, size=5, std=1.0)
  draw = quick(nfc(CONFIGS[name], spectrum=spectrum), prior.denoise)
  samples, _ = draw(observe(operator, prior), jax.random.key(0))
  assert samples.shape == (1, 2, *shape)
  assert np.isfinite(samples).all()


@pytest.mark.parametrize("name", ["calibrated", "paper"])
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
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["blur"](), prior)
  key = jax.random.key(0)
  plain, _ = run(
    sampler,
    lambda x, sigma: prior.denoise(x, sigma),
    observation,
    key,
    num_samples=3,
  )
  method, _ = three_samples("calibrated")(observation, key)
  np.testing.assert_allclose(plain, method, atol=1e-5)


def test_what_dropped_pixels_hold_is_never_read(prior):
  sampler = nfc(CONFIGS["snr band"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["random"](), prior)
  hole = 1 - observation.operator.mask
  other = dataclasses.replace(observation, y=observation.y + 9 * hole)
  key = jax.random.key(0)
  draw = quick(sampler, prior.denoise)
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


@pytest.mark.parametrize(
  ("averaged", "factor"),
  [
    ("refined", 1.0),
    ("predicted", 2.0),  # as `restoration` has them
    pytest.param("refined", 2.0, marks=pytest.mark.slow),
    pytest.param("predicted", 1.0, marks=pytest.mark.slow),
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


BAD_CONFIGS = {
  "levels": (dict(levels=0), r"levels must lie in \[1, 10000\], got 0"),
  "solver": (
    dict(predictor={"solver": "rk4"}),
    "solver must be one of euler, heun, dpm_solver_2m",
  ),
  "predictor": (dict(predictor="heun"), "must be one of Denoise, Ode; got 'h"),
  "cutoff": (
    dict(band={"mask": {"law": "fast"}}),
    "law must be one of 'step', 'log_sigma', Exponential; got 'fast'",
  ),
  "cutoff_start": (
    dict(band={"mask": {"cutoff_start": 0.0}}),
    "cutoff_start must lie in",
  ),
  "blend": (dict(band={"blend_start": 1.5}), "blend_start must lie in"),
  "no blend": (dict(band={"blend_start": 0.0}), "no band is band=None"),
  "nan": (dict(schedule={"rho": float("nan")}), "rho must lie in"),
  "sigma": (dict(schedule={"sigma_min": 200.0}), "sigma_min must lie in"),
  "step": (dict(inner={"step_size": 0.0}), "step_size must be positive"),
  "tau": (dict(inner_noise_std=-1.0), "inner_noise_std must be positive"),
  "haar": (dict(fusion={"levels": 4}), "levels must lie in"),
  "three": (dict(fusion={"high": (0.2, 0.2, 2.0)}), "high must lie in"),
  "two": (dict(fusion={"high": (0.2, 0.2)}), "high must be a number or 3 of"),
  "power": (dict(band={"power": 3}), "power must be one of 1, 2; got 3"),
  "end": (dict(band={"blend_end": -0.1}), "blend_end must lie in"),
  "wavelet": (
    dict(fusion={"wavelet": "db3"}),
    "wavelet must be one of haar, db2, bior4.4",
  ),
  "unlock": (
    dict(fusion={"unlock": "late"}),
    "unlock must be one of product, clip, base",
  ),
  "whole": (dict(levels=2.5), "levels must be an integer, got 2.5"),
  "switch": (dict(halved_misfit="no"), "halved_misfit must be True or False"),
  "not its own": (
    dict(width={"inflation": 2.0}),
    "inflation is no field of Sigma, which has factor",
  ),
  "a word": (dict(width="sigma"), "width must be one of Sigma, Spectrum, Pro"),
}


@pytest.mark.parametrize("name", ["max_iterations", "root_steps"])
def test_counts_that_may_be_open_are_whole(name):
  assert getattr(Exact(**{name: None}), name) is None
  with pytest.raises(ValueError, match=f"{name} must be an integer, got 6.5"):
    Exact(**{name: 6.5})


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_settings_are_one_sentence(case):
  changes, sentence = BAD_CONFIGS[case]
  with pytest.raises(ValueError, match=sentence) as caught:
    PAPER.replace(**changes)
  assert "\n" not in str(caught.value)


BAD_SPECTRA = {
  "missing": (lambda s: None, "spectrum is needed by"),
  "rank": (lambda s: s[0], r"spectrum must have shape \[H, W\]"),
  "negative": (lambda s: -s, "spectrum must be positive and finite"),
  "not even": (lambda s: s.at[0, 1].set(9.0), "must be even"),
}


@pytest.mark.parametrize("case", BAD_SPECTRA)
def test_bad_spectra_are_one_sentence(case, prior):
  change, sentence = BAD_SPECTRA[case]
  with pytest.raises(ValueError, match=sentence):
    nfc(NFCConfig(), spectrum=change(prior.spectrum))


def refuse(prior, sentence, error=ValueError, **changes):
  """The sentence must come before the denoiser is ever traced."""
  called = []

  def denoise(x, sigma):
    called.append(1)
    return x

  arguments = {
    "sampler": nfc(CONFIGS["calibrated"], spectrum=prior.spectrum),
    "denoise": denoise,
    "observation": observe(OPERATORS["blur"](), prior),
    "key": jax.random.key(0),
    "num_samples": 1,
  } | changes
  with pytest.raises(error, match=sentence) as caught:
    run(**arguments)
  assert "\n" not in str(caught.value)
  assert not called


def test_bad_calls_are_one_sentence(prior):
  good = observe(OPERATORS["blur"](), prior)

  def changed(**fields):
    return {"observation": dataclasses.replace(good, **fields)}

  refuse(prior, "num_samples must be at least 1", num_samples=0)
  refuse(prior, "must be an integer", TypeError, num_samples=2.5)
  refuse(prior, "y must be an array", TypeError, **changed(y=[1.0]))
  whole = np.zeros(good.y.shape, np.uint8)
  refuse(prior, "y must be floating point", TypeError, **changed(y=whole))
  refuse(prior, "at least one observation", **changed(y=good.y[:0]))
  refuse(prior, "denoise must be callable", TypeError, denoise=3)
  one = r"key must be one key, as jax\.random\.key\(0\), got "
  refuse(prior, one + "int", TypeError, key=0)
  keys = jax.random.split(jax.random.key(0))
  refuse(prior, one + r"key<fry> of shape \(2,\)", TypeError, key=keys)
  refuse(prior, one + "float32", TypeError, key=jnp.zeros(2))
  config = CONFIGS["calibrated"]
  refuse(prior, "sampler must be a Sampler", TypeError, sampler=config)
  with pytest.raises(
    TypeError, match="config must be an NFCConfig, got method"
  ):
    nfc(NFCConfig.calibrated)
  refuse(prior, r"y must have shape \[N, 16", **changed(y=good.y[0]))
  refuse(prior, r"y must have shape", **changed(y=good.y[:, :8]))
  refuse(prior, "y must be finite", **changed(y=good.y.at[0].set(jnp.nan)))
  sentence = "noise_std must be a positive"
  for noise in (0.0, -1.0, np.nan, "0.1"):
    with oracles.refused(ValueError, sentence):
      changed(noise_std=noise)
  # Arrays may still be computed when an observation is made.
  for noise in (jnp.zeros(()), jnp.asarray(-1.0), np.ones(3), None):
    refuse(prior, sentence, **changed(noise_std=noise))
  refuse(
    prior,
    "operator must be a posterior_jax Operator",
    TypeError,
    **changed(operator=lambda x: x),
  )


def test_denoiser_of_another_shape(prior):
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["blur"](), prior)
  for wrong in (lambda x, sigma: x[:1], lambda x, sigma: (x, x)):
    with pytest.raises(ValueError, match="denoise must return images"):
      run(sampler, wrong, observation, jax.random.key(0))


def test_images_that_do_not_fit_the_settings(prior):
  """A spectrum of another size, and an odd image under Haar weights."""
  wide = (18, 16, 1)
  operator = operators.gaussian_blur(wide, size=5, std=1.0)
  observation = Observation(jnp.zeros((1, *wide)), operator, 0.1)
  refuse(
    prior, r"spectrum .*must be that of the image", observation=observation
  )
  odd = (15, 16, 1)
  operator = operators.gaussian_blur(odd, size=5, std=1.0)
  sampler = nfc(PAPER.replace(fusion={"levels": 2}))
  refuse(
    prior,
    "divisible by 4",
    sampler=sampler,
    observation=Observation(jnp.zeros((1, *odd)), operator, 0.1),
  )


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
