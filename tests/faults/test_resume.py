"""Runs gone on with: damaged checkpoints, other inputs, what is said and how.

The command line is that of a small experiment of this file.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import record, runner, writing
from experiments.harness.training import checkpoints, loop, optimiser
from experiments.harness.training.checkpoints import Checkpoints, Saved
from experiments.restore.drawing import kept as restore
from experiments.restore.drawing.stepwise import Drawn
from tests.faults.test_writing import Layer, results, write_all
from tests.oracles import refused

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIM = optimiser.OptimSettings(average=0.9)


def _state(step, seed=0):
  params = {"x": jnp.asarray(np.random.default_rng(seed).normal(size=200))}
  params = {name: x.astype(jnp.float32) for name, x in params.items()}
  return optimiser.init(params, OPTIM)._replace(step=jnp.int32(step))


def _saved(folder, steps=(2, 4)):
  for step in steps:
    Checkpoints(folder).save(Saved(_state(step, seed=step), 9.0))
  return sorted((folder / "checkpoints").iterdir())


# --- checkpoints --------------------------------------------------------------


@pytest.mark.parametrize(
  "count", [50, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path, count):
  _, newer = _saved(tmp_path)
  before = newer.read_bytes()
  rng = np.random.default_rng(count)
  for _ in range(count):
    data = bytearray(before)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    newer.write_bytes(data)
    with refused(checkpoints.Damaged, f"checkpoints/{newer.name} is damaged"):
      Checkpoints(tmp_path).restore(_state(0))
    assert Checkpoints(tmp_path).newest == 2
    newer.with_suffix(".damaged").unlink()
  newer.write_bytes(before)
  found = Checkpoints(tmp_path).restore(_state(0))
  assert found.total == 9.0 and int(found.state.step) == 4
  np.testing.assert_array_equal(
    found.state.params["x"], _state(4, seed=4).params["x"]
  )


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_cut_checkpoints_are_found(tmp_path, size):
  _, newer = _saved(tmp_path)
  newer.write_bytes(newer.read_bytes()[:size])
  with refused(checkpoints.Damaged, "is damaged, its SHA-256 is"):
    Checkpoints(tmp_path).restore(_state(0))


def test_a_run_falls_back_to_the_step_before_and_says_so(tmp_path, capsys):
  mesh = loop.Mesh(np.array(loop.jax.devices()[:1]), ("data",))
  settings = loop.LoopSettings(0.0, 9, save_every=2, report_every=1)

  def start():
    return int(loop.start(_state(0), settings, mesh, tmp_path).state.step)

  older, newer = _saved(tmp_path)
  assert start() == 4 and capsys.readouterr().err == ""
  newer.write_bytes(newer.read_bytes()[:-1] + b"?")
  assert start() == 2
  said = capsys.readouterr().err
  assert newer.name in said and said.endswith("going on from step 2\n")
  assert newer.with_suffix(".damaged").exists()
  older.write_bytes(b"")
  assert start() == 0
  assert capsys.readouterr().err.endswith("going on from step 0\n")
  # The step that was damaged takes its place again, under its own name.
  assert _saved(tmp_path)[-1].name == newer.with_suffix(".safetensors").name


def test_flipped_bits_of_a_drawn_image_have_it_drawn_again(
  tmp_path, capsys, monkeypatch
):
  """Of `restore`: every bit of an entry of the zip's directory, and others."""
  monkeypatch.setattr(os, "fsync", lambda file: None)
  file, found = tmp_path / "image.npz", set()
  first = Drawn(np.float32(np.random.default_rng(0).normal(size=(2, 3))), 5, 7)

  def kept():
    found = restore.kept(file) or restore.keep(file, lambda key: first, None)
    (image, calls, *_), seconds = found
    return image.tobytes(), calls, seconds

  whole = kept()
  before = file.read_bytes()
  directory = 8 * before.index(b"PK\x01\x02")
  first_entry = range(directory, directory + 8 * 46)
  for bit in (*range(0, 8 * len(before), 61), *first_entry):
    data = bytearray(before)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    again = kept()
    said = capsys.readouterr().err
    assert again[:2] == whole[:2]
    assert said in ("", f"{file} is damaged; it is drawn again\n")
    assert said or again == whole  # harmless, as in a date
    found.add(said)
  assert len(found) == 2


