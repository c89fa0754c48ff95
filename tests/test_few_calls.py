"""`fast()` and what stands beside it at few calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import posterior_jax as pj
from configs import few_calls as configs
from experiments.few_calls import contenders, study, tuned, variants
from experiments.few_calls.differences import differences
from experiments.few_calls.methods import FAST
from experiments.few_calls.search import Knob, search
from experiments.few_calls.settings import Settings
from experiments.harness import command_line
from experiments.peers.dpir import dpir
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler import (
  Denoise,
  Mean,
  Ode,
  Schedule,
  Sigma,
  first_state,
  levels_of,
  parts_of,
)
from tests import oracles

SIZE = (8, 8)
POWER = pj.priors.power_law_spectrum(*SIZE)
NOISE = 0.1


@pytest.fixture(scope="module")
def problem():
  return measured()


def measured():
  """Prior and observation of `problem`, for what is called by hand."""
  prior = pj.priors.gaussian_prior(POWER)
  operator = pj.operators.gaussian_blur(
    (*SIZE, 1), size=5, std=0.8, boundary="circular"
  )
  y = jax.random.normal(jax.random.key(0), (1, *SIZE, 1))
  return prior, pj.Observation(y, operator, NOISE)


def likely(observation):
  """The posterior mean under `measured`'s prior."""
  target = gaussian.Target(
    observation, jnp.zeros((1, 1, *SIZE, 1)), POWER[..., None]
  )
  return gaussian.mean(target, tolerance=1e-6, max_iterations=500)[0]


def gain_of(observation):
  delta = jnp.zeros((*SIZE, 1)).at[0, 0].set(1)
  found = observation.operator.forward(delta)[..., 0]
  return np.fft.fft2(np.asarray(found, np.float64))


def test_dpir_is_half_quadratic_splitting(problem):
  prior, observation = problem
  found = dpir(prior.denoise, observation, weight=0.3, calls=3)
  gain, y = gain_of(observation), np.asarray(observation.y[0, ..., 0])
  power = np.asarray(POWER, np.float64)
  x = f = np.fft.fft2(y)
  for sigma in np.geomspace(98 / 255, NOISE, 3):
    tie = 0.3 / sigma**2
    z = (np.conj(gain) * f / NOISE**2 + tie * x) / (
      np.abs(gain) ** 2 / NOISE**2 + tie
    )
    x = power / (power + sigma**2) * z
  expected = np.fft.ifft2(x).real
  np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-4)


def test_dpir_turned_shows_the_image_another_way_at_every_strength():
  """A denoiser that weights pixels by where they are is turned with them."""
  _, observation = measured()
  side = SIZE[0]
  here = np.random.default_rng(3).uniform(0.5, 1, (side, side))
  found = dpir(
    jax.tree_util.Partial(lambda x, sigma: x * jnp.float32(here)[..., None]),
    observation,
    weight=0.3,
    calls=10,
    turned=True,
  )
  gain, y = gain_of(observation), np.asarray(observation.y[0, ..., 0])
  x, f = y.astype(np.float64), np.fft.fft2(y)
  for level, sigma in enumerate(np.geomspace(98 / 255, NOISE, 10)):
    tie = 0.3 / sigma**2
    z = (np.conj(gain) * f / NOISE**2 + tie * np.fft.fft2(x)) / (
      np.abs(gain) ** 2 / NOISE**2 + tie
    )
    shown = here[:: -1 if level & 1 else 1, :: -1 if level & 2 else 1]
    shown = shown.T if level & 4 else shown
    x = shown * np.fft.ifft2(z).real
  np.testing.assert_allclose(found[0, ..., 0], x, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 4])
