"""Levy processes: exact posteriors, the exact denoiser, the study."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import levy as config
from experiments.harness import command_line, record
from experiments.levy import posterior, problems, report, scores, study
from experiments.levy.denoiser import Denoiser
from experiments.levy.laws import LAWS, Gaussian, SpikeAndSlab
from experiments.levy.posterior import Measured

MIXED = [name for name in LAWS if name != "Gaussian"]
# Two points seen as one sum and one difference, of unlike noise.
TWO = np.array([[1.0, 0.4], [-0.3, 0.9]])


def one_quickly(names):
  """Of one law alone in the fast tests, which has jumps and a width."""
  return pytest.mark.parametrize(
    "name",
    [
      pytest.param(x, marks=[] if x == "spike and slab" else pytest.mark.slow)
      for x in names
    ],
  )


def settings(**changes):
  small = config.get_config("debug")
  small.update(changes)
  return command_line.to_settings(study.Settings, small)


def by_quadrature(law, matrix, y, noise_std):
  """Mean and covariance of x | y in d dimensions, on a grid of increments."""
  d = matrix.shape[1]
  reach = 12 if d == 2 else 5
  u = np.linspace(-reach, reach, 1201 if d == 2 else 141)
  step = u[1] - u[0]
  if isinstance(law, SpikeAndSlab):
    weight = law.p * np.exp(law.slab.log_density(u)) / (2 * law.scale) * step
    weight[len(u) // 2] += 1 - law.p
  else:
    weight = np.exp(law.log_density(u))
  grid = np.stack(np.meshgrid(*d * [u], indexing="ij"), -1)
  x = grid.cumsum(-1)
  mass = np.exp(-((x @ matrix.T - y) ** 2).sum(-1) / (2 * noise_std**2))
  for axis in range(d):
    mass = mass * weight.reshape(*(-1 if i == axis else 1 for i in range(d)))
  mass /= mass.sum()
  mean = (mass[..., None] * x).reshape(-1, d).sum(0)
  away = (x - mean).reshape(-1, d)
  return mean, (mass.reshape(-1, 1) * away).T @ away


@pytest.mark.parametrize("name", LAWS)
def test_draws_are_of_the_density_and_the_variance(name):
  law = LAWS[name]
  u = law.draw(np.random.default_rng(0), (200_000,))
  if name == "Student's t":  # its fourth moment is infinite: by quantiles
    found = np.quantile(np.abs(u), [0.5, 0.9, 0.99])
    np.testing.assert_allclose(found, [0.7649, 2.3534, 5.8409], rtol=0.03)
  else:
    fourth = (u**4).mean() / law.variance**2
    error = ((fourth - 1) / len(u)) ** 0.5
    np.testing.assert_allclose(u.var(), law.variance, rtol=4.5 * error)
    assert error < 0.02
  np.testing.assert_allclose((u != 0).mean(), law.share, atol=0.003)
  if name == "spike and slab":
    return
  # Histogram against the density, both up to a constant.
  counts, _ = np.histogram(u, np.linspace(-2, 2, 9))
  fine = np.linspace(-2, 2, 8001)
  density = np.exp(law.log_density(fine))[:-1].reshape(8, -1).sum(1)
  np.testing.assert_allclose(
    counts / counts.sum(), density / density.sum(), atol=0.005
  )


def test_gaussian_posteriors_are_the_closed_form():
  """Mean to rounding; draws by their covariance, of 4000 chains of one y."""
  law, d = Gaussian(0.7), 6
  rng = np.random.default_rng(0)
  matrix, y = rng.normal(size=(4, d)), rng.normal(size=4)
  steps = np.arange(1, d + 1)
  prior = law.variance * np.minimum(steps[:, None], steps)
  gain = prior @ matrix.T
  gain = gain @ np.linalg.inv(matrix @ gain + 0.25 * np.eye(4))
  covariance = prior - gain @ matrix @ prior
  measured = Measured(matrix, np.tile(y, (4000, 1)), 0.5)
  found = posterior.sample(law, measured, rng, burn_in=0, sweeps=1, keep=1)
  np.testing.assert_allclose(
    found.mean, np.tile(gain @ y, (4000, 1)), rtol=1e-9
  )
  error = found.samples[0] - gain @ y
  scale = np.sqrt(np.diag(covariance))
  spread = error.T @ error / 4000 / np.outer(scale, scale)
  np.testing.assert_allclose(
    spread, covariance / np.outer(scale, scale), atol=5 * (2 / 4000) ** 0.5
  )


@pytest.mark.parametrize("name", MIXED)
def test_gibbs_draws_have_the_moments_of_a_quadrature(name):
  """A jump that may or may not be there, seen through a full matrix."""
  law, y, noise_std = LAWS[name], np.array([1.1, 0.2]), 0.5
  mean, covariance = by_quadrature(law, TWO, y, noise_std)
  chains = 400
  measured = Measured(TWO, np.tile(y, (chains, 1)), noise_std)
  found = posterior.sample(
    law, measured, np.random.default_rng(1), burn_in=30, sweeps=90, keep=90
  )
  # Chains are independent: their own spread says how far means may be off.
  each = found.samples.mean(axis=0)  # [chains, 2]
  noise = each.std(axis=0) / chains**0.5
  assert (np.abs(each.mean(axis=0) - mean) < 4.5 * noise).all()
  assert (np.abs(found.mean.mean(axis=0) - mean) < 4.5 * noise).all()
  assert (4.5 * noise < 0.05 * np.sqrt(np.diag(covariance))).all()
  away = found.samples - mean
  products = np.einsum("kni,knj->nij", away, away) / len(away)
  noise = products.std(axis=0) / chains**0.5
  assert (np.abs(products.mean(axis=0) - covariance) < 4.5 * noise).all()


@one_quickly(MIXED)
def test_the_denoiser_is_that_of_a_quadrature(name):
  """Mean and derivative, Cov / sigma^2, of three points."""
  law, sigma = LAWS[name], 0.4
  # A jump at the end, a certain one, and one before that may be none.
  z = np.array([0.5, 0.45, -1.5])
  mean, covariance = by_quadrature(law, np.eye(3), z, sigma)
  chains = 400
  x = jnp.asarray(np.tile(z, (chains, 1)), jnp.float32)[:, None, :, None]
  level = jnp.full(chains, sigma)
  denoise = Denoiser(law, 20, 60)

  @jax.jit
  def answer(x):
    found, product = jax.vjp(lambda x: denoise(x, level), x)
    basis = jnp.eye(3)[:, None, None, :, None]
    rows = [product(jnp.broadcast_to(row, x.shape))[0] for row in basis]
    return found, jnp.stack(rows, axis=1)

  found, jacobian = answer(x)
  found = np.asarray(found, float)[:, 0, :, 0]
  noise = found.std(axis=0) / chains**0.5
  assert (np.abs(found.mean(axis=0) - mean) < 4.5 * noise + 1e-3).all()
  assert (noise < 0.025 * np.sqrt(np.diag(covariance))).all()
  jacobian = np.asarray(jacobian, float)[:, :, 0, :, 0]
  noise = jacobian.std(axis=0) / chains**0.5
  error = np.abs(jacobian.mean(axis=0) - covariance / sigma**2)
  assert (error < 4.5 * noise + 2e-3).all()


def test_the_gaussian_denoiser_is_the_closed_form():
  law, d, sigma = Gaussian(0.3), 12, np.array([0.02, 0.5, 40.0])
  rng = np.random.default_rng(0)
  z = rng.normal(size=(3, d))
  steps = np.arange(1, d + 1)
  prior = law.variance * np.minimum(steps[:, None], steps)
  denoise = Denoiser(law, 5, 5)
  x = jnp.asarray(np.float32(z))[:, None, :, None]
  level = jnp.asarray(np.float32(sigma))
  direction = jnp.asarray(np.float32(rng.normal(size=x.shape)))

  @jax.jit
  def answer(x):
    found, product = jax.vjp(lambda x: denoise(x, level), x)
    return found, product(direction)[0]

  found, moved = answer(x)
  for i, s in enumerate(sigma):
    smoother = prior @ np.linalg.inv(prior + s**2 * np.eye(d))
    for value, of in ((found, z[i]), (moved, direction[i, 0, :, 0])):
      np.testing.assert_allclose(
        value[i, 0, :, 0], smoother @ of, rtol=2e-4, atol=2e-5
      )


def test_the_denoiser_is_a_function_of_its_input():
  denoise = jax.jit(Denoiser(LAWS["Laplace"], 1, 2))
  x = jax.random.normal(jax.random.key(0), (2, 1, 8, 1))
  sigma = jnp.ones(2)
  first, again = denoise(x, sigma), denoise(x, sigma)
  np.testing.assert_array_equal(first, again)
  moved = denoise(x * (1 + 1e-6), sigma)
  assert np.abs(moved - first).max() > 1e-3  # other random numbers


@pytest.mark.parametrize("name", problems.OPERATORS)
def test_operators_are_what_they_are_called(name):
  d = 32
  a = problems.matrix(name, d)
  ramp = np.sin(np.arange(d))
  seen = a @ ramp
  if name == "denoising":
    np.testing.assert_array_equal(seen, ramp)
  elif name == "deconvolution":
    np.testing.assert_allclose(a.sum(axis=1), 1)
    f = np.abs(np.fft.fft(a[0]))
    np.testing.assert_allclose(
      f[4], np.exp(-2 * (np.pi * 8 / d) ** 2), atol=0.02
    )
  elif name == "imputation":
    assert len(a) == d // 2 and set(seen) <= set(ramp)
  else:
    f = np.fft.rfft(ramp, norm="ortho")
    np.testing.assert_allclose(seen[:5], f.real[:5], atol=1e-12)
    # Rows of one coefficient, of one length and across each other.
    square = a @ a.T
    np.testing.assert_allclose(square, np.diag(np.diag(square)), atol=1e-12)


def small(name, operator="imputation"):
  return problems.make(
    name,
    operator,
    signals=300,
    length=12,
    burn_in=40,
    sweeps=120,
    keep=19,
    seed=0,
  )


@one_quickly(LAWS)
def test_exact_draws_score_as_exact(name):
  """And 0.22 dB is what the mean of 19 draws loses to the exact mean."""
  problem = small(name)
  found = scores.evaluate(problem.exact.samples, problem)
  assert abs(found["gap"] - 10 * np.log10(1 + 1 / 19)) < 0.25
  assert found["gap_low"] < found["gap"] < found["gap_high"]
  # Another chain, which has only the law of the draws that it is divided by.
  other = posterior.sample(
    problem.law,
    problem.measured,
    np.random.default_rng(1),
    burn_in=40,
    sweeps=120,
    keep=19,
  )
  again = scores.evaluate(other.samples, problem)
  # Of rare jumps, 300 signals hold few.
  noise = 0.1 if name == "spike and slab" else 0.03
  assert abs(again["crps"] - 1) < noise and abs(again["spread"] - 1) < noise
  error = 100 * (0.09 / 300) ** 0.5
  assert abs(found["central"]) < error
  if name == "spike and slab":
    assert found["hpd"] is None
    return
  assert abs(found["hpd"]) < 4 * error
  mean = problem.exact.samples.mean(0)
  narrow = mean + 0.5 * (problem.exact.samples - mean)
  found = scores.evaluate(narrow, problem)
  assert found["hpd"] < -10 and found["central"] < -10
  assert abs(found["spread"] - 0.5) < 1e-6 and found["crps"] > 1.02


def test_a_spectrum_is_that_of_the_signals():
  problem = small("Gaussian")
  law, d = problem.law, 12
  x = law.draw(np.random.default_rng(0), (20_000, d)).cumsum(1)
  power = (np.abs(np.fft.fft(x, norm="ortho")) ** 2).mean(0)
  np.testing.assert_allclose(problem.spectrum[0], power, rtol=0.05)
  np.testing.assert_allclose((x**2).mean() ** 0.5, problems.RMS, rtol=0.02)


def test_run_writes_rows_and_a_report_and_resumes(tmp_path):
  chosen = settings(methods=("DiffPIR",))
  with record.Run(tmp_path / "run") as run:
    study.levy(chosen, run)
    rows = run.rows(study.TABLE)
    study.levy(chosen, run)  # nothing is wanted
    assert run.rows(study.TABLE) == rows
  assert [row["method"] for row in rows] == [study.EXACT, "DiffPIR"]
  assert rows[1]["calls"] == 4 and rows[1]["gap"] > rows[0]["gap"]
  page = (run.folder / "report.html").read_text()
  assert 'id="Laplace-imputation"' in page


def test_a_method_that_cannot_run_leaves_a_note():
  trials = itertools.islice(study.trials(settings()), 1, 2)
  (trial,) = trials
  about = trial.about | {"setting": "none"}
  row = study.measure(trial._replace(about=about), settings())
  assert row["gap"] is None and "setting of NFC must be one of" in row["note"]
  table = report.table(report_frame([row]))
  assert "setting of NFC" in table["method"].iloc[0]


def report_frame(rows):
  from experiments.harness.reporting.tables import frame

  return frame(rows)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (dict(laws=("Cauchy",)), "laws must be among Gaussian, .*got 'Cauchy'"),
    (dict(operators=()), "operators"),
    (dict(samples=9), "samples must be at least 10"),
    (dict(sweeps=12), "sweeps must be at least samples, 19; got 12"),
    (dict(denoiser_sweeps=1), "denoiser_sweeps must be at least 2"),
  ],
)
def test_bad_settings_are_one_sentence(change, sentence):
  with pytest.raises(command_line.UsageError, match=sentence):
    settings(**change)