def test_two_checkpoints_are_kept(tmp_path):
  found = _saved(tmp_path, steps=(2, 4, 6, 8))
  assert [int(path.name.split("-")[0]) for path in found] == [6, 8]


# --- what went in -------------------------------------------------------------


def test_other_inputs_are_refused_by_name(tmp_path):
  def resume(**inputs):
    with record.Run(tmp_path, inputs=inputs, resume=True):
      pass

  resume(text="1" * 64, picture="2" * 64)
  before = (tmp_path / "environment.json").read_bytes()
  for inputs, words in (
    ({"text": "3" * 64, "picture": "2" * 64}, "another text: its SHA-256 was"),
    ({"text": "1" * 64}, "another picture: its SHA-256 was 222222222222 and"),
    ({"text": "1" * 64, "picture": "2" * 64, "mask": "4" * 64}, "another mask"),
  ):
    with refused(writing.Refused, words):
      resume(**inputs)
  assert (tmp_path / "environment.json").read_bytes() == before
  resume(picture="2" * 64, text="1" * 64)


def test_runs_of_older_versions_are_refused_with_a_way_out(tmp_path):
  way_out = "under that version, or start anew in another --workdir"
  with record.Run(tmp_path, config={"seed": 1}):
    pass
  before = json.loads((tmp_path / "environment.json").read_text())
  del before["inputs"]
  before["config"]["resume"] = ""  # a field of then
  (tmp_path / "environment.json").write_text(json.dumps(before))
  with refused(writing.Refused, "did not record the files that .*" + way_out):
    record.Run(tmp_path, config={"seed": 1}, resume=True)
  # A checkpoint of Orbax is a folder whose name is its step.
  (tmp_path / "checkpoints" / "300" / "default").mkdir(parents=True)
  with refused(writing.Refused, "300' is a checkpoint of an older.*" + way_out):
    Checkpoints(tmp_path).save(Saved(_state(2), 9.0))


def test_an_unreadable_record_or_table_is_one_sentence(tmp_path):
  with record.Run(tmp_path) as run:
    for i in range(3):
      run.write("steps", {"step": i})
  kept = (tmp_path / "environment.json").read_text()
  for text in ("", "{", "[]", '{"config": 3}'):
    (tmp_path / "environment.json").write_text(text)
    with refused(writing.Refused, "holds no run that could be resumed"):
      record.Run(tmp_path, resume=True)
  (tmp_path / "environment.json").write_text(kept)
  table = tmp_path / "steps.jsonl"
  for line in ('{"step": 1', '{"stpp": 1}', "[]"):
    table.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with record.Run(tmp_path, resume=True) as run:
      with refused(writing.Refused, "line 2 of .*steps.jsonl' is damaged"):
        run.rows("steps")


# --- the command line ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the small experiment."""

  seed: int = 0


CONFIG = """
import ml_collections
def get_config():
  return ml_collections.ConfigDict({"seed": 3})
"""


def _main(tmp_path, experiment, *arguments, **options):
  config = tmp_path / "config.py"
  config.write_text(CONFIG)
  options = {"resumable": True} | options
  runner.main(
    "small",
    Settings,
    experiment,
    ["small", f"--config={config}", *arguments],
    **options,
  )


def _said(capsys, code, *arguments, **options):
  with pytest.raises(SystemExit) as stop:
    _main(*arguments, **options)
  assert stop.value.code == code
  captured = capsys.readouterr()
  assert captured.err.count("\n") == 1, captured.err
  return captured.err


def _rows(settings, run):
  run.write("steps", {"step": settings.seed})