def test_fast_is_one_call_a_level_and_the_last_prediction(levels):
  prior, observation = measured()
  config = pj.NFCConfig.fast(levels=levels)
  sampler = pj.nfc(config, spectrum=POWER)
  run = oracles.quick_jit(
    lambda key: pj.run(sampler, prior.denoise, observation, key)
  )
  x, info = run(jax.random.key(1))
  again, _ = run(jax.random.key(2))
  np.testing.assert_array_equal(x, again)  # nothing is drawn
  np.testing.assert_array_equal(info.calls, np.ones(levels))
  np.testing.assert_array_equal(info.products, np.zeros(levels))
  gain = gain_of(observation)
  power = np.asarray(POWER, np.float64)
  f = np.fft.fft2(np.asarray(observation.y[0, ..., 0], np.float64))
  sigmas = np.asarray(info.sigma, np.float64)
  wide = config.width.factor * sigmas[0] ** 2
  pull = np.conj(gain) / (np.abs(gain) ** 2 + NOISE**2 / wide)
  z = (1 + pull * (1 - gain)) * f  # from the blurred image itself
  q, momentum = config.predictor.discrepancy, config.schedule.momentum
  # Not every prior is the same whichever way an image is turned.
  assert q > 0 and momentum > 0 and not config.predictor.turned
  r, before, last = 1.0, 0.0, sigmas[0]
  for sigma, following in zip(sigmas, [*sigmas[1:], sigmas[-1]]):
    taken = sigma * np.clip(r, 0.5, 4) ** -q
    x0 = power / (power + taken**2) * z
    # Parseval: |y - A x0|^2 from its Fourier transform.
    r = np.mean(np.abs(f - gain * x0) ** 2) / f.size / NOISE**2
    ahead = x0 + momentum * np.log(last / sigma) * (x0 - before)
    width = config.width.factor * following**2
    z = (np.conj(gain) * f / NOISE**2 + ahead / width) / (
      np.abs(gain) ** 2 / NOISE**2 + 1 / width
    )
    before, last = x0, sigma
  expected = np.fft.ifft2(x0).real
  np.testing.assert_allclose(x[0, 0, ..., 0], expected, atol=1e-3)


@pytest.mark.parametrize(
  "kind",
  [
    "resize",
    "pixels",
    pytest.param("list", marks=pytest.mark.slow),
    pytest.param("blur", marks=pytest.mark.slow),
  ],
)
def test_a_start_shows_what_was_measured(kind):
  """Where nothing was, the answer of the prior's spectrum."""
  shape = (*SIZE, 1)
  mask = np.arange(64).reshape(SIZE) % 3 > 0
  operator = {
    "resize": lambda: pj.operators.super_resolution(shape, factor=2),
    "pixels": lambda: pj.operators.inpainting(shape, mask, contiguous=False),
    "list": lambda: pj.operators.dense(shape, np.eye(5, 64)),
    "blur": lambda: pj.operators.gaussian_blur(shape, size=3, std=0.5),
  }[kind]()
  measured = operator.measurement_shape
  y = jax.random.normal(jax.random.key(0), (1, *measured))
  observation = pj.Observation(y, operator, jnp.float32(NOISE))
  found = first_state.shown(observation, POWER, (2, 1, *shape))
  assert found.shape == (2, 1, *shape)
  if kind == "resize":
    expected = jax.image.resize(y, (1, *shape), "cubic")
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
  elif kind == "list":
    a = np.eye(5, 64)
    tie = oracles.fourier_diagonal(1 / np.asarray(POWER, np.float64))
    likely = np.linalg.solve(
      a.T @ a / NOISE**2 + tie, a.T @ np.ravel(y) / NOISE**2
    )
    np.testing.assert_allclose(found[1].ravel(), likely, atol=2e-3)
  else:
    seen = mask[..., None] if kind == "pixels" else np.ones(shape, bool)
    np.testing.assert_allclose(found[1, 0][seen], y[0][seen], atol=1e-6)
    if kind == "pixels":
      assert 0 < np.abs(found[1, 0][~seen]).max() < np.abs(y).max()


