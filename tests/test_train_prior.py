"""Training of the photo prior: its step, its checkpoints, its run."""

import dataclasses
import functools
import json
import math
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import train_prior as config
from experiments.data import photographs
from experiments.harness import command_line, record, runner, writing
from experiments.harness.training import optimiser, pace
from experiments.harness.training.checkpoints import Checkpoints, Saved
from experiments.train_prior import study, training
from experiments.train_prior.batches import BatchSettings, Pool
from posterior_jax import priors
from posterior_jax.priors import learned
from tests.oracles import quick_jit, refused

OPTIM = optimiser.OptimSettings(warmup=0, average=0.9995, b2=0.99)
NETWORK = priors.UNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)
# What the step's tests claim does not depend on how many scales there are.
SMALL = priors.UNetConfig(widths=(8,), blocks=(1,), embedding=16)
QUICK_STEP = quick_jit(
  training.step.__wrapped__,
  static_argnames=training.STATIC,
  donate_argnames="state",
)


def _settings(folder, **changes):
  debug = config.get_config("debug")
  debug.update({"photographs": str(folder), **changes})
  return command_line.to_settings(study.Settings, debug)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("photographs")
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
  PIL.Image.fromarray(pixels).save(path / "a.png")
  return path


# --- the step -----------------------------------------------------------------


def _step(state, mesh=None, key=0, **changes):
  rng = np.random.default_rng(7)
  pool = Pool(
    *(
      jnp.asarray(rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))
      for _ in range(2)
    )
  )
  mesh = mesh or Mesh(np.array(jax.devices()[:1]), ("data",))
  # Placed as the step leaves it, so that the next one compiles nothing.
  state = jax.device_put(state, NamedSharding(mesh, P()))
  options = {
    "size": 16,
    "count": 4,
    "config": SMALL,
    "dtype": "float32",
    "optim": OPTIM,
    "batch": BatchSettings(),
    "mesh": mesh,
  }
  return QUICK_STEP(
    state, pool, jax.random.key(key), jnp.float32(100), **(options | changes)
  )


@functools.partial(quick_jit, static_argnums=1)
def _params(key, network):
  return priors.initial_params(network, key)


def _start(network=SMALL):
  return optimiser.init(_params(jax.random.key(0), network), OPTIM)


def test_first_loss_is_that_of_the_linear_estimate():
  """F = 0, so the weighted error is E |c_skip x - x0|^2 / c_out^2."""
  loss = _step(_start())[1].loss
  # Pixels drawn evenly have variance 1/3 instead of the assumed 1/4; noise
  # and signal share the error by sigma, so it lies between 1 and 4/3.
  assert 0.7 < float(loss) < 1.6


def test_gradient_that_is_not_finite_changes_nothing():
  params = _params(jax.random.key(0), SMALL)
  params["enter.bias"] = params["enter.bias"].at[0].set(jnp.nan)
  params["leave.kernel"] = params["leave.kernel"] + 1.0
  before = jax.tree.map(np.asarray, params)
  state, info = _step(optimiser.init(params, OPTIM))
  assert not np.isfinite(info.gradient) and int(state.step) == 1
  for name, value in before.items():
    np.testing.assert_array_equal(state.params[name], value)
  for leaf in jax.tree.leaves(state.moments):
    np.testing.assert_array_equal(leaf, 0)


