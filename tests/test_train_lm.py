"""Training of the byte model: its step, its batches, its run in one process."""

import functools
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import train_lm as config
from experiments.data import text_data
from experiments.harness import command_line, record
from experiments.harness.training import optimiser
from experiments.harness.training.checkpoints import Checkpoints
from experiments.train_lm import batches, step, study
from experiments.train_lm.batches import KINDS, BatchSettings
from neumann_jax import shipped
from tests.oracles import quick_jit, refused

# One compilation of the step for this file: a layer, two kinds of rows.
STEP = quick_jit(step.step, static_argnames="plan")
SMALL = {
  "model.num_hidden_layers": 1,
  "model.layer_types": ("linear_attention",),
  "batch.needle": 0,
  "batch.state": 0,
  "batch.recall": 0,
}
# `glob` and `mailbox` are held out.
FILES = {"ast": 3000, "bisect": 500, "glob": 700, "mailbox": 300}


def _settings(**changes):
  debug = config.get_config("debug")
  debug.update_from_flattened_dict(SMALL | changes)
  return command_line.to_settings(study.Settings, debug)


@functools.cache
def _fresh(**changes):
  settings = _settings(**changes)
  return step.initial_params(settings.model, settings.execution, settings.seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  for name, size in FILES.items():
    data = rng.integers(32, 127, size, dtype=np.uint8)
    (path / f"{name}.py").write_bytes(data.tobytes())
  return str(path)


def _text(folder):
  return jnp.asarray(text_data.stream(text_data.training_text(folder)))


# --- the step -----------------------------------------------------------------


def _step(params_or_state, folder, *, key=0, total=10.0, **changes):
  """A step; all is placed as a run has it: one compilation for this file."""
  state, plan = params_or_state, _settings(**changes).plan()
  if isinstance(state, dict):
    state = optimiser.init(state, plan.optim)
  everywhere = NamedSharding(plan.mesh, P())
  state, text, key = jax.device_put(
    (state, _text(folder), jax.random.key(key)), everywhere
  )
  return STEP(state, text, key, jnp.float32(total), plan=plan)


def _mean(state):
  """Adam's mean of the gradients, by parameter."""
  return optax.tree_utils.tree_get(state.moments, "mu")


HARD = {"optim.clip": 0.1, "optim.decay": 10.0}


def _adamw(params, gradients, rates, decay):
  """AdamW as of arXiv 1711.05101, b1 = 0.9 and b2 = 0.95, in float64."""
  p, mean, square = np.asarray(params, np.float64), 0.0, 0.0
  for i, (gradient, rate) in enumerate(zip(gradients, rates), 1):
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.95 * square + 0.05 * gradient**2
    size = np.sqrt(square / (1 - 0.95**i)) + 1e-8
    p = p - rate * (mean / (1 - 0.9**i) / size + decay * p)
  return p


def test_step_is_adamw_of_the_clipped_gradient(folder):
  start = _fresh()
  first, info = _step(start, folder, **HARD)
  second, after = _step(first, folder, **HARD)
  # What Adam was given, from its mean: a tenth of the first gradient, ...
  means = [
    {name: np.asarray(x, np.float64) for name, x in _mean(state).items()}
    for state in (first, second)
  ]
  given = [
    {name: x / 0.1 for name, x in means[0].items()},
    {name: (x - 0.9 * means[0][name]) / 0.1 for name, x in means[1].items()},
  ]
  for gradient, said in zip(given, (info, after)):
    norm = math.sqrt(sum((x**2).sum() for x in gradient.values()))
    assert norm == pytest.approx(0.1, rel=1e-4) and said.gradient > 0.3
  rates = [1e-3, 2e-3]  # a warm-up of two steps
  np.testing.assert_allclose([info.rate, after.rate], rates, rtol=1e-6)
  for name, value in start.items():
    decay = 10.0 * ("proj" in name or name == "lm_head.kernel")
    expected = _adamw(value, [g[name] for g in given], rates, decay)
    # Adam divides by the gradient, of which float32 kept 1e-6 or so.
    np.testing.assert_allclose(
      second.params[name], expected, rtol=1e-5, atol=2e-6, err_msg=name
    )


def test_gradient_is_the_slope_of_the_loss(folder):
  """By differences along itself, evenly and with random weights."""
  start = _fresh()
  state, info = _step(start, folder, **HARD)
  size = float(info.gradient)
  gradient = {
    name: 10 * np.asarray(x, np.float64) * size / 0.1
    for name, x in _mean(state).items()
  }
  rng = np.random.default_rng(1)
  uneven = {n: x * rng.uniform(0, 2, x.shape) for n, x in gradient.items()}
  for direction in (gradient, uneven):
    norm = math.sqrt(sum((x**2).sum() for x in direction.values()))
    losses = [
      float(_step(_moved(start, direction, eps), folder, **HARD)[1].loss)
      for eps in (1e-3 / norm, -1e-3 / norm)
    ]
    slope = (losses[0] - losses[1]) / 2e-3
    expected = sum(np.vdot(gradient[n], x) for n, x in direction.items()) / norm
    # A step of 1e-3, a twentieth of an embedding, leaves a curvature of 2e-3.
    assert expected > size / 2
    assert abs(slope - expected) <= 0.01 * size, (slope, expected)


def _moved(params, direction, eps):
  return {
    name: x + jnp.asarray(np.float32(eps * direction[name]))
    for name, x in params.items()
  }


def test_gradient_that_is_not_finite_changes_nothing(folder):
  name = "layers.0.mlp.up_proj.kernel"
  bad = _fresh() | {name: _fresh()[name].at[0, 0].set(jnp.nan)}
  state, info = _step(bad, folder, **HARD)
  assert not np.isfinite(info.gradient) and int(state.step) == 1
  for key, value in bad.items():
    np.testing.assert_array_equal(state.params[key], value)
  for leaf in jax.tree.leaves(state.moments):
    np.testing.assert_array_equal(leaf, 0)


def test_first_loss_is_that_of_a_guess(folder):
  """Random weights know nothing: near the logarithm of the vocabulary."""
  _, info = _step(_fresh(), folder, **HARD)
  assert abs(float(info.loss) - math.log(264)) < 0.1
  known = [kind in ("text", "copy") for kind in KINDS]
  np.testing.assert_array_equal(np.isfinite(info.bits), known)


def test_fresh_decays_remember():
  dt = np.log1p(np.exp(_fresh()["layers.0.linear_attn.dt_bias"]))
  assert ((1e-3 < dt) & (dt < 1e-1)).all()


@pytest.mark.slow
def test_step_does_not_depend_on_the_number_of_devices(folder):
  if jax.device_count() < 4:
    pytest.skip("needs 4 devices")
  rows = {"batch.recall": 1, "batch.needle": 1, "batch.state": 1}  # 8 in all
  states = {}
  for devices in (1, 4):
    changes = rows | {"devices": devices, "optim.decay": 0.1}
    state, losses = _fresh(), []
    for _ in range(3):
      state, info = _step(state, folder, **changes)
      losses.append([info.loss, info.gradient, *info.bits])
    states[devices] = np.array(losses, np.float64), state
  # Adam's first steps are signs of the gradient, whatever its size: a
  # component near 0 may turn, so losses are compared and moments, not weights.
  np.testing.assert_allclose(states[4][0], states[1][0], rtol=1e-4)
  for one, four in zip(*(jax.tree.leaves(_mean(states[n][1])) for n in (1, 4))):
    np.testing.assert_allclose(four, one, rtol=1e-2, atol=1e-4)


# --- batches ------------------------------------------------------------------


def test_batches_are_a_pure_function_of_key_and_step(folder):
  settings = BatchSettings(
    length=128, text=2, recall=2, needle=0, state=1, copy=1
  )
  text = _text(folder)
  draw = quick_jit(functools.partial(batches.batch, settings=settings))
  drawn = {
    (key, step): draw(jax.random.key(key), jnp.int32(step), text)
    for key, step in ((0, 7), (1, 7), (0, 0), (0, 8))
  }
  found = drawn[0, 7]
  again = draw(jax.random.key(0), jnp.int32(7), text)
  for a, b in zip(found, again):
    np.testing.assert_array_equal(a, b)
  for which in ((1, 7), (0, 0), (0, 8)):
    same = np.asarray(drawn[which].tokens == found.tokens)
    assert (same.mean(1) < 0.9).all(), which
  tokens, wanted = map(np.asarray, found)
  assert tokens.shape == (6, 128) and wanted.shape == (6, 127)
  np.testing.assert_array_equal(batches.kinds(settings), [0, 0, 1, 1, 3, 4])
  whole = np.asarray(text).astype(np.int32).tobytes()
  assert all(row.tobytes() in whole for row in tokens[:2])
  assert wanted[:2].all() and not wanted[2:].all()
  marks = [text_data.RECALL] * 2 + [text_data.STATE, text_data.COPY]
  assert tokens[2:, 0].tolist() == marks
  # Recall wants values, and they follow keys: none of its marks is an answer.
  assert (tokens[2:4, 1:][wanted[2:4]] >= 128).all()


# --- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"minutes": 1.0}, "one of minutes and steps"),
    ({"steps": 0}, "one of minutes and steps"),
    ({"minutes": -1.0}, "one of minutes and steps"),
    ({"minutes": math.nan}, "one of minutes and steps"),
    ({"save_every": 0}, "save_every must be at least 1, got 0"),
    ({"model.vocab_size": 256}, "model.vocab_size must be at least 264"),
    ({"devices": 99}, r"devices must be in \[0, "),
    ({"devices": 2}, "rows of a batch must be a whole multiple of the 2"),
    ({"batch.length": 64}, "length must be at least 128, got 64"),
    ({"batch.text": 0}, "text must be at least 1"),
    ({"batch.copy": -1}, "copy must be at least 0, got -1"),
    ({"optim.rate": 0.0}, "rate must be positive, got 0.0"),
    ({"optim.clip": math.nan}, "clip must be positive, got nan"),
    ({"optim.constant": 1.0}, r"constant must lie in \[0, 1\)"),
    ({"optim.decay": -0.1}, "decay must be at least 0, got -0.1"),
    ({"execution.remat": "some"}, "remat must be one of"),
    ({"execution.rule.chunk_size": 48}, "chunk_size must be a power of two"),
    ({"execution.dtype": "int8"}, "dtype must be floating"),
    ({"execution.dtype": "some"}, "dtype must be floating point, got 'some'"),
    ({"model.layer_types": ("linear_attention",) * 2}, "layer_types must name"),
  ],
)
def test_refused_settings(changes, message):
  with refused(command_line.UsageError, message):
    _settings(**changes)


