"""The calibration study: its problems, its numbers, its resumable run."""

import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import calibration as config
from experiments.calibration import problems, report, scores, study, trials
from experiments.calibration.trials import Who
from experiments.harness import command_line, record
from experiments.harness.reporting.tables import frame
from experiments.harness.subjects import samplers
from posterior_jax import NFCConfig
from posterior_jax.nfc_sampler import Jacobian
from tests import oracles

SIZE = 12
COUNT, DIRECTIONS = 1000, 64  # of all tests, which so share compiled programs
KEY = jax.random.key(0)


def settings(**changes):
  small = config.get_config("debug")
  small.update(
    {"size": SIZE, "tasks": ("inpainting",), "factors": (1.0,), "workers": 1}
    | {"samples": COUNT, "directions": DIRECTIONS, "methods": ("NFC",)}
    | {"settings": ("calibrated",), "evaluations": (3,)}
    | changes
  )
  return command_line.to_settings(trials.Settings, small)


@pytest.mark.parametrize("task", problems.TASKS)
def test_gaussian_posterior_is_that_of_the_oracle(task):
  problem = problems.gaussian(task, SIZE, 3)
  mean, covariance = oracles.gaussian_posterior(
    problem.prior, problem.observation
  )
  root = np.asarray(problem.posterior.root, np.float64)
  scale = covariance.max()
  np.testing.assert_allclose(root @ root.T, covariance, atol=1e-5 * scale)
  np.testing.assert_allclose(problem.posterior.mean.ravel(), mean, atol=1e-4)
  variance = oracles.coefficient_variances(covariance, (SIZE, SIZE))
  np.testing.assert_allclose(problem.posterior.variance, variance, rtol=1e-4)


def test_numbers_of_exact_gaussian_samples_are_ideal():
  problem = problems.gaussian("circular blur", SIZE, 0)
  exact = problem.posterior.sample(jax.random.key(7), COUNT)
  found = scores.evaluate_gaussian(exact, problem, KEY, DIRECTIONS)
  assert set(found) == set(scores.NAMES["gaussian"])
  assert found["mean_error"] < 2 * found["mean_floor"]
  assert abs(found["ratio"] - 1) < 5 * found["ratio_error"]
  assert abs(found["coverage_50"]) < 2 and abs(found["coverage_90"]) < 1.5
  assert 0.5 < found["distance"] / found["distance_floor"] < 2
  # And of samples that are too wide about a mean that is off.
  mean, std = problem.posterior.mean, problem.posterior.std
  wide = mean + 1.5 * (exact - mean) + std
  found = scores.evaluate_gaussian(wide, problem, KEY, DIRECTIONS)
  assert abs(found["mean_error"] - 1) < 0.2
  assert abs(found["ratio"] - 2.25) < 0.2 and abs(found["worst_band"]) > 1.8
  assert found["distance"] > 4 * found["distance_floor"]
  narrow = mean + 0.5 * (exact - mean)
  found = scores.evaluate_gaussian(narrow, problem, KEY, DIRECTIONS)
  # Half as wide: 26.4 % and 58.9 % of a normal instead of 50 % and 90 %.
  assert abs(found["coverage_50"] + 23.6) < 3
  assert abs(found["coverage_90"] + 31.1) < 3


@pytest.mark.slow
def test_numbers_of_exact_mixture_samples_are_ideal():
  problem = problems.mixture(8, 1, 0, 0)
  exact = problem.posterior.sample(jax.random.key(7), COUNT)
  images = exact.reshape(-1, 1, *problems.MIXTURE_SHAPES[8])
  found = scores.evaluate_mixture(images, problem, KEY, DIRECTIONS)
  assert set(found) == set(scores.NAMES["mixture"])
  assert found["weight_error"] < 0.1 and found["weight_floor"] < 0.1
  assert found["distance"] < 3 * found["distance_floor"]
  shares = problems.mode_shares(problem.prior, exact)
  assert abs(float(shares.sum()) - 1) < 1e-5
  one = jnp.broadcast_to(problem.prior.means[3], images.shape)
  found = scores.evaluate_mixture(one, problem, KEY, DIRECTIONS)
  weight = float(problem.posterior.weights[3])
  assert math.isclose(found["weight_error"], 1 - weight, abs_tol=1e-3)