def test_average_follows_the_parameters():
  first, _ = _step(_start())
  held = jax.tree.map(np.asarray, first)
  second, _ = _step(first)
  keep = 2 / 11  # a young average: (step + 1) / (step + 10) at step 1
  for name, value in second.average.items():
    expected = keep * held.average[name] + (1 - keep) * second.params[name]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_step_does_not_depend_on_the_number_of_devices():
  if jax.device_count() < 4:
    pytest.skip("needs 4 devices")
  whole, info = _step(_start())
  mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
  spread, again = _step(_start(), mesh=mesh)
  np.testing.assert_allclose(info.loss, again.loss, rtol=1e-5)
  # Adam's first step is the gradient's sign, whatever its size: compare the
  # moments, which are linear in it.
  moments = (
    jax.tree.leaves(optax.tree_utils.tree_get(s.moments, "mu"))
    for s in (whole, spread)
  )
  for a, b in zip(*moments):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_learning_rate_ends_in_zero():
  rate = functools.partial(
    pace.learning_rate, rate=2.0, warmup=10, constant=0.3
  )
  steps = np.array([0, 9, 29, 65, 100])
  found = [float(rate(jnp.float32(s), jnp.float32(100))) for s in steps]
  np.testing.assert_allclose(found, [0.2, 2, 2, 1, 0], atol=1e-6)
  assert float(rate(jnp.float32(50), jnp.float32(np.inf))) == 2.0


# --- the run ------------------------------------------------------------------


def _train(settings, path, *, resume=False):
  command = ["python", "-m", "experiments.train_prior"]
  with record.Run(path, command=command, resume=resume) as r:
    study.train(study.prepare(settings), r)
  return r.folder


