"""The loop and the update that every training shares."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.harness import record, writing
from experiments.harness.training import loop, optimiser
from experiments.harness.training.checkpoints import Checkpoints
from experiments.harness.training.loop import LoopSettings
from experiments.harness.training.optimiser import OptimSettings
from posterior_jax import priors
from tests.oracles import refused

MOVED = jax.jit(optimiser.moved, static_argnames=("optim", "decays"))
OPTIM = OptimSettings(warmup=2, decay=0.1, average=0.9)
MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
NETWORK = priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)


@functools.partial(jax.jit, donate_argnums=0)
def _step(state, total):
  """A parabola whose lowest point is drawn anew in every step."""
  key = jax.random.fold_in(jax.random.key(0), state.step)

  def loss(params):
    return jnp.sum((params["x"] - jax.random.normal(key, (3,))) ** 2)

  value, gradient = jax.value_and_grad(loss)(state.params)
  return optimiser.moved(state, value, gradient, total, OPTIM)


def _fresh():
  return optimiser.init({"x": jnp.array([1.0, -2.0, 0.5])}, OPTIM)


def _train(path, *, steps=7, stop_at=None, resume=False):
  """A whole run, or one that a signal stops while a step is under way."""
  settings = LoopSettings(0.0, steps, save_every=2, report_every=1)

  def step(state, number, total):
    if number == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return _step(state, total)

  about = loop.Loop("test", settings, lambda _, info: info._asdict(), id)
  with record.Run(path, resume=resume) as run:
    saved = loop.start(_fresh(), settings, MESH, run.folder)
    return loop.train(saved, step, about, run)


def test_a_stopped_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
  whole = _train(tmp_path / "whole")
  part = tmp_path / "part"
  with pytest.raises(SystemExit, match="stopped at step 4; the same command"):
    _train(part, stop_at=3)
  assert Checkpoints(part).newest == 4
  rest = _train(part, resume=True)
  for a, b in zip(*map(jax.tree.leaves, (whole, rest)), strict=True):
    np.testing.assert_array_equal(a, b)
  curves = [
    [json.loads(line) for line in (path / "training.jsonl").open()]
    for path in (tmp_path / "whole", part)
  ]
  for row in (*curves[0], *curves[1]):
    assert row.pop("seconds") >= 0
  assert curves[0] == curves[1] and len(curves[0]) == 7


def test_a_run_killed_beyond_its_checkpoint_repeats_no_line(tmp_path):
  """From the state that the run began with: all its lines are there."""
  _train(tmp_path, steps=7)
  with (tmp_path / "training.jsonl").open("a") as file:
    file.write('{"step": 8, "of": 9, "se')
  settings = LoopSettings(0.0, 9, save_every=99, report_every=1)
  about = loop.Loop("test", settings, lambda _, info: info._asdict(), id)
  with record.Run(tmp_path, resume=True) as run:
    saved = loop.start(_fresh(), settings, MESH, None)
    loop.train(saved, lambda s, _, total: _step(s, total), about, run)
  steps = [
    json.loads(line)["step"] for line in (tmp_path / "training.jsonl").open()
  ]
  assert steps == list(range(1, 10))


def test_weights_that_have_diverged_end_in_a_sentence(tmp_path):
  """Those that `save` refuses; a run of minutes would go on for nothing."""

  def save(state):
    priors.save_prior(tmp_path / "a.json", state.average, NETWORK, {})

  huge = dataclasses.replace(OPTIM, rate=1e30, warmup=0)
  state = optimiser.init(
    priors.initial_params(NETWORK, jax.random.key(0)), huge
  )
  settings = LoopSettings(0.0, 7, save_every=2, report_every=1)
  about = loop.Loop("test", settings, lambda _, info: info._asdict(), save)
  ones = jax.tree.map(jnp.ones_like, state.params)

  def step(state, _, total):
    return MOVED(state, jnp.float32(1), ones, total, huge)

  with record.Run(tmp_path / "run") as run:
    saved = loop.start(state, settings, MESH, run.folder)
    with refused(writing.Refused, "after 2 steps cannot be kept: .* finite"):
      loop.train(saved, step, about, run)


def test_gradient_that_is_not_finite_changes_nothing():
  state = _fresh()
  before = jax.tree.map(np.asarray, state)
  gradient = {"x": jnp.array([0.0, np.nan, 1.0])}
  after, info = MOVED(
    state, jnp.float32(1), gradient, jnp.float32(9), optim=OPTIM
  )
  assert np.isnan(info.gradient) and int(after.step) == 1
  for a, b in zip(*map(jax.tree.leaves, (before, after._replace(step=0)))):
    np.testing.assert_array_equal(a, b)


def test_update_is_adamw_of_the_clipped_gradient_and_its_average():
  optim = OptimSettings(warmup=0, clip=1.0, decay=0.5, average=0.99)
  x = np.array([1.0, -2.0])
  names = {"a.kernel": jnp.asarray(np.float32(x))}
  names["bias"] = names["a.kernel"]
  gradient = {name: jnp.full(2, 3.0) for name in names}  # of norm 6
  state, info = MOVED(
    optimiser.init(names, optim),
    jnp.float32(0),
    gradient,
    jnp.float32(np.inf),
    optim=optim,
    decays=lambda name: name.endswith("kernel"),
  )
  assert float(info.gradient) == 6 and float(info.rate) == np.float32(1e-3)
  # Adam's first step is 1, whatever the gradient's size.
  expected = {"a.kernel": x - 1e-3 * (1 + 0.5 * x), "bias": x - 1e-3}
  for name, value in expected.items():
    np.testing.assert_allclose(state.params[name], value, rtol=1e-6)
    average = 0.1 * x + 0.9 * value  # young: (0 + 1) / (0 + 10) is kept
    np.testing.assert_allclose(state.average[name], average, rtol=1e-6)


def test_refused_settings():
  with refused(ValueError, "clip must be positive, got nan"):
    OptimSettings(clip=float("nan"))
  with refused(ValueError, r"constant must lie in \[0, 1\), got 1"):
    OptimSettings(constant=1)
  with refused(ValueError, "save_every must be at least 1, got 0"):
    LoopSettings(0.0, 1, save_every=0, report_every=1)
  with refused(ValueError, "one of minutes and steps must be positive"):
    LoopSettings(1.0, 1, save_every=1, report_every=1)