def test_mixture_problems_are_those_of_the_definition():
  problem = problems.mixture(80, 4, 1, 0)
  means = np.asarray(problem.prior.means).reshape(25, 80)
  assert len(np.unique(means, axis=0)) == 25
  assert (
    np.abs(means).max() == 1 and np.unique(np.diff(np.unique(means))) == 0.5
  )
  values = np.linalg.svd(problem.observation.operator.matrix)[1]
  assert values.shape == (4,) and 0 < values.min() and values.max() < 1
  other = problems.mixture(80, 4, 2, 0)
  assert np.abs(other.observation.y - problem.observation.y).max() > 1e-3


@pytest.mark.slow
def test_run_writes_rows_and_a_report_and_resumes(tmp_path):
  chosen = settings()
  with record.Run(tmp_path / "run") as run:
    study.calibrate(chosen, run)
    gaussian, mixture = run.rows("gaussian"), run.rows("mixture")
    done, more = (
      [study.is_there(trial, run) for trial in trials.trials(wanted)]
      for wanted in (chosen, settings(evaluations=(4,)))
    )
  assert [row["task"] for row in gaussian] == ["inpainting"]
  assert [row["number"] for row in mixture] == [0, 1]
  assert gaussian[0]["calls"] == 3 and gaussian[0]["products"] == 3
  assert 0.5 < gaussian[0]["ratio"] < 1.5
  page = (run.folder / "report.html").read_text()
  assert 'id="inpainting"' in page and 'id="mixture-8-2"' in page
  assert done == [True, True] and more == [False, False]


def test_a_method_that_cannot_run_leaves_a_note():
  chosen = settings(methods=("DDRM",), settings=("tuned",))
  trial = next(trials.trials(chosen))._replace(changes=(("nothing", 1),))
  rows = study.measure(trial, chosen, threading.Lock())
  assert len(rows) == 1 and rows[0]["calls"] is None
  assert "failed, ValueError: nothing is no field of" in rows[0]["note"]
  table, bad = report.gaussian(frame(rows))
  (line,) = table.to_numpy().tolist()
  assert "ValueError" in line[0] and np.isnan(line[1:]).all()
  assert len(line) == 10 and not bad.to_numpy().any()


def test_lines_put_the_best_median_first():
  blank = dict.fromkeys(scores.NAMES["mixture"]) | {
    "calls": 5,
    "products": 0,
    "weight_error": 0.2,
    "weight_floor": 0.1,
    "distance_floor": 1.0,
  }
  rows = [
    blank | Who(name, "tuned", 1.0, 5)._asdict() | {"distance": distance}
    for name, distance in (("A", 3.0), ("A", 5.0), ("B", 2.0), ("C", "nan"))
  ]
  lines = report.mixture(frame(rows)).to_numpy().tolist()
  assert [line[0] for line in lines] == ["B tuned", "A tuned", "C tuned"]
  assert lines[1][3] == 4.0 and lines[2][-1] == 1


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (dict(tasks=("phase",)), "tasks must be among inpainting, .*got 'phase'"),
    (dict(dimensions=((9, 1),)), "dimensions must be among 8, 80, 800; got 9"),
    (dict(evaluations=(0,)), "evaluations must hold positive numbers"),
    (dict(factors=(-1.0,)), "factors must hold positive numbers"),
    (dict(samples=5), "samples must be at least 20"),
    (dict(size=18), "divisible by 4"),
    (dict(problems=0), "problems and workers must be at least 1"),
  ],
)
def test_bad_settings_are_one_sentence(change, sentence):
  with pytest.raises(command_line.UsageError, match=sentence):
    settings(**change)


@pytest.mark.parametrize(
  ("setting", "preset"),
  [
    ("calibrated", NFCConfig.calibrated),
    ("tuned", NFCConfig.restoration),
    ("published", NFCConfig.paper),
  ],
)
def test_mixtures_take_the_settings_by_the_jacobian(setting, preset):
  """Not the spectral ones with another tie, which are refused or differ."""
  (trial,) = [
    trial
    for trial in trials.trials(settings(settings=(setting,)))
    if trial.table == trials.MIXTURE
  ]
  found = samplers.config("NFC", setting, **dict(trial.changes))
  expected = preset()
  if setting == "calibrated":
    expected = preset(width=Jacobian())
  assert found == expected