@pytest.mark.parametrize("factor", [1, 2])
def test_a_start_of_a_scene_continues_its_edge(factor):
  """No solve, which takes hundreds of iterations where a margin is hidden."""
  shape, margin = {1: ((12, 14, 1), 2), 2: ((14, 18, 1), 3)}[factor]
  operator = (
    pj.operators.gaussian_blur(shape, size=5, std=1.0, boundary="valid")
    if factor == 1
    else pj.operators.super_resolution(shape, factor=2, boundary="valid")
  )
  y = jax.random.normal(jax.random.key(0), (1, *operator.measurement_shape))
  observation = pj.Observation(y, operator, jnp.float32(NOISE))
  found = first_state.shown(observation, jnp.nan, (2, 1, *shape))
  inside = tuple(n - 2 * margin for n in shape[:2])
  picture = jax.image.resize(y, (1, *inside, 1), "cubic")
  border = ((0, 0), (margin, margin), (margin, margin), (0, 0))
  np.testing.assert_allclose(
    found[1], np.pad(picture, border, mode="edge"), atol=1e-6
  )


@pytest.mark.parametrize("levels", [1, 2, 5, 10, 20, 100])
def test_fast_holds_a_fifth_of_its_levels(levels):
  """The last level at least: what it predicts is the result then."""
  held = {1: 1, 2: 1, 5: 1, 10: 2, 20: 4, 100: 20}[levels]
  assert pj.NFCConfig.fast(levels=levels).held_levels == held
  assert pj.NFCConfig.fast().replace(levels=levels).held_levels == held


def test_a_start_adds_its_share_of_the_noise():
  _, observation = measured()
  key, found = jax.random.key(3), []
  for renewal in (0.0, 0.5):
    config = pj.NFCConfig(
      schedule=Schedule(sigma_max=1.0, start="measurement", renewal=renewal),
      width=Sigma(0.5),
      inner=Mean(),
    )
    first = jax.tree.map(lambda entry: entry[0], levels_of(config))
    start = parts_of(config, POWER).start
    found.append(start(key, observation, (2, 1, *SIZE, 1), first))
  added = 0.5 * jax.random.normal(key, found[0].shape)
  np.testing.assert_allclose(found[1] - found[0], added, atol=1e-5)
  np.testing.assert_array_equal(found[0][0], found[0][1])


def test_a_width_is_of_what_the_next_level_leaves():
  """tied^2 = r^2 sigma^2 + (1 - r^2) sigma'^2; its own sigma at the last."""
  for renewal in (0.0, 0.3, 1.0):
    config = pj.NFCConfig(levels=4, schedule=Schedule(renewal=renewal))
    level = levels_of(config)
    following = np.where(level.following > 0, level.following, level.sigma)
    square = (renewal * level.sigma) ** 2 + (1 - renewal**2) * following**2
    np.testing.assert_allclose(level.tied, square**0.5, rtol=1e-5)


@pytest.mark.parametrize("renewal", [0.0, 0.5])
def test_what_is_averaged_has_none_of_the_noise_of_the_next_pass(renewal):
  """A refined image that the next pass begins with is in the average too."""
  prior, observation = measured()
  off = []
  for passes in (1, 4):
    config = pj.NFCConfig.fast(
      levels=10,
      schedule={"passes": passes, "averaged": "refined", "renewal": renewal},
    )
    sampler = pj.nfc(config, spectrum=POWER)
    key = jax.random.key(1)
    x, _ = pj.run(sampler, prior.denoise, observation, key, num_samples=8)
    off.append(float(jnp.square(x - likely(observation)).mean()))
  assert off[1] < 1.05 * off[0], off


def test_an_ode_steps_by_the_schedules_exponent():
  prior, _ = measured()
  x = jax.random.normal(jax.random.key(4), (1, 1, *SIZE, 1))
  for rho in (2.0, 7.0):
    config = pj.NFCConfig(
      levels=2, schedule=Schedule(rho=rho), predictor=Ode(steps=2)
    )
    level = jax.tree.map(lambda entry: entry[0], levels_of(config))
    found = parts_of(config, POWER).predict(prior.denoise, x, level).x0
    ends = np.array([100.0, 0.01]) ** (1 / rho)
    a, b, c = np.linspace(*ends, 3) ** rho
    middle = x + (b - a) / a * (x - predictor.clean(prior.denoise, x, a))
    last = middle + (c - b) / b * (
      middle - predictor.clean(prior.denoise, middle, b)
    )
    np.testing.assert_allclose(found, last, atol=1e-4)


