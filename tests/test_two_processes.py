"""Two processes that make one run: two of four CPU devices each."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.harness import runner

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _start(
  name,
  path,
  *options,
  processes,
  devices,
  resume=False,
  slurm=False,
  own=((), ()),
  places=(ROOT, ROOT),
):
  """The processes of one run; what they say goes to files beside it.

  `own` are the options of each alone, `places` where it is started.
  """
  port, started = _port(), []
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  for i in range(processes):
    command = [
      *(sys.executable, "-m", f"experiments.{name}"),
      f"--config={ROOT}/configs/{name}.py:debug",
      f"--workdir={path}",
      *options,
      *own[i],
      *(["--resume"] if resume else []),
    ]
    if slurm:
      command += ["--hosts=auto"]
      environment |= {
        "SLURM_JOB_ID": str(port),  # jax takes the coordinator's port of it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(processes),
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
      }
    elif processes > 1:
      command += [
        f"--hosts=127.0.0.1:{port}",
        f"--processes={processes}",
        f"--process={i}",
      ]
    with open(f"{path}.{i}.said", "w") as said:
      started.append(
        subprocess.Popen(
          command, cwd=places[i], env=environment, stdout=said, stderr=said
        )
      )
  return started


def _run(name, path, *options, **how):
  for i, process in enumerate(_start(name, path, *options, **how)):
    code = process.wait(timeout=500)
    assert code == 0, pathlib.Path(f"{path}.{i}.said").read_text()


def _wait_for(path, both, *, rows):
  """Until the table of a run has so many rows."""
  table = path / "training.jsonl"
  while not (table.exists() and table.read_bytes().count(b"\n") >= rows):
    for i, process in enumerate(both):
      said = pathlib.Path(f"{path}.{i}.said")
      assert process.poll() is None, said.read_text()[-3000:]
    time.sleep(0.01)


def _rows(path, table="training"):
  return [json.loads(x) for x in (path / f"{table}.jsonl").open()]


def _column(path, name, table="training"):
  return np.array([row[name] for row in _rows(path, table)])


FINETUNE = (
  *("--config.steps=12", "--config.save_every=4", "--config.rows=8"),
  *("--config.length=64", "--config.mesh.data=0", "--config.mesh.fsdp=2"),
  *("--config.tuning=full", "--config.optim.rate=1e-3"),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """One process of eight devices."""
  path = tmp_path_factory.mktemp("alone") / "run"
  _run("finetune", path, *FINETUNE, processes=1, devices=8)
  return path


@pytest.mark.slow
def test_two_processes_equal_one(alone, tmp_path):
  """Loss and gradient to 1e-5; what the run leaves, too."""
  _run("finetune", tmp_path / "two", *FINETUNE, processes=2, devices=4)
  for name in ("loss", "gradient", "tokens"):
    a, b = _column(alone, name), _column(tmp_path / "two", name)
    np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
  names = {x.name for x in alone.iterdir()}
  assert names == {x.name for x in (tmp_path / "two").iterdir()}
  found = json.loads((tmp_path / "two/environment.json").read_text())
  assert found["processes"] == 2 and len(found["devices"]) == 8
  # One process says what there is to say.
  assert "tuned model" in (tmp_path / "two.0.said").read_text()
  assert "tuned model" not in (tmp_path / "two.1.said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
  "option, words",
  [
    ("--config.optim.rate=2e-3", "has config.optim.rate=0.002 where process 0"),
    ("--config.data=texts.jsonl", "has SHA-256 of "),
    ("--config.data=nowhere.jsonl", 'has config.data="nowhere.jsonl" where'),
  ],
)
def test_two_processes_that_differ_are_refused(tmp_path, option, words):
  """By both, at once; nothing is written."""
  path, places = tmp_path / "two", [tmp_path / "a", tmp_path / "b"]
  for place in places:  # where a file of one name holds other text
    place.mkdir()
    text = json.dumps({"text": f"{place.name} of two " * 40})
    (place / "texts.jsonl").write_text(text + "\n")
  own = ["--config.data=texts.jsonl"], ["--config.data=texts.jsonl", option]
  how = {"processes": 2, "devices": 1, "own": own, "places": places}
  both = _start("finetune", path, *FINETUNE, **how)
  codes = [process.wait(timeout=100) for process in both]
  said = [pathlib.Path(f"{path}.{i}.said").read_text() for i in range(2)]
  assert codes == [runner.USAGE] * 2, said
  assert "process 1 could not go on, and says why itself" in said[0]
  assert words in said[1]
  assert not path.exists()


@pytest.mark.slow
def test_slurm_says_who_they_are(alone, tmp_path):
  """The variables that `srun` sets, and --hosts=auto."""
  path = tmp_path / "two"
  _run("finetune", path, *FINETUNE, processes=2, devices=4, slurm=True)
  found = json.loads((path / "environment.json").read_text())
  assert found["processes"] == 2 and len(found["devices"]) == 8
  a, b = _column(alone, "loss"), _column(path, "loss")
  np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_and_the_run_goes_on(alone, tmp_path, victim):
  """The other ends with a sentence; again two, or one on another mesh."""
  path = tmp_path / "run"
  path.mkdir()
  both = _start(
    "finetune", path, *FINETUNE, processes=2, devices=4, resume=True
  )
  _wait_for(path, both, rows=6)
  both[victim].send_signal(signal.SIGKILL)
  start = time.monotonic()
  code = both[1 - victim].wait(timeout=60)
  print(f"the other ended after {time.monotonic() - start:.1f} s")
  assert code == runner.FAILED
  said = (tmp_path / f"run.{1 - victim}.said").read_text()
  assert said.strip().splitlines()[-1] == (
    "finetune: another process of this run has died; the same command goes on "
    f"with --resume --workdir={path}"
  )
  assert list((path / "checkpoints").glob("*.orbax"))
  # Again both, or one alone: half the devices, another mesh.
  many = 2 if victim else 1
  _run("finetune", path, *FINETUNE, processes=many, devices=4, resume=True)
  for name in ("loss", "gradient"):
    a, b = _column(alone, name), _column(path, name)
    np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_after_the_same_step(tmp_path):
  path = tmp_path / "run"
  options = (*FINETUNE, "--config.steps=400")
  both = _start("finetune", path, *options, processes=2, devices=4)
  _wait_for(path, both, rows=2)
  both[1].send_signal(signal.SIGTERM)
  assert [p.wait(timeout=120) for p in both] == [1, 1]
  assert 2 <= _stopped_at(path) < 400


def _stopped_at(path):
  """The step after which both ended, with a checkpoint and one sentence."""
  last = {
    pathlib.Path(f"{path}.{i}.said").read_text().strip().splitlines()[-1]
    for i in range(2)
  }
  assert len(last) == 1
  words = "the same command goes on with --resume"
  found = re.fullmatch(rf"stopped at step (\d+); {words} .*", last.pop())
  step = int(found[1])
  assert (path / f"checkpoints/{step:08d}.orbax").is_dir()
  rows = [row["step"] for row in _rows(path)] if step else []
  assert rows == list(range(1, step + 1))
  return step


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_while_they_compile(alone, tmp_path, victim):
  """All stop at once, twice; then again two, or one on another mesh."""
  path, steps = tmp_path / "run", []
  found = path / "environment.json"
  for begun in (0, 1):  # how often before
    both = _start(
      "finetune", path, *FINETUNE, processes=2, devices=4, resume=bool(begun)
    )
    while not found.exists() or (
      len(json.loads(found.read_text()).get("earlier", [])) < begun
    ):
      assert [process.poll() for process in both] == [None, None]
      time.sleep(0.01)
    both[victim].send_signal(signal.SIGTERM)
    assert [p.wait(timeout=300) for p in both] == [1, 1]
    steps.append(_stopped_at(path))
  assert 1 <= steps[0] < steps[1] < 12
  many = 2 if victim else 1
  _run("finetune", path, *FINETUNE, processes=many, devices=4, resume=True)
  for name in ("loss", "gradient"):
    a, b = _column(alone, name), _column(path, name)
    np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_byte_model_of_two_processes(tmp_path):
  options = ("--config.devices=0", "--config.report_every=1")
  for name, processes in (("one", 1), ("two", 2)):
    how = {"processes": processes, "devices": 8 // processes}
    _run("train_lm", tmp_path / name, *options, **how)
  for column in ("loss", "gradient"):
    a, b = (_column(tmp_path / x, column) for x in ("one", "two"))
    np.testing.assert_allclose(a, b, rtol=1e-5)
  a, b = (_column(tmp_path / x, "model", "text") for x in ("one", "two"))
  np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_of_an_evaluation(tmp_path):
  """It ends, and the other as if it had been killed."""
  path = tmp_path / "run"
  many = "--config.max_tokens=4000"
  both = _start("evaluate_lm", path, many, processes=2, devices=1)
  while not (path / "environment.json").exists():
    assert [process.poll() for process in both] == [None, None]
    time.sleep(0.01)
  both[1].send_signal(signal.SIGTERM)
  assert both[1].wait(timeout=10) == -signal.SIGTERM
  assert both[0].wait(timeout=60) == runner.FAILED
  said = (tmp_path / "run.0.said").read_text()
  assert said.strip().splitlines()[-1] == (
    "evaluate_lm: another process of this run has died; the same command goes "
    f"on with --resume --workdir={path}"
  )


@pytest.mark.slow
def test_the_evaluation_of_two_processes(tmp_path):
  for name, processes in (("one", 1), ("two", 2)):
    _run("evaluate_lm", tmp_path / name, processes=processes, devices=4)
  keys = ("weights", "chunk_size", "spec", "batch")
  found = [
    {tuple(row[k] for k in keys): row for row in _rows(tmp_path / x, "windows")}
    for x in ("one", "two")
  ]
  assert found[0].keys() == found[1].keys() and len(found[0]) > 2
  for key, row in found[0].items():
    np.testing.assert_allclose(row["loss"], found[1][key]["loss"], rtol=1e-5)