@pytest.mark.slow
@pytest.mark.parametrize("muon_rate", [0.0, 1e-3])
def test_resumed_run_is_bit_identical(tmp_path, folder, muon_rate):
  """Of AdamW, and of Muon beside it in blocks with norms."""
  settings = _settings(folder, steps=6, save_every=100)
  settings = dataclasses.replace(
    settings,
    optim=dataclasses.replace(settings.optim, muon_rate=muon_rate),
    network=dataclasses.replace(settings.network, normed=muon_rate > 0),
  )
  whole = _train(settings, tmp_path / "whole")

  class Stopped(Exception):
    pass

  real = training.step

  def stopping(state, *arguments, **options):
    if int(state.step) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return real(state, *arguments, **options)

  training.step = stopping
  try:
    with pytest.raises(SystemExit, match="goes on with --resume"):
      _train(settings, tmp_path / "part")
  finally:
    training.step = real
  rest = _train(settings, tmp_path / "part", resume=True)
  assert rest == tmp_path / "part"
  first, last = (
    (path / "photo_prior.safetensors").read_bytes() for path in (whole, rest)
  )
  assert first == last
  like = optimiser.init(
    priors.initial_params(settings.network, jax.random.key(1)), settings.optim
  )
  states = [Checkpoints(path).restore(like).state for path in (whole, rest)]
  for a, b in zip(*map(jax.tree.leaves, states)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_debug_run_leaves_everything(tmp_path):
  """From the command line, on the installed photographs."""
  argv = [
    "train_prior",
    f"--config={command_line.CONFIGS}/train_prior.py:debug",
  ]
  runner.main(
    "train_prior",
    study.Settings,
    study.train,
    prepare=study.prepare,
    argv=[*argv, f"--workdir={tmp_path / 'run'}"],
  )
  prior = priors.load_prior(tmp_path / "run" / "photo_prior.json")
  assert prior.config == NETWORK
  said = json.loads((tmp_path / "run" / "photo_prior.json").read_text())
  assert sorted(said["photographs"]) == sorted(photographs.PRIOR)
  assert said["steps"] == 6
  text = (tmp_path / "run" / "report.html").read_text()
  assert 'id="spectrum"' in text and text.count("<figure>") == 3


def test_checkpoints_refuse_other_networks(tmp_path):
  with refused(ValueError, "--workdir must hold a run with"):
    Checkpoints(tmp_path / "empty").restore(_start())
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(Saved(_start(), 9.0))
  assert Checkpoints(tmp_path).restore(_start()).total == 9.0
  other = priors.UNetConfig(widths=(24,), blocks=(1,), embedding=16)
  with refused(writing.Refused, "--workdir must hold a run of the same"):
    Checkpoints(tmp_path).restore(_start(other))


def test_planned_steps_fill_the_minutes(monkeypatch):
  monkeypatch.setattr(pace.time, "monotonic", lambda: 130.0)
  plan = functools.partial(pace.planned, minutes=5.0, spent=60.0)
  assert plan((100, 120.0), 150) == np.inf
  assert plan((100, 105.0), 150) == 150 + round((300 * 0.97 - 60) / 0.5)


def _written(tmp_path, network=NETWORK):
  """A manifest of random weights."""
  params = _params(jax.random.key(5), network)
  params = {name: value + 0.01 for name, value in params.items()}
  priors.save_prior(tmp_path / "mine.json", params, network, {})
  return tmp_path / "mine.json"


@pytest.mark.slow
def test_run_starts_from_a_prior(tmp_path, folder):
  """A step of rate near 0 leaves the weights that it started from."""
  manifest = _written(tmp_path)
  settings = _settings(folder, start=str(manifest), steps=1)
  still = dataclasses.replace(settings.optim, rate=1e-12)
  run = _train(dataclasses.replace(settings, optim=still), tmp_path / "run")
  first, last = (
    priors.load_prior(path).params
    for path in (manifest, run / "photo_prior.json")
  )
  for name, value in first.items():
    np.testing.assert_allclose(last[name], value, atol=1e-6)
  said = json.loads((run / "photo_prior.json").read_text())
  assert said["start"]["files"] == {"start mine.json": writing.digest(manifest)}
  assert said["start"]["parameters"] == sum(v.size for v in first.values())


def test_a_prior_to_start_from_is_among_the_inputs(tmp_path, folder):
  task = study.prepare(_settings(folder, start=str(_written(tmp_path))))
  chex.assert_trees_all_equal(
    study.first_params(task, jax.random.key(0)), task.started.params
  )
  assert sorted(study.inputs(task)) == ["photograph a.png", "start mine.json"]
  assert [*study.inputs(study.prepare(_settings(folder)))] == [
    "photograph a.png"
  ]


def test_a_prior_to_start_from_has_the_network_of_the_settings(
  tmp_path, folder
):
  with refused(ValueError, "network must be that of start"):
    study.prepare(_settings(folder, start=str(_written(tmp_path, SMALL))))
  with refused(ValueError, "start must name a file or directory"):
    study.prepare(_settings(folder, start=str(tmp_path / "none.json")))


@pytest.mark.parametrize("bits, dtype", [(16, np.float16), (8, np.int8)])
def test_weights_are_stored_in_the_bits_asked_for(
  bits, dtype, tmp_path, folder
):
  settings = _settings(folder, bits=bits)
  with record.Run(tmp_path / "run", command=["python"]) as run:
    study.save(_start(NETWORK), study.Task(settings, [], None), run)
  stored = safetensors.numpy.load_file(run.folder / "photo_prior.safetensors")
  assert stored["enter.kernel"].dtype == np.float16
  assert stored["down.0.0.inner.kernel"].dtype == dtype
  assert priors.load_prior(run.folder / "photo_prior.json").config == NETWORK
  said = json.loads((run.folder / "photo_prior.json").read_text())
  assert said["settings"]["bits"] == bits


def test_large_network_fits_a_file_of_eight_bits():
  """One byte a weight, below the 16 MB that a file of the package may have."""
  large = command_line.to_settings(study.Settings, config.get_config("large"))
  shapes = learned.param_shapes(large.network)
  count = sum(math.prod(shape) for shape in shapes.values())
  assert 10e6 < count < 15.5e6
  assert large.bits == 8
  with pytest.raises(ValueError, match="the forms large and debug, not 'huge'"):
    config.get_config("huge")


def test_refused_settings(folder):
  with pytest.raises(ValueError, match="one of minutes and steps"):
    _settings(folder, minutes=1.0)
  with pytest.raises(ValueError, match="bits must be 8 or 16, got 4"):
    _settings(folder, bits=4)
  with pytest.raises(ValueError, match="sizes must be divisible"):
    _settings(folder, sizes=(20, 31))
