"""A kill at every write of small runs: all of them go on to the same bits.

`every_write.c`, loaded before libc, keeps the folder as it is before every call
that changes it and in the middle of every write: what a kill -9 there leaves.
Each such folder is put where the run was, and the command goes on with
`--resume`. Some processes are killed in earnest, at moments among the same.
"""

import hashlib
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.faults import small_runs
from tests.faults.drive import drive
from tests.faults.small_runs import results

PARTS = 8

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
]


class Kept(NamedTuple):
  """An unbroken run, and every folder that a kill in it would have left."""

  name: str
  command: list[str]
  run: pathlib.Path
  whole: dict[str, Any]  # its results
  moments: int
  states: list[pathlib.Path]  # folders that differ
  killed: Callable[[int], tuple[int, str]]  # runs it, with a kill at a moment


@pytest.fixture(scope="module", params=small_runs.RUNS)
def kept(request, layer, programs, tmp_path_factory):
  """One of the small runs."""
  name, place = request.param, tmp_path_factory.mktemp(request.param)
  copies = place / "copies"
  copies.mkdir()
  command, run = small_runs.command(name, place)

  def process(**environment):
    environment |= {"LD_PRELOAD": str(layer), "FAULTS_OF": str(run)} | programs
    code, _, said = small_runs.process("drive", command, **environment)
    return code, said

  code, said = process(FAULTS_TO=str(copies))
  assert code == 0, said
  found = sorted(copies.iterdir(), key=lambda path: int(path.name))
  states = {_hash(path): path for path in found}

  def killed(moment):
    return process(FAULTS_KILL=str(moment))

  whole = results(run)
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
    assert results(kept.run) == kept.whole, state
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
  assert results(kept.run) == kept.whole, moment


def _hash(folder):
  """Of names and contents."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    digest.update(f"{path.relative_to(folder)}\n".encode())
    if path.is_file() and path.name != ".holder":
      digest.update(path.read_bytes())
  return digest.digest()