# --- the run ------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
  """Runs without compiling: this file's step, no evaluation in the end."""
  seen, fresh = [], _fresh()  # before what makes it is replaced

  def seeing(state, text, key, total, *, plan):
    seen.append((int(state.step), np.asarray(text)))
    return STEP(state, text, key, total, plan=plan)

  monkeypatch.setattr(step, "step", seeing)
  monkeypatch.setattr(
    step,
    "initial_params",
    lambda *_: {name: x.copy() for name, x in fresh.items()},
  )
  monkeypatch.setattr(study, "evaluate", lambda *_: None)
  return seen


def _train(settings, path, **options):
  command = ["python", "-m", "experiments.train_lm"]
  with record.Run(path, command=command, **options) as run:
    study.train(study.prepare(settings), run)
  return path


def _like():
  return optimiser.init(_fresh(), _settings(**HARD).optim)


def _same_runs(first, second):
  """Weights, moments and the curve, bit for bit; only the seconds differ."""
  weights = "language_model.safetensors"
  assert (first / weights).read_bytes() == (second / weights).read_bytes()
  states = [
    Checkpoints(path).restore(_like()).state for path in (first, second)
  ]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(a, b)
  curves = [
    [json.loads(line) for line in (path / "training.jsonl").open()]
    for path in (first, second)
  ]
  for curve in curves:
    for row in curve:
      assert row.pop("seconds") >= 0
  assert curves[0] == curves[1] and len(curves[0]) > 1