def test_sentences_of_the_command_line(tmp_path, capsys):
  said = _said(capsys, 2, tmp_path, _rows, "--workdir=")
  assert "workdir must name a folder, got an empty --workdir=" in said
  missing = tmp_path / "missing"
  said = _said(capsys, 2, tmp_path, _rows, f"--workdir={missing}", "--resume")
  assert "is no folder, so that there is nothing to go on with" in said
  assert not missing.exists()
  run = tmp_path / "run"
  _main(tmp_path, _rows, f"--workdir={run}")
  (run / "report.html").mkdir()
  said = _said(capsys, 2, tmp_path, _rows, f"--workdir={run}", "--resume")
  assert "report.html' must be a file, so that it can be written" in said
  (run / "report.html").rmdir()
  held = writing.hold(run)
  said = _said(capsys, 2, tmp_path, _rows, f"--workdir={run}", "--resume")
  assert f"is in use by process {os.getpid()} on" in said
  held.close()
  assert len((run / "steps.jsonl").read_text().splitlines()) == 1
  _main(tmp_path, _rows, f"--workdir={run}", "--resume")


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tmp_path, capsys):
  resource = pytest.importorskip("resource")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  full = [True]

  def writes(settings, run):
    run.write_once("steps", {"step": 0}, ("step",))
    if full:  # from here on, whatever is written at the run's end too
      resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    writing.write(run.folder / "report.html", "a" * 5000)

  run = tmp_path / "run"
  try:
    said = _said(capsys, 1, tmp_path, writes, f"--workdir={run}")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert said == (
    f"small: {run}/report.html: File too large; the same command goes on with "
    f"--resume --workdir={run}\n"
  )
  kept = json.loads((run / "environment.json").read_text())
  assert kept["status"] == "running"  # as it was before the disk was full
  full.clear()
  _main(tmp_path, writes, f"--workdir={run}", "--resume")
  assert (run / "steps.csv").read_text() == "step\n0\n"
  kept = json.loads((run / "environment.json").read_text())
  assert kept["status"] == "finished" and len(kept["earlier"]) == 1


def test_ctrl_c_anywhere_is_one_sentence(tmp_path, capsys):
  def interrupt(*_):
    raise KeyboardInterrupt

  said = _said(capsys, 130, tmp_path, _rows, prepare=interrupt)
  assert said == "small: interrupted; nothing was written\n"
  run = tmp_path / "run"
  said = _said(capsys, 130, tmp_path, interrupt, f"--workdir={run}")
  assert said == (
    f"small: interrupted; the same command goes on with --resume "
    f"--workdir={run}\n"
  )


def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, capsys, monkeypatch):
  def interrupted(file):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)  # the signal comes first

  def saves(settings, run):
    del settings
    Checkpoints(run.folder).save(Saved(_state(2), 9.0))
    monkeypatch.setattr(writing.os, "fsync", interrupted)
    Checkpoints(run.folder).save(Saved(_state(4), 9.0))

  run = tmp_path / "run"
  _said(capsys, 130, tmp_path, saves, f"--workdir={run}")
  assert Checkpoints(run).newest == 2
  assert len(list((run / "checkpoints").iterdir())) == 1


def test_ctrl_c_as_a_run_begins_leaves_none(tmp_path, capsys, monkeypatch):
  save, run = record.Run._save, tmp_path / "run"

  def interrupted(self, status):
    save(self, status)
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(record.Run, "_save", interrupted)
    said = _said(capsys, 130, tmp_path, _rows, f"--workdir={run}")
  assert said == "small: interrupted; nothing was written\n"
  _main(tmp_path, _rows, f"--workdir={run}")
  assert (run / "steps.csv").exists() and not (run / "2").exists()


class Dies:
  """With Ctrl-C in its last moment, where nothing can be raised."""

  def __del__(self):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_where_nothing_can_be_raised_is_not_lost(tmp_path, capsys):
  start = []

  def dies(settings, run):
    del settings, run
    start.append(time.monotonic())
    Dies()
    time.sleep(60)  # a lost signal ends here, whatever else the machine does

  run, hook = tmp_path / "run", sys.unraisablehook
  said = _said(capsys, 130, tmp_path, dies, f"--workdir={run}")
  assert "interrupted; the same command goes on" in said
  assert time.monotonic() - start[0] < 30 and sys.unraisablehook is hook


class Interrupting(Layer):
  """Ctrl-C before the n-th call that changes the folder."""

  def __init__(self, folder, n, monkeypatch):
    super().__init__(folder, None, monkeypatch)
    self._n = n

  def moment(self):
    self.count += 1
    if self.count == self._n:
      signal.raise_signal(signal.SIGINT)


