"""The closed form of a run against runs, and what it says of continuation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import continuation as configs
from experiments.continuation import (
  closed_form,
  doubt,
  mixtures,
  phase,
  photographs,
  tables,
)
from experiments.continuation.chain import (
  Problem,
  expected_psnr,
  published_psnr,
  transfer,
)
from experiments.continuation.settings import FEW, NOISY, WRONG, Settings
from experiments.data import degradations
from experiments.harness import command_line
from posterior_jax import (
  NFCConfig,
  Observation,
  nfc,
  operators,
  priors,
  run,
  schedule,
  uncertain,
)
from posterior_jax.nfc_sampler import (
  Band,
  Exact,
  Mean,
  Sigma,
  Snr,
  Spectrum,
  Width,
  levels_of,
  parts_of,
)
from tests.oracles import refused

SIZE, NOISE, LEVELS, COUNT = 8, 0.1, 4, 3000
POWER = priors.power_law_spectrum(SIZE, SIZE)
# The variants that are settings of the sampler.
CONFIGS = {
  "no band": dict(width=Sigma()),
  "S / (S + sigma^2)": dict(
    width=Sigma(), band=Band(Snr(), power=1, blend_start=1.0, blend_end=1.0)
  ),
  "width of the spectrum": dict(width=Spectrum()),
}
QUICK = [("no band", Mean), ("width of the spectrum", Mean)]


@pytest.mark.parametrize(
  "variant, inner",
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(CONFIGS, (Mean, Exact))
  ],
)
def test_expected_error_is_that_of_runs(variant, inner):
  """With the truth's own operator and one that is not its own."""
  made, told = (
    operators.gaussian_blur((SIZE, SIZE, 1), size=5, std=s, boundary="circular")
    for s in (1.0, 0.7)
  )
  prior = priors.gaussian_prior(POWER)
  keys = jax.random.split(jax.random.key(0), 3)
  truth = prior.sample(keys[0], (COUNT,), channels=1)
  clean = made.forward(truth)
  y = clean + NOISE * jax.random.normal(keys[1], clean.shape)
  config = NFCConfig(levels=LEVELS, inner=inner(), **CONFIGS[variant])
  sampler = nfc(config, spectrum=POWER)
  found, _ = run(sampler, prior.denoise, Observation(y, told, NOISE), keys[2])
  error = jnp.mean((found[0] - truth) ** 2)
  power = np.asarray(POWER, np.float64)
  gains = [transfer(np.asarray(o.kernel), SIZE) for o in (made, told)]
  expected = expected_psnr(
    Problem(power, *gains, NOISE, NOISE),
    LEVELS,
    *closed_form.laws(power)[variant],
    draws=inner is Exact,
  )
  # 3000 images of 64 coefficients: the error is known to about 1 %.
  assert abs(10 * np.log10(4 / error) - expected) < 0.1