def test_the_numbers_of_fast_are_those_that_results_are_quoted_for():
  config = pj.NFCConfig.fast()
  schedule = config.schedule
  assert (schedule.sigma_max, schedule.sigma_min) == (0.845, 0.0493)
  assert (schedule.held, schedule.momentum, schedule.renewal) == (0.2, 0.5, 0)
  assert (schedule.averaged, schedule.start) == ("predicted", "measurement")
  assert config.predictor == Denoise(discrepancy=0.25)
  # Tables turn: the shipped prior has learned pictures any way up.
  assert variants.ANY_WAY_UP == {"turned": True}
  assert (config.levels, config.inner) == (10, Mean())
  assert config.width == Sigma(factor=4.35)


def test_few_levels_leave_no_image_worse_than_it_came():
  """A single one too, which is held: what it predicts is the result."""
  prior = pj.priors.gaussian_prior(POWER)
  operator = pj.operators.gaussian_blur((*SIZE, 1), size=5, std=1.0)
  truth = prior.sample(jax.random.key(1), (20,), channels=1)
  y = operator.forward(truth)
  y += 0.05 * jax.random.normal(jax.random.key(2), y.shape)
  given = pj.Observation(y, operator, 0.05)
  for levels in (1, 5):
    sampler = pj.nfc(pj.NFCConfig.fast(levels=levels), spectrum=POWER)
    x, info = pj.run(sampler, prior.denoise, given, jax.random.key(0))
    assert float(info.sigma[-1]) == pytest.approx(0.0493)
    gain = pj.metrics.psnr(x[0], truth) - pj.metrics.psnr(y, truth)
    assert float(gain.mean()) > 0.3, levels


def test_differences_are_paired_by_picture():
  fast, plain = [30.0, 20.0, 25.0], [29.0, 19.5, 23.5]
  rows = pd.DataFrame(
    [
      {"task": "t", "calls": 5, "method": method, "picture": i, "psnr": psnr}
      for method, values in ((FAST, fast), (contenders.DPIR, plain))
      for i, psnr in enumerate(values)
    ]
  )
  (found,) = differences(rows).itertuples()
  assert found.Index == ("t", 5, contenders.DPIR)
  np.testing.assert_allclose(found.difference, 1.0)
  # The gaps are 0.5, 1 and 1.5, which are also the ends of three resamples.
  np.testing.assert_allclose(found[4], 0.5)
  assert found.pictures == 3


def test_a_search_ends_where_no_neighbour_is_better():
  knobs = (
    Knob("factor", 1.0),
    Knob("share", 0.5, factor=None, step=0.2, low=0.0, high=1.0),
  )

  def score(point):
    return -((np.log2(point["factor"]) - 3.2) ** 2) - (point["share"] - 2) ** 2

  found = search(knobs, score)
  # The nearest on the grid of halved steps, and the bound of the other knob.
  np.testing.assert_allclose([*found.point.values()], [8.0, 1.0])
  assert found.interior and len(found.trials) < 20
  tried = [point["factor"] for point, _ in found.trials]
  assert min(tried) < 8 < max(tried)
  short = search(knobs, score, most=5)
  assert not short.interior and len(short.trials) == 5


def test_a_point_that_diverges_is_never_the_best():
  found = search(
    (Knob("factor", 1.0),),
    lambda p: -p["factor"] if p["factor"] > 0.6 else np.nan,
  )
  assert found.point["factor"] > 0.6


