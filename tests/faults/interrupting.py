"""Ctrl-C at every write of an experiment, and at moments of the clock.

`python -m tests.faults.interrupting CLOCK PART PARTS NAME OPTION ...`, under
`every_write.c`, runs the experiment in this process: whole, then once for every
write and for CLOCK moments spread over its time, of which every PARTS-th is
taken. It is interrupted there, of every fourth moment interrupted again
somewhere in the run that goes on, and then let to its end. A line of JSON tells
of the whole run, and one of each moment what was wrong.
"""

import contextlib
import ctypes
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import threading
import time
from typing import Any

import jax

from experiments.harness.runner import INTERRUPTED
from tests.faults.drive import drive
from tests.faults.small_runs import results

_COUNT = ctypes.c_int.in_dll(ctypes.CDLL(None), "faults_count")
_TRACES = ("Traceback", "Exception ignored", 'File "')
_FRESH, _GOES_ON = "nothing was written", "the same command goes on with"


def run(
  command: list[str], *, write: int = 0, seconds: float = 0.0
) -> tuple[object, str]:
  """Runs it, interrupted at a write, or after some time; code and words."""
  _COUNT.value, code = 0, 0
  os.environ["FAULTS_INTERRUPT"] = str(write)
  ended = threading.Event()

  def later() -> None:
    if not ended.wait(seconds):
      os.kill(os.getpid(), signal.SIGINT)

  clock = threading.Thread(target=later if seconds else ended.set)
  said, out = io.StringIO(), io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
    try:
      clock.start()
      drive(*command)
    except SystemExit as stop:
      code = stop.code
    except BaseException as error:  # what Ctrl-C must not end in
      code = f"{type(error).__name__}: {error}"
    ended.set()
  os.environ["FAULTS_INTERRUPT"] = "0"  # other writes are none of the run's
  clock.join()
  return code, said.getvalue()


def interrupted(
  command: list[str],
  folder: pathlib.Path,
  whole: Any,
  *moments: dict[str, Any],
) -> dict[str, Any]:
  """What became of a run that was interrupted at moments, and gone on with."""
  shutil.rmtree(folder, ignore_errors=True)
  stops, command, moment = [], [*command], moments[0]
  for when in (*moments, {}):
    code, said = run(command, **when)
    stops += [said] if code else []
    if code not in (0, INTERRUPTED) or any(x in said for x in _TRACES):
      return moment | {"wrong": f"{code} {said}"}
    last = said.strip().splitlines()[-1:] or [""]
    if code and not re.search(f"{_FRESH}|{_GOES_ON}", last[0]):
      return moment | {"wrong": f"says not how to go on: {said}"}
    if not code:
      break
    if _FRESH not in last[0] and command[-1] != "--resume":
      command.append("--resume")
  found = results(folder) if code == 0 else {}
  names = sorted(found.keys() | whole.keys())
  others = [name for name in names if found.get(name) != whole.get(name)]
  wrong = f"other {others}; said {stops}" if others else ""
  return moment | {"stops": len(stops), "wrong": wrong}


def main(arguments: list[str]) -> None:
  """Prints what became of every moment."""
  jax.config.update("jax_disable_most_optimizations", True)
  (clock, part, parts), command = map(int, arguments[:3]), arguments[3:]
  folder = pathlib.Path(os.environ["FAULTS_OF"])
  for _ in range(2):  # the first compiles
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    code, said = run(command)
    assert code == 0, said
    seconds, writes = time.monotonic() - start, _COUNT.value
  whole = results(folder)
  print(json.dumps({"writes": writes, "seconds": seconds}), flush=True)
  moments: list[dict[str, Any]] = [{"write": n + 1} for n in range(writes)]
  moments += [{"seconds": (n + 0.5) / clock * seconds} for n in range(clock)]
  rng = random.Random(part)
  for number, moment in enumerate(moments[part::parts]):
    twice = [moment, rng.choice(moments)][: 1 + (number % 4 == 3)]
    found = interrupted(command, folder, whole, *twice)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