def test_published_error_is_that_of_runs():
  """Euler steps, Langevin updates and a step size that decays."""
  operator = operators.gaussian_blur(
    (SIZE, SIZE, 1), size=5, std=0.7, boundary="circular"
  )
  prior = priors.gaussian_prior(POWER)
  keys = jax.random.split(jax.random.key(0), 3)
  truth = prior.sample(keys[0], (COUNT // 3,), channels=1)
  clean = operator.forward(truth)
  y = clean + NOISE * jax.random.normal(keys[1], clean.shape)
  config = NFCConfig.paper(
    levels=3,
    inner={"steps": 20, "step_size": 3e-4, "decay": 0.1},
    inner_noise_std=0.03,
    band=None,
    fusion=None,
  )
  observation = Observation(y, operator, NOISE)
  found, _ = run(nfc(config), prior.denoise, observation, keys[2])
  error = jnp.mean((found[0] - truth) ** 2)
  gain = transfer(np.asarray(operator.kernel), SIZE)
  power = np.asarray(POWER, np.float64)
  problem = Problem(power, gain, gain, NOISE, NOISE)
  expected = published_psnr(problem, config)
  assert abs(10 * np.log10(4 / error) - expected) < 0.15


def test_a_wide_kernel_wraps_around():
  kernel = np.random.default_rng(0).random((5, 7))
  image = np.random.default_rng(1).random((4, 4))
  found = np.fft.ifft2(np.fft.fft2(image) * transfer(kernel, 4)).real
  expected = np.zeros((4, 4))
  for i, row in enumerate(kernel):
    for j, tap in enumerate(row):
      expected += tap * np.roll(image, (i - 2, j - 3), (0, 1))
  np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_what_continuation_is_worth():
  """The predictions that the config's docstring and the docs repeat."""
  config = configs.get_config()
  config.kernels = ("medium", "long")
  config.levels = (3, 5, 20, 200)
  settings = command_line.to_settings(Settings, config)
  psnr = {
    (row["hypothesis"], row["kernel"], row["variant"], row["levels"]): row[
      "psnr"
    ]
    for row in closed_form.rows(settings)
  }

  def gain(hypothesis, levels, band, control, kernel):
    return (
      psnr[hypothesis, kernel, band, levels]
      - psnr[hypothesis, kernel, control, levels]
    )

  for kernel in settings.kernels:
    few = [
      gain("few calls", levels, "S / (S + sigma^2)", "no band", kernel)
      for levels in settings.levels
    ]
    assert few[0] > 10 and few[1] > 3 and 0 < few[2] < 0.3
    assert abs(few[3]) < 0.1
    names = "turned, band", "turned, no band"
    assert gain("wrong kernel", 20, *names, kernel) > 1
    # The mean of the turns is the better kernel, but not the right one.
    names = "turned, mean kernel, band", "turned, band"
    assert gain("wrong kernel", 20, *names, kernel) > 0.2
    names = "right, band", "right, no band"
    assert -1.3 < gain("wrong kernel", 20, *names, kernel) < -0.5
    decays, stays = ", step that decays", ", step that stays"
    exact = "tau the noise, step as published" + decays
    larger = "tau the noise, step 50 times as large" + decays
    paper = "tau as published"
    apart = "tau and step", 200
    assert gain(*apart, paper + decays, exact, kernel) > 2.5
    assert gain(*apart, larger, exact, kernel) > 1
    assert gain(*apart, paper + decays, paper + stays, kernel) > 5
    tau = "tau 0.2 of the noise, "
    names = tau + "hard, S > sigma^2", tau + "no band"
    assert gain("strong noise", 5, *names, kernel) > 10


def _mixture(modes, count, weighted, sigma_max):
  """Particles of a mixture in two dimensions, of which one is measured."""
  centres = np.array([[-1.0, -0.5], [0.5, 1.0], [1.0, -1.0]])[:modes]
  prior = priors.gaussian_mixture(
    jnp.arange(1.0, modes + 1), jnp.asarray(centres).reshape(-1, 1, 2, 1), 0.2
  )
  matrix, y, noise = jnp.array([[0.3, 0.8]]), jnp.array([0.2]), 0.5
  nodes = jnp.asarray(schedule.karras(8, sigma_max=sigma_max, sigma_min=0.05))
  found = mixtures.particles(
    prior,
    matrix,
    y,
    jnp.float32(noise),
    nodes.astype(jnp.float32),
    jax.random.key(0),
    count=count,
    weighted=weighted,
  )
  return prior, found, priors.mixture_posterior(prior, matrix, y, noise)


def test_a_gaussian_given_a_measurement():
  """Evidence and posterior of every particle, against dense algebra."""
  rng = np.random.default_rng(0)
  root, mean = rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3))
  covariance = root @ root.swapaxes(1, 2) + np.eye(3)
  matrix, y, noise = rng.standard_normal((2, 3)), rng.standard_normal(2), 0.4
  evidence, posterior = mixtures.given(
    mixtures.Gaussian(jnp.asarray(np.float32(mean)), _f32(covariance)),
    _f32(matrix),
    _f32(y),
    jnp.float32(noise),
  )
  logs = []
  for i in range(2):
    precision = np.linalg.inv(covariance[i]) + matrix.T @ matrix / noise**2
    spread = np.linalg.inv(precision)
    prior = np.linalg.solve(covariance[i], mean[i])
    centre = spread @ (prior + matrix.T @ y / noise**2)
    np.testing.assert_allclose(posterior.mean[i], centre, atol=1e-4)
    np.testing.assert_allclose(posterior.covariance[i], spread, atol=1e-4)
    seen = matrix @ covariance[i] @ matrix.T + noise**2 * np.eye(2)
    away = y - matrix @ mean[i]
    logs.append(
      -0.5 * away @ np.linalg.solve(seen, away)
      - 0.5 * np.linalg.slogdet(seen)[1]
    )
  np.testing.assert_allclose(evidence, logs, rtol=1e-4, atol=1e-4)