def test_ctrl_c_at_every_write_is_one_sentence_and_a_run_goes_on(
  tmp_path, capsys, monkeypatch
):
  """The quick twin of `test_interrupts.py`."""
  monkeypatch.setattr(record, "_revision", lambda: None)
  monkeypatch.setattr(record, "PACKAGES", ())
  options = {"inputs": lambda settings: {"text": "1"}}

  def writes(settings, run):
    del settings
    write_all(run)

  def main(name, *arguments, n=0):
    with monkeypatch.context() as patched:
      layer = Interrupting(tmp_path / name, n, patched)
      arguments = (f"--workdir={tmp_path / name}", *arguments)
      if n:
        return _said(capsys, 130, tmp_path, writes, *arguments, **options)
      _main(tmp_path, writes, *arguments, **options)
    return layer.count

  moments = main("whole")
  whole = results(tmp_path / "whole")
  assert moments > 30
  for n in range(1, moments + 1):
    words = main(f"{n}", n=n).removeprefix("small: interrupted; ")
    begun = words != "nothing was written\n"
    assert words.startswith("the same command goes on with") or not begun
    main(f"{n}", *["--resume"][:begun])
    assert results(tmp_path / f"{n}") == whole, n


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("library", ["numpy", "jaxlib"])
def test_ctrl_c_during_imports_is_one_sentence(library):
  """Once the process has loaded the library, which others come after."""
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.train_prior"],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  maps = pathlib.Path(f"/proc/{process.pid}/maps")
  while library not in maps.read_text():
    time.sleep(0.005)
  process.send_signal(signal.SIGINT)
  said = process.communicate()[1]
  assert (process.returncode, said) == (130, "interrupted; no run was begun\n")


SAYS = """
import sys
from experiments.harness.processes import console
with console.steady("small"):
  print("caf\\u00e9 \\udce9")
  for i in range(1000):
    print("line", i)
  print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("where", ["ascii", "full", "closed"])
def test_standard_output_does_not_end_a_run(where):
  environment = os.environ | {"PYTHONIOENCODING": "ascii"}
  command = [sys.executable, "-c", SAYS]
  if where == "full":
    with open("/dev/full", "w") as out:
      done = subprocess.run(
        command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True
      )
    assert done.returncode == 1
    assert done.stderr == (
      "done\nsmall: standard output was not written (No space left on device); "
      "the results are\n"
    )
    return
  if where == "closed":
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
      command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "done\n")
    return
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, "done\n")
  assert done.stdout.startswith("caf\\xe9 \\udce9\nline 0\n")


# --- two processes ------------------------------------------------------------

SLOW_ROWS = textwrap.dedent("""
  import pathlib, sys, time
  from experiments.harness import record, runner
  from tests.faults.test_resume import Settings

  def slow(settings, run):
    for step in range(5):
      run.write_once("steps", {"step": step}, ("step",))
    while not run.folder.with_suffix(".go").exists():
      time.sleep(0.02)

  runner.main("small", Settings, slow, ["small", *sys.argv[1:]], resumable=True)
""")


@pytest.mark.slow
def test_two_resumes_of_one_run(tmp_path):
  """20 of 20: one works, the other says who holds the folder."""
  (tmp_path / "config.py").write_text(CONFIG)
  for trial in range(20):
    run = tmp_path / str(trial)
    run.mkdir()
    options = (f"--config={tmp_path / 'config.py'}", f"--workdir={run}")
    both = [
      subprocess.Popen(
        [sys.executable, "-c", SLOW_ROWS, *options, "--resume"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
      )
      for _ in range(2)
    ]
    # The one holds the folder until the other has ended, however late it came.
    while all(p.poll() is None for p in both):
      time.sleep(0.02)
    run.with_suffix(".go").touch()
    said = {p: p.communicate()[1] for p in both}
    (lost,) = (p for p in both if p.returncode == 2)
    (won,) = (p for p in both if p.returncode == 0)
    assert said[won] == "", said[won]
    assert said[lost].count("\n") == 1
    assert f"is in use by process {won.pid} on" in said[lost]
    lines = (run / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5))
