"""Ctrl-C at every write of small runs, and in processes at any time.

One sentence, no trace; the run goes on to the bits of one that was left alone.
`tests.faults.interrupting` says how; the quick twin is in `test_resume.py`.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.faults import small_runs

CLOCK = 20  # moments of the clock
PARTS = 4
PROCESSES = 8  # interrupted from the first import to the last word

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
]
names = pytest.mark.parametrize("name", small_runs.RUNS)


@names
@pytest.mark.parametrize("part", range(PARTS), ids="part{}".format)
def test_ctrl_c_at_every_write_goes_on_to_the_same_bits(
  name, part, layer, programs, tmp_path, capsys
):
  command, run = small_runs.command(name, tmp_path)
  environment = {"LD_PRELOAD": str(layer), "FAULTS_OF": str(run)} | programs
  code, out, said = small_runs.process(
    "interrupting", [str(CLOCK), str(part), str(PARTS), *command], **environment
  )
  assert code == 0, said
  whole, *moments = map(json.loads, out.splitlines())
  assert len(moments) == len(range(part, whole["writes"] + CLOCK, PARTS))
  assert not [moment for moment in moments if moment["wrong"]]
  writes = [moment for moment in moments if "write" in moment]
  assert min(moment["stops"] for moment in writes) >= 1
  with capsys.disabled():
    stops = sum(moment["stops"] for moment in moments)
    print(
      f"{name}, part {part + 1} of {PARTS}: {len(writes)} of "
      f"{whole['writes']} writes and {len(moments) - len(writes)} moments of "
      f"the clock, {stops} times interrupted, all resumed to the bit"
    )


@names
def test_ctrl_c_twice_ends_a_process_without_a_trace(name, programs, tmp_path):
  """A second Ctrl-C soon after the first meets the end of the interpreter."""
  command, _ = small_runs.command(name, tmp_path)
  seconds = 0.0
  for whole in ("cold", "warm"):  # those interrupted find compiled programs
    command[-1] = f"--workdir={tmp_path / whole}"
    code, said, seconds = _interrupted(command, programs)
    assert code == 0, said
  for i in range(PROCESSES):
    command[-1] = f"--workdir={tmp_path / str(i)}"
    delay = seconds * i / PROCESSES
    code, said, _ = _interrupted(command, programs, delay, delay + 0.1)
    # Killed by the second, or after its results, it had no more to say.
    assert code in (0, 130, -signal.SIGINT), said
    assert said.count("interrupted; ") <= 1, said
    assert code != 130 or "interrupted; " in said, said
    assert "Traceback" not in said and "ignored" not in said, said


def _interrupted(command, programs, *moments):
  """The experiment as a user starts it, with Ctrl-C at moments in seconds.

  They count from the first import of a library: before, Python itself starts.
  Returns the code, what it said, and the seconds from there to its end.
  """
  process = subprocess.Popen(
    [sys.executable, "-m", f"experiments.{command[0]}", *command[1:]],
    cwd=small_runs.ROOT,
    env=os.environ | programs | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  maps = pathlib.Path(f"/proc/{process.pid}/maps")
  while process.poll() is None and "numpy" not in maps.read_text():
    time.sleep(0.005)
  start = time.monotonic()
  for moment in moments:
    time.sleep(max(0, start + moment - time.monotonic()))
    process.send_signal(signal.SIGINT)
  said = process.communicate()[1]
  return process.returncode, said, time.monotonic() - start