def _f32(a):
  return jnp.asarray(np.float32(a))


@pytest.mark.slow
def test_weights_of_a_gaussian_are_even():
  """Its chain of Gaussian draws is exact: nothing is left to put right."""
  _, found, posterior = _mixture(1, 2000, True, 100.0)
  # What is left is the first weight, at noise 100.
  assert float(jnp.ptp(found.log_weight)) < 2e-2
  mean = np.asarray(found.x.mean(0))
  spread = np.sqrt(np.diag(np.asarray(posterior.covariances[0])))
  assert np.abs((mean - posterior.mean) / spread).max() < 4 / 2000**0.5


@pytest.mark.slow
def test_weights_give_modes_their_shares():
  for weighted in (True, False):
    prior, found, posterior = _mixture(3, 20_000, weighted, 10.0)
    means = prior.means.reshape(3, 2)
    nearest = jnp.argmin(jnp.sum((found.x[:, None] - means) ** 2, -1), 1)
    weight = jax.nn.softmax(found.log_weight * float(weighted))
    shares = weight @ jax.nn.one_hot(nearest, 3)
    error = float(0.5 * jnp.abs(shares - posterior.weights).sum())
    assert error < 0.02 if weighted else error > 0.04, error


def test_the_small_form_is_large_enough_for_its_kernels():
  """Ended in a traceback: a kernel of 61 does not mirror an image of 16."""
  config = configs.get_config("debug")
  rows = list(closed_form.rows(command_line.to_settings(Settings, config)))
  assert len(rows) > 20 and all(np.isfinite(row["psnr"]) for row in rows)
  config.size = 31
  with refused(command_line.UsageError, r"size must lie in \[32, 512\]"):
    command_line.to_settings(Settings, config)


def test_photographs_have_the_settings_of_the_closed_form():
  config = configs.get_config("debug")
  config.levels, config.tau_shares, config.turn = (4, 7), (0.5,), 9.0
  given = command_line.to_settings(Settings, config)
  own = {}
  for case in photographs.cases(given):
    own.setdefault(case.hypothesis, []).append(case)
  for hypothesis in (FEW, NOISY):
    assert {case.config.levels for case in own[hypothesis]} == {4, 7}
  tau = {case.config.inner_noise_std for case in own[NOISY]}
  assert tau == {0.5 * given.strong_noise_std}
  assert {case.turn for case in own[WRONG]} == {0.0, 9.0}


