"""A kill at every write of small runs: all of them go on to the same bits.

`every_write.c`, loaded before libc, keeps the folder as it is before every call
that changes it and in the middle of every write: what a kill -9 there leaves.
Each such folder is put where the run was, and the command goes on with
`--resume`. Some processes are killed in earnest, at moments among the same.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest

from tests.faults.drive import drive

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = 8
# What a clock says; and the command, which has --resume once it goes on.
CLOCK = ("seconds", "compile_seconds", "command")
RUNS = {
  "train_lm": (
    "--config.steps=4",
    "--config.save_every=2",
    "--config.report_every=1",
    "--config.held_out_bytes=300",
    "--config.model.num_hidden_layers=1",
    "--config.model.layer_types=('linear_attention',)",
  ),
  "train_prior": (
    "--config.steps=4",
    "--config.save_every=2",
    "--config.report_every=1",
  ),
  "restoration": (
    "--config.parts=('methods',)",
    "--config.methods=('MMPS',)",
    "--config.evaluations=(3,)",
    "--config.workers=1",
  ),
  "restore": (
    "--config.task=denoising",
    "--config.method=MMPS",
    "--config.levels=3",
    "--config.samples=2",
  ),
}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
]


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
  """The counting layer below libc."""
  compiler = shutil.which("cc")
  if compiler is None:
    pytest.skip("needs a C compiler")
  made = tmp_path_factory.mktemp("layer") / "every_write.so"
  source = pathlib.Path(__file__).with_name("every_write.c")
  subprocess.run(
    [compiler, "-shared", "-fPIC", "-O1", source, "-o", made, "-ldl"],
    check=True,
  )
  return made


def _inputs(name, folder):
  """Options that name files made here."""
  folder.mkdir()
  if name == "train_lm":
    for module in ("ast", "bisect", "glob", "mailbox"):  # the last two held out
      (folder / f"{module}.py").write_text(f"{module} = 1\n" * 60)
    return [f"--config.data={folder}"]
  pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  if name == "train_prior":
    PIL.Image.fromarray(pixels).save(folder / "a.png")
    return [f"--config.photographs={folder}"]
  if name == "restore":
    PIL.Image.fromarray(pixels[:32, :32]).save(folder / "a.png")
    return [f"--config.image={folder / 'a.png'}"]
  return []


def _process(layer, run, command, **environment):
  """The command under the layer; its return code and what it said."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.faults.drive", *command],
    cwd=ROOT,
    env=os.environ
    | {"LD_PRELOAD": str(layer), "FAULTS_OF": str(run)}
    | environment,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stderr


@pytest.fixture(scope="module")
def programs(quick_compilation, tmp_path_factory):
  """Compiled programs on disk, for all processes: of the same bits."""
  del quick_compilation
  folder = str(tmp_path_factory.mktemp("programs"))
  settings = {
    "jax_compilation_cache_dir": folder,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield {name.upper(): str(value) for name, value in settings.items()}
  for name, value in before.items():
    jax.config.update(name, value)


class Kept(NamedTuple):
  """An unbroken run, and every folder that a kill in it would have left."""

  name: str
  command: list[str]
  run: pathlib.Path
  whole: dict[str, Any]  # its results
  moments: int
  states: list[pathlib.Path]  # folders that differ
  killed: Callable[[int], tuple[int, str]]  # runs it, with a kill at a moment


@pytest.fixture(scope="module", params=RUNS)
def kept(request, layer, programs, tmp_path_factory):
  """One of RUNS."""
  name, place = request.param, tmp_path_factory.mktemp(request.param)
  run, copies = place / "run", place / "copies"
  copies.mkdir()
  command = [name, f"--config=configs/{name}.py:debug", *RUNS[name]]
  command += [*_inputs(name, place / "in"), f"--workdir={run}"]
  code, said = _process(layer, run, command, FAULTS_TO=str(copies), **programs)
  assert code == 0, said
  found = sorted(copies.iterdir(), key=lambda path: int(path.name))
  states = {_hash(path): path for path in found}

  def killed(moment):
    return _process(layer, run, command, FAULTS_KILL=str(moment), **programs)

  whole = _results(run)
  return Kept(
    name, command, run, whole, len(found), list(states.values()), killed
  )


@pytest.mark.parametrize("part", range(PARTS), ids="part{}".format)
def test_killed_at_every_write_a_run_goes_on_to_the_same_bits(
  kept, part, capsys
):
  states = kept.states[part::PARTS]
  for state in states:
    shutil.rmtree(kept.run, ignore_errors=True)
    shutil.copytree(state, kept.run)
    drive(*kept.command, "--resume")
    assert _results(kept.run) == kept.whole, state
  with capsys.disabled():
    print(
      f"{kept.name}, part {part + 1} of {PARTS}: {len(states)} of "
      f"{len(kept.states)} different folders at {kept.moments} moments resumed "
      "to the bit"
    )


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_process_killed_in_earnest_goes_on_to_the_same_bits(kept, share):
  moment = int(share * kept.moments)
  shutil.rmtree(kept.run, ignore_errors=True)
  code, said = kept.killed(moment)
  assert code == -signal.SIGKILL, said
  drive(*kept.command, "--resume")
  assert _results(kept.run) == kept.whole, moment


def _hash(folder):
  """Of names and contents."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    digest.update(f"{path.relative_to(folder)}\n".encode())
    if path.is_file() and path.name != ".holder":
      digest.update(path.read_bytes())
  return digest.digest()


def _results(run):
  """All that the run leaves, but what a clock says."""
  found = {}
  for path in sorted(run.rglob("*")):
    name = str(path.relative_to(run))
    if path.is_dir() or name == ".lock":
      continue
    if path.suffix == ".npz":
      with np.load(path) as file:
        found[name] = {
          key: file[key].tobytes() for key in file if key not in CLOCK
        }
    elif path.suffix in (".json", ".jsonl"):
      text = path.read_text()
      lines = text.splitlines() if path.suffix == ".jsonl" else [text]
      rows = [json.loads(line) for line in lines]
      for row in rows:
        for key in CLOCK:
          row.pop(key, None)
      found[name] = rows
    elif path.suffix in (".html", ".csv"):  # made of the tables
      found[name] = path.stat().st_size > 0
    else:
      found[name] = path.read_bytes()
  (record,) = found.pop("environment.json")
  assert record["status"] == "finished"
  assert "training.jsonl" not in found or len(found["training.jsonl"]) == 4
  return found
