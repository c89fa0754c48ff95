"""The byte model's training as a process: killed, stopped, gone on with."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import train_lm as config
from experiments.data import sequence_tasks
from experiments.harness import command_line
from experiments.harness.training import curves, optimiser
from experiments.harness.training.checkpoints import Checkpoints
from experiments.train_lm import step, study
from neumann_jax import shipped

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 60
OPTIONS = (f"--config.steps={STEPS}", "--config.report_every=1")


def _command(path, *options):
  return [
    sys.executable,
    "-m",
    "experiments.train_lm",
    "--config=configs/train_lm.py:debug",
    *OPTIONS,
    *options,
    f"--workdir={path}",
  ]


def _run(path, *options):
  """The whole command; its return code and what it said."""
  done = subprocess.run(
    _command(path, *options), cwd=ROOT, capture_output=True, text=True
  )
  return done.returncode, done.stderr


def _stopped(path, *options, after, number):
  """The command, until a signal once its table has `after` rows.

  Returns:
    Its return code, how many rows it left, what it said.
  """
  table = path / "training.jsonl"
  process = subprocess.Popen(
    _command(path, *options), cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  try:
    while process.poll() is None and _lines(table) < after:
      time.sleep(0.001)
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
  finally:
    process.kill()
  return process.returncode, _lines(table), said


def _lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing stopped."""
  path = tmp_path_factory.mktemp("whole") / "run"
  code, said = _run(path)
  assert code == 0, said
  return path


def _state(path):
  settings = command_line.to_settings(
    study.Settings, config.get_config("debug")
  )
  like = optimiser.init(
    step.initial_params(settings.model, settings.execution, seed=1),
    settings.optim,
  )
  return Checkpoints(path).restore(like).state


def _same_runs(first, second):
  """Tables, weights and moments, bit for bit; only the seconds differ."""
  for table in ("training", "text", "tasks"):
    rows = [
      [json.loads(line) for line in (path / f"{table}.jsonl").open()]
      for path in (first, second)
    ]
    for row in (*rows[0], *rows[1]):
      row.pop("seconds", None)
    assert rows[0] == rows[1] and rows[0], table
  for a, b in zip(*(_leaves(_state(path)) for path in (first, second))):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  weights = "language_model.safetensors"
  assert (first / weights).read_bytes() == (second / weights).read_bytes()


def _leaves(state):
  return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(whole, tmp_path):
  """Kill -9 at three points, drawn anew in every run of this test."""
  path = tmp_path / "run"
  path.mkdir()
  seed = int.from_bytes(os.urandom(4))
  rng = np.random.default_rng(seed)
  parts = []
  for part in range(3):
    first = 1 + (STEPS - 2) * part // 3
    after = int(rng.integers(first, first + (STEPS - 2) // 3))
    code, rows, said = _stopped(
      path, "--resume", after=after, number=signal.SIGKILL
    )
    assert code == -signal.SIGKILL, (seed, said)
    parts.append((after, rows))
    print(f"seed {seed}: killed with {rows} rows, wanted {after}")
  code, said = _run(path, "--resume")
  assert code == 0, (seed, said)
  found = json.loads((path / "environment.json").read_text())
  assert [e["status"] for e in found["earlier"]] == ["running"] * 3
  assert parts[-1][1] < STEPS, (seed, parts)
  _same_runs(whole, path)


@pytest.mark.slow
def test_sigterm_saves_and_ends_in_one_sentence(whole, tmp_path):
  path = tmp_path / "run"
  code, rows, said = _stopped(path, after=10, number=signal.SIGTERM)
  assert code == 1 and 10 <= rows < STEPS
  step = int(_state(path).step)
  assert step == rows  # the step under way was finished, and kept
  last = said.strip().splitlines()[-1]
  assert last == (
    f"stopped at step {step}; the same command goes on with --resume "
    f"--workdir={path}"
  )
  assert shipped.load_model(path / "language_model.json")
  code, said = _run(path, "--resume")
  assert code == 0, said
  _same_runs(whole, path)


@pytest.mark.slow
def test_debug_run_leaves_everything(whole):
  said = json.loads((whole / "language_model.json").read_text())
  assert said["steps"] == STEPS and said["tokens"] == STEPS * 8 * 128
  assert "--config=configs/train_lm.py:debug" in said["command"]
  losses = [
    json.loads(line)["loss"] for line in (whole / "training.jsonl").open()
  ]
  assert len(losses) == STEPS
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
  tasks = [json.loads(line) for line in (whole / "tasks.jsonl").open()]
  assert [row["task"] for row in tasks] == list(sequence_tasks.TASKS)
  text = [json.loads(line) for line in (whole / "text.jsonl").open()]
  assert text[-1]["module"] == "all" and text[-1]["bytes"] == 2000
  report = (whole / "report.html").read_text()
  assert 'id="text"' in report and 'id="tasks"' in report
  assert report.count("<figure>") == 1


# --- curves -------------------------------------------------------------------


def test_missing_tensorboard_is_said_once(monkeypatch, capsys, tmp_path):
  monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
  written = curves.Scalars(tmp_path)
  written.write(1, {"loss": 1.0})
  written.close()
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "neumann-posterior[tensorboard]" in said
  assert not list(tmp_path.iterdir())


def test_curves_are_events(tmp_path):
  pytest.importorskip("tensorboard")
  from tensorboard.backend.event_processing import event_accumulator

  written = curves.Scalars(tmp_path)
  for number, loss in ((10, 2.5), (20, 1.25)):
    written.write(number, {"loss": loss, "text": 2 * loss})
  written.close()
  events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  events.Reload()
  for name, factor in (("loss", 1), ("text", 2)):
    found = [
      (event.step, float(event.tensor_proto.float_val[0]))
      for event in events.Tensors(name)
    ]
    assert found == [(10, 2.5 * factor), (20, 1.25 * factor)]