def test_a_case_and_its_control_see_one_measurement():
  """On photographs: cases of one program, and what the sampler is told."""
  config = configs.get_config("debug")
  given = command_line.to_settings(Settings, config)
  groups = photographs.by_program(photographs.cases(given))
  assert all(len({case.config for case in group}) == 1 for group in groups)
  wrong = [
    case for group in groups for case in group if case.hypothesis == WRONG
  ]
  spectrum = priors.power_law_spectrum(64, 64)
  truth = jnp.zeros((1, 64, 64, 3))
  found = {}
  for case in wrong:
    problem = degradations.measure(case.degradation, truth, 0.05, 0)
    found[case.variant] = photographs.told(case, problem.observation, spectrum)
  plain, turned = found["right, no band"], found["turned, no band"]
  assert plain.others is turned.others is None
  plain, turned = plain.observation, turned.observation
  np.testing.assert_array_equal(plain.y, turned.y)
  assert np.abs(plain.operator.kernel - turned.operator.kernel).max() > 1e-3
  careful = found["turned, band"].observation.operator
  np.testing.assert_array_equal(careful.operator.kernel, turned.operator.kernel)
  assert 0 < float(careful.gain.min()) < 0.5 < float(careful.gain.max()) <= 1
  errors = found["turned, mean kernel, errors"]
  mean = np.asarray(errors.others).mean(0)
  np.testing.assert_allclose(
    errors.observation.operator.kernel, mean, atol=1e-7
  )
  np.testing.assert_array_equal(errors.observation.y, plain.y)
  banded = found["turned, mean kernel, band"].observation.operator
  np.testing.assert_allclose(banded.operator.kernel, mean, atol=1e-7)
  # Less is left to doubt about the mean than about any one of the turns.
  assert float(banded.gain.mean()) > float(careful.gain.mean())


def _unsure():
  """A blur of one of three kernels, and a prediction of two images."""
  rng = np.random.default_rng(0)
  kernels = rng.random((3, 3, 3))
  kernels = jnp.asarray(kernels / kernels.sum((1, 2), keepdims=True))
  kernels = kernels.astype(jnp.float32)
  operator = operators.blur((6, 6, 1), kernels.mean(0), boundary="circular")
  x0 = jnp.asarray(rng.standard_normal((1, 2, 6, 6, 1)), jnp.float32)
  y = jnp.asarray(rng.standard_normal((2, 6, 6, 1)), jnp.float32)
  return kernels, Observation(y, operator, 0.3), x0


def test_errors_of_the_prediction_are_noise():
  """Their covariance, added to the noise's, by dense algebra."""
  kernels, observation, x0 = _unsure()
  found = doubt.whitened(observation, x0, kernels)
  for n in range(2):
    errors = [
      uncertain.with_kernel(observation.operator, k).forward(x0[0, n])
      - observation.operator.forward(x0[0, n])
      for k in kernels
    ]
    e = np.stack([np.ravel(a) for a in errors], 1).astype(np.float64)
    noise = 0.3**2 * np.eye(36) + e @ e.T / 3
    r = np.asarray(observation.y[n], np.float64).ravel()
    expected = r @ np.linalg.solve(noise, r)
    # |W y|^2 / s^2 = y^T N^-1 y.
    got = float((found.y[0, n] ** 2).sum()) / 0.3**2
    np.testing.assert_allclose(got, expected, rtol=1e-4)
  u, v = (jax.random.normal(jax.random.key(i), (1, 2, 6, 6, 1)) for i in (0, 1))
  forward, adjoint = found.operator.forward(u), found.operator.adjoint(v)
  np.testing.assert_allclose(
    (forward * v).sum(), (u * adjoint).sum(), rtol=1e-4
  )
  np.testing.assert_allclose(
    found.y[0],
    found.operator.whiten(observation.y[None])[0],
    atol=1e-6,
  )


def test_the_likelihood_sees_the_errors():
  """The mean of a level, against dense algebra with the noise N."""
  kernels, observation, x0 = _unsure()
  config = NFCConfig(width=Sigma(), inner=Mean(1e-7, 300), levels=2)
  parts = doubt.careful(parts_of(config), kernels)
  level = jax.tree.map(lambda a: a[0], levels_of(config))
  variance = jnp.float32(0.5)
  found = parts.likelihood(
    jax.random.key(0), observation, x0, Width(variance), level
  )
  eye = jnp.eye(36).reshape(36, 6, 6, 1)
  matrix = np.asarray(observation.operator.forward(eye)).reshape(36, 36).T
  for n in range(2):
    e = [
      uncertain.with_kernel(observation.operator, k).forward(x0[0, n])
      - observation.operator.forward(x0[0, n])
      for k in kernels
    ]
    e = np.stack([np.ravel(a) for a in e], 1)
    noise = 0.3**2 * np.eye(36) + e @ e.T / 3
    weight = np.linalg.inv(noise)
    left = matrix.T @ weight @ matrix + np.eye(36) / 0.5
    c = np.asarray(x0[0, n]).ravel()
    right = matrix.T @ weight @ np.asarray(observation.y[n]).ravel() + c / 0.5
    expected = np.linalg.solve(left, right)
    np.testing.assert_allclose(np.ravel(found.z[0, n]), expected, atol=2e-4)