def test_a_traced_setting_is_the_setting(problem):
  """One program for all weights: what a search runs is what `run` runs."""
  prior, observation = problem
  contender = contenders.BASELINES["DiffPIR"]
  program = jax.jit(contender.restore(3))
  key = jax.random.key(0)
  for weight in (0.5, 2.0):
    point = {"weight": weight, "renewal": 0.6}
    found = program(
      contender.operands(3, point), prior.denoise, observation, key, POWER
    )
    config = pj.baselines.DiffPIRConfig.tuned(levels=3, **point)
    expected, _ = pj.run(
      pj.baselines.diffpir(config), prior.denoise, observation, key
    )
    np.testing.assert_allclose(found, expected[0], atol=1e-5)
  assert program._cache_size() == 1


def test_no_run_exceeds_its_evaluations():
  config = configs.get_config("debug")
  config.methods, config.calls = (), (2, 3, 5)
  settings = command_line.to_settings(Settings, config)
  found = study.runs(settings)
  costs = {
    name: made.each
    for name, made in {**variants.VARIANTS, **contenders.BASELINES}.items()
  }
  assert costs["MMPS"] == costs["DPS"] == 2
  for name, each in costs.items():
    for calls in (2, 3, 5):
      assert ((name, calls) in found) == (each <= calls), (name, calls)
  name = "Jacobian, noise renewed"
  with oracles.refused(ValueError, f"calls must reach 3, .* a level of {name}"):
    dataclasses.replace(settings, methods=(name,), calls=(2,))


def test_plug_and_play_at_its_start_is_fast(problem):
  prior, observation = problem
  contender = variants.VARIANTS[variants.PLAIN]
  point = {knob.name: knob.start for knob in contender.knobs(4)}
  key = jax.random.key(0)
  found = oracles.quick_jit(contender.restore(4))(
    contender.operands(4, point), prior.denoise, observation, key, POWER
  )
  sampler = pj.nfc(pj.NFCConfig.fast(levels=4), spectrum=POWER)
  expected, _ = pj.run(sampler, prior.denoise, observation, key)
  np.testing.assert_allclose(found, expected[0], atol=1e-4)


def test_what_is_tuned_is_the_best_of_the_log_and_inside_of_it():
  log = pd.read_csv(tuned.TRIALS)
  for method, by_calls in tuned.points().items():
    knobs = contenders.BASELINES[method].knobs(5)
    for calls, by_task in by_calls.items():
      for task, point in by_task.items():
        own = log[
          (log.method == method)
          & (log.calls == int(calls))
          & (log.task == task)
        ]
        tried = [
          [float(part.split("=")[1]) for part in words.split(", ")]
          for words in own.point
        ]
        best = own.psnr.to_numpy().argmax()
        np.testing.assert_allclose(tried[best], [*point.values()])
        for number, knob in enumerate(knobs):
          for side in (-0.5, 0.5):
            beside = [*point.values()]
            # At a bound of the knob the neighbour is the point itself.
            beside[number] = knob._replace(start=beside[number]).at(side)
            near = np.isclose(tried, beside, rtol=1e-3, atol=0).all(axis=1)
            assert near.any(), (method, calls, task, knob.name, side)


def test_the_best_point_that_is_committed_is_fast_but_for_the_discrepancy():
  """Leads beyond 0.5 dB count as 0.5; `fast` has the numbers of the best."""
  points = pd.read_csv(study.__file__.replace("study.py", "fast_points.csv"))
  leads = points.iloc[:, 3:]
  assert leads.shape == (38, 10)
  np.testing.assert_allclose(
    leads.clip(upper=0.5).mean(axis=1), points["score"], atol=6e-4
  )
  best = points.loc[points["score"].idxmax()]
  words = dict(part.split("=") for part in best["point"].split(", "))
  config = pj.NFCConfig.fast(predictor=variants.ANY_WAY_UP)
  schedule, predictor = config.schedule, config.predictor
  assert best["found"] == "search" and float(words.pop("growth")) == 0
  # Of which short motion kernels, which were no task, run away.
  assert float(words.pop("discrepancy")) == 0.5
  assert {name: float(value) for name, value in words.items()} == {
    "sigma_max": schedule.sigma_max,
    "sigma_min": schedule.sigma_min,
    "factor": config.width.factor,
    "momentum": schedule.momentum,
    "held": schedule.held,
    "turned": predictor.turned,
  }