@pytest.mark.parametrize(
  "end", ["crash", pytest.param("SIGTERM", marks=pytest.mark.slow)]
)
def test_resumed_run_is_bit_identical(
  end, quick, tmp_path, folder, monkeypatch
):
  settings = _settings(data=folder, steps=7, save_every=2, **HARD)
  whole = _train(settings, tmp_path / "whole")
  real = step.step

  def stopping(state, *arguments, **options):
    if int(state.step) == 5:
      if end == "crash":
        raise RuntimeError("the machine is gone")
      os.kill(os.getpid(), signal.SIGTERM)
    return real(state, *arguments, **options)

  part = tmp_path / "part"
  with monkeypatch.context() as patched:
    patched.setattr(step, "step", stopping)
    kind, message = (
      (RuntimeError, "the machine is gone")
      if end == "crash"
      else (SystemExit, f"stopped at step 6.* --resume --workdir={part}$")
    )
    with pytest.raises(kind, match=message):
      _train(settings, part)
  del quick[:]
  _train(settings, part, resume=True)
  first = 4 if end == "crash" else 6  # its last checkpoint
  assert [number for number, _ in quick] == list(range(first, 7))
  _same_runs(whole, part)


def test_weights_say_what_they_learned_from(quick, tmp_path, folder):
  settings = _settings(data=folder, steps=2, **HARD)
  path = _train(settings, tmp_path / "run")
  said = json.loads((path / "language_model.json").read_text())
  size = FILES["ast"] + FILES["bisect"]
  assert said["training_text"]["bytes"] == size
  assert said["held_out_text"]["bytes"] == sum(FILES.values()) - size
  assert said["steps"] == 2 and said["tokens"] == 2 * 5 * 128
  assert said["settings"]["optim"]["decay"] == 10.0
  # No step saw a byte of `glob` or `mailbox`.
  for _, text in quick:
    assert len(text) == size + 2
    np.testing.assert_array_equal(text, _text(folder))
  model = shipped.load_model(path / "language_model.json")
  assert model.config == settings.model