def _amplitudes():
  """Two small images of a prior, measured by their amplitudes."""
  spectrum = priors.power_law_spectrum(6, 6, pixel_std=0.3)
  prior = priors.gaussian_prior(spectrum)
  truth = prior.sample(jax.random.key(0), (2,), channels=1)
  operator = operators.phase_retrieval((6, 6, 1))
  return prior, truth, operator


def test_amplitudes_wait_for_the_power_of_the_prior():
  prior, truth, operator = _amplitudes()
  side = operator.measurement_shape[0]
  power = phase.power_of(prior.spectrum, side)
  assert power.shape == (side, side) == (8, 8)
  spectrum = np.asarray(prior.spectrum)
  assert power[0, 0] == spectrum[0, 0] and power[4, 0] == spectrum[-3, 0]
  observation = Observation(operator.forward(truth), operator, 0.1)
  level = jax.tree.map(lambda a: a[0], levels_of(NFCConfig(levels=2)))
  level = level._replace(sigma=jnp.float32(0.5))
  local = observation.linearised(truth)
  found = phase.amplitude_band(local, level, power=jnp.asarray(power))
  weight = np.sqrt(power / (power + 0.25))[..., None]
  np.testing.assert_allclose(found.y, weight * local.y, atol=1e-6)
  np.testing.assert_allclose(
    found.operator.forward(truth),
    weight * local.operator.forward(truth),
    atol=1e-6,
  )


def test_the_run_that_fits_best_counts_either_way_up():
  _, truth, operator = _amplitudes()
  observation = Observation(operator.forward(truth), operator, 0.1)
  wrong = truth + 0.3
  near = truth[:, ::-1, ::-1] + 0.01
  x = jnp.stack([wrong, near, wrong])
  psnr, left = phase.nearest(observation, x, truth)
  np.testing.assert_allclose(psnr, 20 * np.log10(2 / 0.01), atol=0.1)
  assert left.shape == (2,) and float(left.max()) < 0.1


@pytest.mark.slow
def test_every_variant_of_phase_retrieval_has_its_rows():
  prior, truth, _ = _amplitudes()
  given = photographs.Pictures(
    ["a", "b"], np.asarray(truth), prior.denoise, prior.spectrum
  )
  found = [*phase.rows(3, given, 0.05, 0)]
  names = [*phase.variants(3)]
  assert names[0] == phase.CONTROL
  assert [row["variant"] for row in found] == [n for n in names for _ in "ab"]
  by_name = {n: [r["psnr"] for r in found if r["variant"] == n] for n in names}
  for name in names[1:]:  # each is another program than the control's
    assert by_name[name] != by_name[phase.CONTROL]


def test_phases_are_paired_with_the_control():
  """The table's fast twin: rows by hand."""
  names = [*phase.variants(3)]
  found = pd.DataFrame(
    {
      "variant": name,
      "levels": 3,
      "picture": picture,
      "psnr": 20.0 + number + 5 * (picture == "b"),
      "misfit": 1.0,
    }
    for number, name in enumerate(names)
    for picture in "ab"
  )
  settings = command_line.to_settings(Settings, configs.get_config("debug"))
  _, _, table, _ = tables.phase(settings, found)
  for number, name in enumerate(names):
    line = table.loc[(3, name)]
    assert line["PSNR"] == 22.5 + number
    assert line["less the control"] == line["from"] == line["to"] == number
