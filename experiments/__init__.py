"""Experiments: the only place that knows both packages, flags and configs."""

import os
import signal
import sys


def leave(*_: object) -> None:
  """Ends the process where it stands; no folder of a run is open yet."""
  os.write(2, b"interrupted; no run was begun\n")
  os._exit(128 + signal.SIGINT)


# Started by `python -m`, an experiment imports for seconds, and Ctrl-C would
# end in the trace of whatever library was under way. Python names the command
# "-m" until it has found the module; then `harness.runner` hears Ctrl-C itself.
if sys.argv[:1] == ["-m"]:
  signal.signal(signal.SIGINT, leave)
